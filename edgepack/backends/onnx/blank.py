"""The smallest ONNX model: what a call of the runtime costs when there is next to nothing to compute."""

from __future__ import annotations

from pathlib import Path

NAME = "blank"


def write_blank(path: Path) -> None:
    """See `Backend.blank`."""
    from onnx import TensorProto, ValueInfoProto, helper, save

    def value(name: str) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])

    node = helper.make_node("Abs", [NAME], [f"{NAME}_y"])
    graph = helper.make_graph([node], NAME, [value(NAME)], [value(f"{NAME}_y")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
