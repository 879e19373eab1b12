"""Structures by their names, and the products that they are made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import INT8_DYNAMIC, NBITS4, NBITS8
from edgepack.model.scheme import scheme_of
from edgepack.model.structure import CONSTEXPR, DENSE, Op, Structure, low_rank, low_rank_correction, structure_of

structures = st.one_of(
    st.sampled_from([DENSE, CONSTEXPR]),
    st.integers(1, 4096).map(low_rank),
    st.integers(1, 4096).map(low_rank_correction),
)


@given(structures)
def test_a_structure_is_found_again_by_its_name_and_rank(structure: Structure) -> None:
    assert structure_of(structure.name, structure.rank) == structure
    kinds = (structure.is_dense, structure.is_low_rank, structure.is_correction, structure.is_constexpr)
    assert sum(kinds) == 1
    assert bool(structure.ranks) == (structure.is_low_rank or structure.is_correction)


@pytest.mark.parametrize(
    ("name", "rank"),
    [("dense", 8), ("constexpr", 8), ("low-rank", None), ("low-rank-correction", None), ("thin", None), ("", 8)],
)
def test_names_and_ranks_that_do_not_go_together(name: str, rank: int | None) -> None:
    with pytest.raises(ValueError, match=f"no structure '{name}' of rank {rank}"):
        structure_of(name, rank)


@pytest.mark.parametrize(
    ("structure", "text"),
    [
        (DENSE, "dense"),
        (CONSTEXPR, "constexpr"),
        (low_rank(8), "low-rank 8"),
        (low_rank_correction(8), "low-rank-correction 8"),
    ],
)
def test_structures_for_people(structure: Structure, text: str) -> None:
    assert str(structure) == text


def test_a_product_counts_its_kernel_and_its_vectors() -> None:
    op = Op("weight", "conv", 8, 4, vectors=49, kernel=(3, 5))
    assert op.weights == 8 * 4 * 15
    assert op.macs == 49 * op.weights
    assert Op("weight", "matmul", 8, 4).macs == 32


def test_only_factors_beside_a_matrix_have_the_scheme_of_its_correction() -> None:
    thin, beside = Op("B", "matmul", 8, 64), Op("B", "matmul", 8, 64, corrects=True)
    assert scheme_of(thin, NBITS4) == NBITS4
    assert scheme_of(beside, NBITS4) == NBITS8
    assert scheme_of(beside, INT8_DYNAMIC) == INT8_DYNAMIC
