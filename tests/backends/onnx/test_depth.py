"""Depths of layers: what feeds what, counted in the layers that were named."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.depth import depths

SIDE = 4


def model(nodes: list[onnx.NodeProto], *weights: str) -> ir.Model:
    rng = np.random.default_rng(0)
    constants = [numpy_helper.from_array(rng.normal(size=(SIDE, SIDE)).astype(np.float32), name) for name in weights]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIDE]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def matmul(x: str, weight: str, y: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [x, weight], [y])


@pytest.fixture
def branched() -> ir.Model:
    """q and k side by side behind a, then o behind both, and r aside, behind nothing."""
    nodes = [
        matmul("x", "a", "h"),
        matmul("h", "q", "hq"),
        matmul("h", "k", "hk"),
        helper.make_node("Mul", ["hq", "hk"], ["m"]),
        matmul("m", "o", "mo"),
        matmul("x", "r", "xr"),
        helper.make_node("Add", ["mo", "xr"], ["y"]),
    ]
    return model(nodes, "a", "q", "k", "o", "r")


def test_layers_side_by_side_have_one_depth(branched: ir.Model) -> None:
    assert depths(branched, {"a", "q", "k", "o", "r"}) == {"a": 0, "q": 1, "k": 1, "o": 2, "r": 0}


def test_only_named_layers_count(branched: ir.Model) -> None:
    assert depths(branched, {"o", "q"}) == {"q": 0, "o": 1}
    assert depths(branched, set()) == {}


def test_a_shared_weight_counts_where_it_is_deepest() -> None:
    made = model([matmul("x", "w", "h"), matmul("h", "v", "g"), matmul("g", "w", "y")], "w", "v")
    assert depths(made, {"w", "v"}) == {"w": 2, "v": 1}


def test_a_layer_in_a_branch_is_left_out_and_what_follows_is_behind_all_before_it() -> None:
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, SIDE])
    then, other = (helper.make_graph([matmul("h", name, "b")], name, [], [out]) for name in ("inside", "inside"))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
        matmul("x", "a", "h"),
        helper.make_node("If", ["c"], ["g"], then_branch=then, else_branch=other),
        matmul("g", "z", "y"),
    ]
    made = model(nodes, "a", "inside", "z")
    assert depths(made, {"a", "inside", "z"}) == {"a": 0, "z": 1}
