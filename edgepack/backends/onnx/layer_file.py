"""ONNX files of one layer: a Gemm or a Conv with a bias, which every scheme rewrites as in a build."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.backends.onnx.kinds import KINDS
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.data import Samples
from edgepack.model.layer import Layer
from edgepack.model.point import Point, image_of, layer_of
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

    for _, alike in groupby(points, key=layer_of):
        group = list(alike)
        model, shape = _model(group[0])
        (site,) = find_sites(model)
        files = OnnxWriter(model, Samples({"x": random_inputs(*shape)}), qmax=WEIGHT_MAX)
        for point in group:
            yield OnnxLayer(point, site.layer, files)


def _write(task: OnnxLayer, out: Path) -> None:
    """As a pack has it; a layer whose kind has no integer kernel in packs as dense int8 has it."""
    layer, point = task.layer, task.point
    if point.scheme not in KINDS[layer.kind].schemes:
        task.files.write_baseline(point.scheme, out)
        return
    parts = {}
    if point.rank is not None:
        left, right = random_pair(layer.out_features, layer.in_features, point.rank)
        corrects = point.structure.is_correction
        pair = low_rank(left, right, layer.bias)
        parts[layer.name] = low_rank_correction(left, right, layer.bias, layer.weight) if corrects else pair
    task.files.write(parts, FileScheme.of(point.scheme), out)


def _model(point: Point) -> tuple[ir.Model, tuple[int, ...]]:
    """One dense layer with a bias, as exporters write it, and the shape of one of its inputs."""
    import onnx_ir as ir
    from onnx import TensorProto, helper, numpy_helper

    rows, columns, batch, kernel = layer_of(point)
    weight, bias = random_weight(rows, columns * prod(kernel))
    if kernel:
        weight, image = weight.reshape(rows, columns, *kernel), image_of(point)
        before = [(size - 1) // 2 for size in kernel]
        pads = [*before, *(size - 1 - own for size, own in zip(kernel, before, strict=True))]
        given, taken = (1, columns, *image), (1, rows, *image)
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=pads)
    else:
        given, taken = (batch, columns), (batch, rows)
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, given)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, taken)
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return ir.from_proto(made), given[1:]


ONNX_LAYER: FileStep[OnnxLayer] = FileStep("layers", 5, _write, ".onnx", TOOLS)
