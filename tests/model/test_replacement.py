"""What is written for a layer: its tensors by role, and what can be asked of it in each structure."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.model import structure as structures
from edgepack.model.replacement import (
    Instruction,
    constexpr,
    dense,
    low_rank,
    low_rank_correction,
    of_structure,
)
from edgepack.model.types import Array


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


W, A, B, BIAS = normal(6, 9), normal(6, 2, seed=1), normal(2, 9, seed=2), normal(6, seed=3)
PROGRAM = (Instruction("matmul", ("x", "table"), "y", {}),)
PARTS = {
    "dense": dense(W, BIAS),
    "low-rank": low_rank(A, B, BIAS),
    "low-rank-correction": low_rank_correction(A, B, BIAS, W),
    "constexpr": constexpr({"table": W.T}, PROGRAM, W, BIAS),
}


def test_tensors_by_role() -> None:
    roles = {name: set(part.tensors) for name, part in PARTS.items()}
    assert roles == {
        "dense": {"weight"},
        "low-rank": {"A", "B"},
        "low-rank-correction": {"A", "B", "base"},
        "constexpr": {"table"},
    }
    assert {name: part.structure.name for name, part in PARTS.items()} == {name: name for name in PARTS}
    assert PARTS["low-rank"].structure == structures.low_rank(2)
    assert PARTS["low-rank-correction"].structure == structures.low_rank_correction(2)
    both = PARTS["low-rank-correction"]
    assert both.A is A
    assert both.B is B
    assert both.base is W


@pytest.mark.parametrize("name", ["dense", "constexpr"])
def test_a_matrix_that_is_known_without_a_product(name: str) -> None:
    np.testing.assert_array_equal(PARTS[name].weight, W)
    with pytest.raises(ValueError, match=f"a {name} layer has no rank"):
        _ = PARTS[name].rank


@pytest.mark.parametrize("name", ["low-rank", "low-rank-correction"])
def test_factors_have_a_rank_and_no_matrix(name: str) -> None:
    assert PARTS[name].rank == 2
    with pytest.raises(ValueError, match=f"the matrix of a {name} 2 layer is not stored"):
        _ = PARTS[name].weight


def test_layers_of_some_structures() -> None:
    assert list(of_structure(PARTS, "low-rank", "low-rank-correction")) == ["low-rank", "low-rank-correction"]
    assert of_structure(PARTS, "constexpr") == {"constexpr": PARTS["constexpr"]}
    assert of_structure(PARTS) == {}


def test_attributes_of_an_instruction_are_numbers() -> None:
    one = Instruction("pad", ("x",), "y", {"axis": 1, "shape": (2, 3), "dtype": "float32"})
    assert one.number("axis") == 1
    assert one.numbers("axis") == (1,)
    assert one.numbers("shape") == (2, 3)
    with pytest.raises(ValueError, match="pad: dtype is 'float32', numbers were expected"):
        one.numbers("dtype")
