"""Linear layers: what may stand in their place, which products that is, and what it comes to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.model.kinds import kind_of, views_of
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.kinds.matrix import effective_weight, linear_ops
from edgepack.model.layer import WEIGHT, Layer
from edgepack.model.replacement import Instruction, Replacement, constexpr, dense, low_rank, low_rank_correction
from edgepack.model.structure import CONSTEXPR, DENSE
from edgepack.model.structure import low_rank as low_rank_at
from edgepack.model.structure import low_rank_correction as correction_at
from edgepack.model.types import Array
from edgepack.plan.candidates import GivenRanks, WorthwhileRanks, correction_ranks, rank_choices

KINDS = ("dense", "low-rank", "low-rank-correction")
sides = st.integers(1, 30)


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def replacement(kind: str, rows: int, columns: int, rank: int, seed: int) -> Replacement:
    W, A, B = normal(rows, columns, seed=seed), normal(rows, rank, seed=seed + 1), normal(rank, columns, seed=seed + 2)
    bias = normal(rows, seed=seed + 3)
    if kind == "dense":
        return dense(W, bias)
    return low_rank(A, B, bias) if kind == "low-rank" else low_rank_correction(A, B, bias, W)


def layer(rows: int = 96, columns: int = 64, operator: str = "Gemm") -> Layer:
    return linear_layer("fc", normal(rows, columns, seed=9), normal(rows, seed=8), operator)


@given(st.sampled_from(KINDS), sides, sides, st.integers(1, 12), st.integers(0, 1000))
def test_products_one_after_the_other_are_the_effective_weight(
    kind: str, rows: int, columns: int, rank: int, seed: int
) -> None:
    part = replacement(kind, rows, columns, rank, seed)
    x = normal(columns, 5, seed=seed + 4)
    answers = {}
    for op in linear_ops(rows, columns, part.structure, 5):
        tensor = part.tensors[op.role]
        assert tensor.shape == (op.rows, op.columns)
        answers[op.role] = tensor @ (answers["B"] if op.role == "A" else x)
    found = sum(value for role, value in answers.items() if role != "B")
    np.testing.assert_allclose(found, effective_weight(part) @ x, rtol=1e-4, atol=1e-4)


@given(st.sampled_from(KINDS), sides, sides, st.integers(1, 12), st.integers(1, 50))
def test_products_have_as_many_weights_as_the_tensors(
    kind: str, rows: int, columns: int, rank: int, vectors: int
) -> None:
    part = replacement(kind, rows, columns, rank, 0)
    ops = linear_ops(rows, columns, part.structure, vectors)
    assert {op.role: op.weights for op in ops} == {role: tensor.size for role, tensor in part.tensors.items()}
    assert sum(op.macs for op in ops) == vectors * sum(tensor.size for tensor in part.tensors.values())
    assert [op.corrects for op in ops] == [part.structure.is_correction and op.role != "base" for op in ops]


def test_a_constexpr_layer_has_no_product_with_a_stored_weight_and_comes_to_what_it_decodes() -> None:
    one = layer()
    program = (Instruction("matmul", ("x", "table"), "y", {}),)
    part = constexpr({"table": one.weight.T}, program, one.weight, None)
    assert kind_of(one).ops(one, CONSTEXPR, 1) == ()
    np.testing.assert_array_equal(kind_of(one).effective(one, part)[WEIGHT], one.weight)


def test_structures_come_by_rising_rank_the_dense_one_first() -> None:
    one = layer(384, 512)
    found = list(kind_of(one).structures(one, WorthwhileRanks()))
    own, beside = rank_choices(384, 512), correction_ranks(384, 512)
    assert found == [DENSE, *map(low_rank_at, own), *map(correction_at, beside)]
    assert len(own) > 3
    assert beside == (8, 16, 32)
    assert list(own) == sorted(own)
    given_ones = list(kind_of(one).structures(one, GivenRanks((24,), ())))
    assert given_ones == [DENSE, low_rank_at(24)]
    small = layer(10, 12)
    assert list(kind_of(small).structures(small, WorthwhileRanks())) == [DENSE]


@pytest.mark.parametrize("structure", [DENSE, low_rank_at(8), correction_at(8)], ids=str)
def test_what_was_found_for_its_view_is_the_replacement(structure: object) -> None:
    one = layer()
    parts = {part.structure: part for part in (replacement(kind, 96, 64, 8, 0) for kind in KINDS)}
    for found in parts.values():
        if found.structure == structure:
            assert kind_of(one).replace(one, found.structure, {WEIGHT: found}) is found
        else:
            with pytest.raises(ValueError, match=rf"fc: found {found.structure}, expected {structure}"):
                kind_of(one).replace(one, structure, {WEIGHT: found})  # type: ignore[arg-type]


@pytest.mark.parametrize("operator", ["Gemm", "MatMul", "Conv"])
def test_rows_of_an_input(operator: str) -> None:
    one = layer(operator=operator)
    x = normal(2, 3, 5, 64, seed=1)
    rows = kind_of(one).rows(one, WEIGHT)(x)
    assert rows.shape == (30, 64)
    np.testing.assert_array_equal(rows[7], x[0, 1, 2])


def test_views_are_named_after_their_layers() -> None:
    layers = [layer(), linear_layer("other", normal(4, 6, seed=1), None)]
    views = views_of(layers)
    assert [
        (view.name, view.weight is one.weight, view.bias is one.bias) for view, one in zip(views, layers, strict=True)
    ] == [
        ("fc", True, True),
        ("other", True, True),
    ]
    assert all(view.moments is None for view in views)
    assert [(view.out_features, view.in_features) for view in views] == [(96, 64), (4, 6)]


def test_other_numbers_leave_the_rest_of_a_layer() -> None:
    one = linear_layer("fc", normal(4, 6, seed=1), None, "Conv", uses=3)
    other = one.with_weight(normal(5, 6, seed=2), np.zeros(5, np.float32))
    assert (other.name, other.geometry, other.uses, other.out_features) == ("fc", one.geometry, 3, 5)
    assert one.out_features == 4
