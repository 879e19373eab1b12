"""What is written for a layer, through the arrays of a cache and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.model.constexpr import Writer
from edgepack.model.replacement import Replacement, dense, low_rank, low_rank_correction
from edgepack.model.serialize import packed_part, unpacked_pair, unpacked_part
from edgepack.model.structure import Structure
from edgepack.model.types import Array

KINDS = ("dense", "low-rank", "low-rank-correction", "constexpr")


def made(kind: str, rows: int, columns: int, rank: int, *, has_bias: bool) -> Replacement:
    rng = np.random.default_rng([rows, columns, rank])

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    bias = normal(rows) if has_bias else None
    if kind == "constexpr":
        w = Writer()
        codes = w.constant("A", rng.integers(0, rank, (columns, rows), dtype=np.uint8))  # a name that factors have too
        return w.decoded(w.step("gather", w.constant("book", normal(rank)), codes, axis=0), bias)
    if kind == "dense":
        return dense(normal(rows, columns), bias)
    A, B = normal(rows, rank), normal(rank, columns)
    return low_rank(A, B, bias) if kind == "low-rank" else low_rank_correction(A, B, bias, normal(rows, columns))


def check_same(one: Replacement, other: Replacement) -> None:
    assert (one.structure, one.program, set(one.tensors)) == (other.structure, other.program, set(other.tensors))
    for name, array in one.tensors.items():
        assert array.dtype == other.tensors[name].dtype
        np.testing.assert_array_equal(array, other.tensors[name])
    assert (one.bias is None) == (other.bias is None)
    if one.bias is not None:
        np.testing.assert_array_equal(one.bias, other.bias)
    if not one.structure.ranks:
        np.testing.assert_array_equal(one.weight, other.weight)


@given(st.sampled_from(KINDS), st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.booleans())
def test_a_part_comes_back_as_it_was(kind: str, rows: int, columns: int, rank: int, has_bias: bool) -> None:
    part = made(kind, rows, columns, rank, has_bias=has_bias)
    assert part.structure.name == kind
    check_same(part, unpacked_part(packed_part(part)))
    if part.structure.ranks:
        check_same(part, unpacked_pair(packed_part(part)))


@pytest.mark.parametrize("has_bias", [False, True])
def test_so_does_a_structure_of_several_factors(has_bias: bool) -> None:
    tensors = {role: made("dense", 6, 4, index, has_bias=False).weight for index, role in enumerate("BKA")}
    bias = made("dense", 6, 4, 3, has_bias=has_bias).bias
    part = Replacement(Structure("tucker-2", (3, 4)), tensors, bias)
    check_same(part, unpacked_part(packed_part(part)))


@pytest.mark.parametrize("kind", KINDS)
def test_also_from_a_file(kind: str, tmp_path: Path) -> None:
    part = made(kind, 12, 20, 3, has_bias=True)
    np.savez(tmp_path / "part.npz", **packed_part(part))
    with np.load(tmp_path / "part.npz", allow_pickle=False) as stored:
        check_same(part, unpacked_part(dict(stored)))
