"""Model files of one linear layer with random weights: what a layer's cost is counted and timed on.

No target changes them. They are small graphs as edgepack emits them: in ONNX a Gemm with a bias, which every scheme
rewrites as in a build; in TFLite what its converter and quantizer make of that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.model.replacement import Replacement, dense, low_rank, low_rank_correction
from edgepack.model.scheme import FileScheme, Format
from edgepack.pipeline.layer_tflite import write_layer
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.plan.table import Point
from edgepack.quantize.grid import WEIGHT_MAX
from edgepack.sources.onnx import OnnxSource, open_onnx
from edgepack.types import Array
from edgepack.workspace import TOOLS, FileStep, Progress, atomic_path, default_root, digest, silent, tool_versions

OPSET, IR_VERSION = 17, 8
SEED = 0
SAMPLES = 8
"""Of calibration, for the static schemes: values change no counts, they only have to give sane ranges."""


def layer_files(points: Iterable[Point], progress: Progress = silent) -> dict[Point, Path]:
    """The file of every point in the cache folder, written where it is not there yet.

    Args:
        points: what to write.
        progress: told of every file.

    Raises:
        ModelError: a scheme cannot be written, or the TFLite schema is not installed.
        OutputError: the cache folder cannot be written.
    """
    folders = {fmt: _folder(step) for fmt, (step, _) in _STEPS.items()}
    paths = {point: folders[point.format] / _name(point) for point in points}
    missing = sorted((point for point, path in paths.items() if not path.is_file()), key=_order)
    for fmt, (step, layers) in _STEPS.items():
        wanted = [point for point in missing if point.format == fmt]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="edgepack-layers-") as folder:
            for done, layer in enumerate(layers(wanted, Path(folder)), start=1):
                with atomic_path(paths[layer.point]) as out:
                    step.run(layer, out)
                progress(f"one-layer files, {fmt}", done, len(wanted))
    return paths


def _folder(step: FileStep[Any]) -> Path:
    """Names of these files are for people: what else they depend on stands in the folder's name."""
    return default_root() / step.name / digest(step.version, tool_versions(step.tools))[:12]


def _name(point: Point) -> str:
    rank = "dense" if point.rank is None else f"rank{point.rank}"
    return f"{point.out_features}x{point.in_features}.{rank}.batch{point.batch}.{point.scheme}.{point.format}"


def _order(point: Point) -> tuple[Format, int, int, int, int, str]:
    return (point.format, point.batch, point.out_features, point.in_features, point.rank or 0, point.scheme.name)


def _layers(points: Sequence[Point]) -> Iterator[tuple[tuple[int, int, int], list[Point]]]:
    """Points by (out, in, batch): those of one dense layer together."""
    for shape, group in groupby(points, key=lambda point: (point.out_features, point.in_features, point.batch)):
        yield shape, list(group)


@dataclass(frozen=True)
class _OnnxLayer:
    """A way to write one layer in ONNX: `source` is the layer as exporters write it, `files` its writer."""

    point: Point
    source: OnnxSource
    files: OnnxFiles


def _onnx_layers(points: Sequence[Point], work: Path) -> Iterator[_OnnxLayer]:
    for (rows, columns, batch), group in _layers(points):
        source = _layer(rows, columns, batch, work)
        files = OnnxFiles(source.model, Samples({"x": _inputs(columns)}), largest=WEIGHT_MAX)
        for point in group:
            yield _OnnxLayer(point, source, files)


def _write_onnx(task: _OnnxLayer, out: Path) -> None:
    layer, point = task.source.layers[0], task.point
    parts = {}
    if point.rank is not None:
        left, right = _pair(layer.out_features, layer.in_features, point.rank)
        corrects = point.structure.is_correction
        pair = low_rank(left, right, layer.bias)
        parts[layer.name] = low_rank_correction(left, right, layer.bias, layer.weight) if corrects else pair
    task.files.write(parts, FileScheme.of(point.scheme), out)


@dataclass(frozen=True)
class _TfliteLayer:
    """A way to write one layer in TFLite: its products in their order, and inputs to take ranges from."""

    point: Point
    parts: list[Replacement]
    inputs: Array


def _tflite_layers(points: Sequence[Point], work: Path) -> Iterator[_TfliteLayer]:
    if find_spec("ai_edge_litert") is None or find_spec("flatbuffers") is None:
        raise ModelError("the TFLite schema is not installed", hint="pip install 'edgepack[tflite]'")
    for (rows, columns, _), group in _layers(points):
        weight, bias = _dense(rows, columns)
        inputs = _inputs(columns)
        for point in group:
            parts = [dense(weight, bias)]
            if point.rank is not None:
                left, right = _pair(rows, columns, point.rank)
                parts = [dense(right, None), dense(left, bias)]
            yield _TfliteLayer(point, parts, inputs)


def _write_tflite(task: _TfliteLayer, out: Path) -> None:
    write_layer(out, task.parts, task.point.scheme, task.point.batch, task.inputs)


def _layer(rows: int, columns: int, batch: int, work: Path) -> OnnxSource:
    """One dense layer with a bias, as exporters write it."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight, bias = _dense(rows, columns)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, columns])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, rows])
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    path = work / "layer.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)
    return open_onnx(path)


def _dense(rows: int, columns: int) -> tuple[Array, Array]:
    """Weight (rows, columns) and bias (rows,)."""
    rng = np.random.default_rng(SEED)
    weight = rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))
    return weight, rng.standard_normal(rows, np.float32)


def _pair(rows: int, columns: int, rank: int) -> tuple[Array, Array]:
    """Random A (rows, rank) and B (rank, columns): ranks above the layer's break-even are points of a grid as well."""
    rng = np.random.default_rng(SEED)
    left = rng.standard_normal((rows, rank), np.float32) / np.float32(np.sqrt(rank))
    return left, rng.standard_normal((rank, columns), np.float32) / np.float32(np.sqrt(columns))


def _inputs(columns: int) -> Array:
    return np.random.default_rng(SEED).standard_normal((SAMPLES, columns), np.float32)


ONNX_LAYER: FileStep[_OnnxLayer] = FileStep("layers", 3, _write_onnx, ".onnx", TOOLS)
TFLITE_LAYER: FileStep[_TfliteLayer] = FileStep("layers", 3, _write_tflite, ".tflite", TOOLS)

_STEPS: dict[Format, tuple[FileStep[Any], Callable[[Sequence[Point], Path], Iterator[_OnnxLayer | _TfliteLayer]]]] = {
    "onnx": (ONNX_LAYER, _onnx_layers),
    "tflite": (TFLITE_LAYER, _tflite_layers),
}
