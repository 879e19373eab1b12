"""The operators of ONNX files as the runtime runs them, and what makes some of them slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_node

from edgepack.backends.onnx.operators import operators
from edgepack.backends.operators import Doubt, Operator
from edgepack.model.types import Array
from tests.backends.onnx.graph_models import info, normal, proto

SIDE = 32


def found(made: onnx.ModelProto, folder: Path, x: Array, *, unsigned: bool = False) -> dict[str, Operator]:
    path = folder / "model.onnx"
    onnx.save(made, path)
    return {one.kind: one for one in operators(path, {"x": x}, timed=False, unsigned=unsigned)}


def codes(*shape: int, dtype: str = "int8") -> Array:
    return np.random.default_rng(0).integers(1, 100, shape).astype(dtype)


@pytest.mark.parametrize(
    ("given", "weight", "doubt"),
    [("uint8", "int8", None), ("uint8", "uint8", "unsigned weights"), ("int8", "int8", "signed inputs")],
)
def test_integers_that_kernels_do_not_want(given: str, weight: str, doubt: Doubt | None, tmp_path: Path) -> None:
    made = proto(
        [make_node("MatMulInteger", ["x", "w"], ["y"])],
        [info("x", [3, SIDE], getattr(TensorProto, given.upper()))],
        [info("y", [3, SIDE], TensorProto.INT32)],
        {"w": codes(SIDE, SIDE, dtype=weight)},
    )
    product = found(made, tmp_path, codes(3, SIDE, dtype=given))["MatMulInteger"]
    assert (product.doubt, product.macs) == (doubt, 3 * SIDE * SIDE)


def test_a_convolution_in_integers_has_no_scheme(tmp_path: Path) -> None:
    made = proto(
        [make_node("ConvInteger", ["x", "w"], ["y"], group=2)],
        [info("x", [1, 4, 6, 6], TensorProto.UINT8)],
        [info("y", [1, 8, 4, 4], TensorProto.INT32)],
        {"w": codes(8, 2, 3, 3)},
    )
    one = found(made, tmp_path, codes(1, 4, 6, 6, dtype="uint8"))["ConvInteger"]
    assert (one.scheme, one.doubt, one.macs) == (None, "integer convolution", 8 * 2 * 9 * 16)


def test_a_pair_of_quantizers_that_is_not_fused(tmp_path: Path) -> None:
    nodes = [
        make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        make_node("MatMul", ["d", "w"], ["y"]),
    ]
    constants = {"scale": np.array(0.1, np.float32), "zero": np.array(3, np.uint8), "w": normal(SIDE, SIDE)}
    made = proto(nodes, [info("x", [1, SIDE])], [info("y", [1, SIDE])], constants)
    ran = found(made, tmp_path, normal(1, SIDE))
    assert {kind: one.doubt for kind, one in ran.items() if one.doubt} == {"DequantizeLinear": "float behind integers"}


def test_steps_of_a_recurrence_share_a_matrix(tmp_path: Path) -> None:
    nodes = [make_node("MatMul", [f"h{step}" if step else "x", "w"], [f"h{step + 1}"]) for step in range(5)]
    made = proto(nodes, [info("x", [1, SIDE])], [info("h5", [1, SIDE])], {"w": normal(SIDE, SIDE)})
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    ran = operators(path, {"x": normal(1, SIDE)}, timed=True, unsigned=False)
    assert [one.doubt for one in ran] == ["unrolled"] * 5
    assert len({one.name for one in ran}) == 5
    assert all(one.seconds is not None for one in ran)


def test_a_recurrent_operator_multiplies_inputs_at_once_and_states_one_by_one(tmp_path: Path) -> None:
    steps, inputs, cells = 3, 6, 8
    weights = {"w": normal(1, 4 * cells, inputs), "r": normal(1, 4 * cells, cells)}
    node = make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=cells)
    made = proto([node], [info("x", [steps, 2, inputs])], [info("y", [steps, 1, 2, cells])], weights)
    lstm = found(made, tmp_path, normal(steps, 2, inputs))["LSTM"]
    assert [(op.rows, op.columns, op.vectors) for op in lstm.products] == [
        (4 * cells, inputs, 2 * steps),
        *[(4 * cells, cells, 2)] * steps,
    ]


def test_what_a_branch_runs_stands_for_itself(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        return make_graph([make_node("MatMul", ["x", "w"], [name], name=f"in {name}")], name, [], [info(name, None)])

    node = make_node("If", ["yes"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    nodes = [make_node("Cast", ["flag"], ["yes"], to=TensorProto.BOOL), node]
    inputs = [info("x", [1, SIDE]), info("flag", [1])]
    made = proto(nodes, inputs, [info("y", [1, SIDE])], {"w": normal(SIDE, SIDE)})
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    feed = {"x": normal(1, SIDE), "flag": np.ones(1, np.float32)}
    ran = operators(path, feed, timed=True, unsigned=False)
    assert [(one.kind, one.macs) for one in ran if one.kind != "Cast"] == [("MatMul", SIDE * SIDE)]
    assert "in a" in [one.name for one in ran]
