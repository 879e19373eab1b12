"""ONNX files of one linear layer: a Gemm with a bias, which every scheme rewrites as in a build."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.data import Samples
from edgepack.model.layer import Layer
from edgepack.model.point import Point, layer_of
from edgepack.model.random_layer import random_inputs, random_pair, random_weight
from edgepack.model.replacement import low_rank, low_rank_correction
from edgepack.model.scheme import FileScheme
from edgepack.quantize.grids import WEIGHT_MAX
from edgepack.workspace import TOOLS, FileStep

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET, IR_VERSION = 17, 8


@dataclass(frozen=True)
class OnnxLayer:
    """A way to write one layer: `layer` as exporters write it, and the writer of its model."""

    point: Point
    layer: Layer
    files: OnnxWriter


def onnx_layers(points: Sequence[Point]) -> Iterator[OnnxLayer]:
    """See `Backend.one_ops`. Points of one dense layer share a writer."""
    from edgepack.backends.onnx.sites import find_sites

    for (rows, columns, batch), group in groupby(points, key=layer_of):
        model = _model(rows, columns, batch)
        (site,) = find_sites(model)
        files = OnnxWriter(model, Samples({"x": random_inputs(columns)}), qmax=WEIGHT_MAX)
        for point in group:
            yield OnnxLayer(point, site.layer, files)


def _write(task: OnnxLayer, out: Path) -> None:
    layer, point = task.layer, task.point
    parts = {}
    if point.rank is not None:
        left, right = random_pair(layer.out_features, layer.in_features, point.rank)
        corrects = point.structure.is_correction
        pair = low_rank(left, right, layer.bias)
        parts[layer.name] = low_rank_correction(left, right, layer.bias, layer.weight) if corrects else pair
    task.files.write(parts, FileScheme.of(point.scheme), out)


def _model(rows: int, columns: int, batch: int) -> ir.Model:
    """One dense layer with a bias, as exporters write it."""
    import onnx_ir as ir
    from onnx import TensorProto, helper, numpy_helper

    weight, bias = random_weight(rows, columns)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, columns])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, rows])
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return ir.from_proto(made)


ONNX_LAYER: FileStep[OnnxLayer] = FileStep("layers", 5, _write, ".onnx", TOOLS)
