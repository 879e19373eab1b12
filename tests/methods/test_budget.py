"""Layers stored in code with their float constants in 8 bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgepack.methods.budget import bytes_in_8_bits, in_8_bits
from edgepack.model.constexpr import Writer, evaluate, stored_bytes, values
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product(rows: int, inner: int, columns: int) -> Replacement:
    w = Writer()
    return w.decoded(
        w.step("matmul", w.constant("a", normal(rows, inner)), w.constant("b", normal(inner, columns))), None
    )


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_rounding_is_to_half_a_step_and_bytes_are_as_told(rows: int, inner: int, columns: int) -> None:
    part = product(rows, inner, columns)
    found = in_8_bits(part)
    assert stored_bytes(found) == bytes_in_8_bits(rows, inner) + bytes_in_8_bits(inner, columns)
    decoded = values(found.tensors, found.program)
    for name, array in part.tensors.items():
        if f"{name}.int8" not in found.tensors:
            np.testing.assert_array_equal(found.tensors[name], array)
            continue
        codes, scale = found.tensors[f"{name}.int8"], found.tensors[f"{name}.scale"]
        assert codes.dtype == np.int8
        assert np.abs(codes.astype(int)).max() <= 127
        assert (np.abs(codes * scale - array) <= scale / 2 * (1 + 1e-4)).all()
        assert any(np.array_equal(value, codes * scale) for value in decoded.values() if value.shape == codes.shape)


def test_the_weight_is_that_of_the_rounded_numbers() -> None:
    found = in_8_bits(product(12, 5, 20))
    x = normal(4, 20, seed=7)
    np.testing.assert_allclose(evaluate(found, x), x @ found.weight.T, rtol=1e-5, atol=1e-5)


def test_integers_and_short_vectors_stay() -> None:
    w = Writer()
    index = w.constant("index", np.arange(8, dtype=np.int32))
    picked = w.step("gather", w.constant("short", normal(8)), index, axis=0)
    part = w.decoded(w.step("reshape", picked, shape=(2, 4)), None)
    found = in_8_bits(part)
    assert set(found.tensors) == {"index", "short"}
    np.testing.assert_array_equal(found.weight, part.weight)


def test_rows_have_scales_of_their_own_where_they_are_long() -> None:
    long, short = in_8_bits(product(12, 16, 20)), in_8_bits(product(12, 15, 20))
    assert long.tensors["a.scale"].shape == (12, 1)
    assert short.tensors["a.scale"].shape == (1,)
