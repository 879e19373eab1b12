"""What a file's convolutions multiply, by every format that a model of them can be written in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.backend import WriterData
from edgepack.backends.registry import FORMATS, backend
from edgepack.model.scheme import Format
from edgepack.quantize.grids import WEIGHT_MAX
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace

SIDE, CLASSES = 12, 5


def write_network(path: Path, channels: int = 3) -> Path:
    """3×3 to 8 channels at half the sides, 3×3 in 8 groups, 1×1 to 16 channels, mean, linear."""
    rng = np.random.default_rng(0)
    shapes = {"w": (8, channels, 3, 3), "d": (8, 1, 3, 3), "p": (16, 8, 1, 1), "u": (CLASSES, 16)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "d"], ["b"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Conv", ["b", "p"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "u"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in shapes.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("fmt", FORMATS)
def test_products_of_a_files_convolutions(fmt: Format, channels: int, tmp_path: Path) -> None:
    source = write_network(tmp_path / "network.onnx", channels)
    opened = open_model(str(source), tmp_path, (fmt,))
    assert {layer.name: layer.kind for layer in opened.layers} == {"w": "conv", "p": "linear", "u": "linear"}
    given = WriterData(None, {"x": np.zeros((1, channels, SIDE, SIDE), np.float32)}, WEIGHT_MAX)
    path = tmp_path / f"dense.{fmt}"
    with backend(fmt).engine() as engine:
        backend(fmt).open(opened, given, engine, Workspace(Cache(tmp_path / "cache"), tmp_path)).write_dense(path)
    found = [(op.rows, op.inputs, op.vectors, op.macs) for op in backend(fmt).convolutions(path)]
    places = (SIDE // 2) ** 2
    assert found == [(8, 9 * channels, places, 8 * 9 * channels * places), (1, 9, 8 * places, 8 * 9 * places)]
