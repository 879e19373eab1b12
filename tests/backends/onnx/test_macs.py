"""Multiplications of graphs."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.file import from_proto
from edgepack.backends.onnx.macs import macs


def test_maps_of_scores_multiply_nothing() -> None:
    """As classifiers of scikit-learn are exported; the model itself keeps them."""
    shares = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["scores"]),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
            helper.make_node("ZipMap", ["scores"], ["shares"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]), helper.make_value_info("shares", shares)],
        [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    model = from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))
    assert macs(model, {"x": np.zeros((2, 4), np.float32)}) == 2 * 4 * 3
    assert [output.name for output in model.graph.outputs] == ["label", "shares"]
