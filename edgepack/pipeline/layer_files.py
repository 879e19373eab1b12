"""Model files of one linear layer with random weights: what a layer's cost is counted and timed on.

No target changes them. They are small graphs as edgepack emits them: in ONNX a Gemm with a bias, which every scheme
rewrites as in a build; in TFLite what its converter and quantizer make of that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import numpy as np

from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.model.replacement import dense, low_rank, low_rank_correction
from edgepack.model.scheme import FileScheme, Format
from edgepack.pipeline.layer_tflite import write_layer
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.plan.table import Point
from edgepack.quantize.grid import WEIGHT_MAX
from edgepack.sources.onnx import OnnxSource, open_onnx
from edgepack.types import Array
from edgepack.workspace import Progress, atomic_path, default_root, digest, silent, tool_versions

VERSION = 2
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
    versions = digest(VERSION, tool_versions())[:12]
    paths = {point: default_root() / "layers" / versions / _name(point) for point in points}
    missing = sorted((point for point, path in paths.items() if not path.is_file()), key=_order)
    for fmt, write in (("onnx", _write_onnx), ("tflite", _write_tflite)):
        wanted = [point for point in missing if point.format == fmt]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="edgepack-layers-") as folder:
            for done, point in enumerate(write(wanted, paths, Path(folder)), start=1):
                progress(f"one-layer files, {point.format}", done, len(wanted))
    return paths


def _name(point: Point) -> str:
    rank = "dense" if point.rank is None else f"rank{point.rank}"
    return f"{point.out_features}x{point.in_features}.{rank}.batch{point.batch}.{point.scheme}.{point.format}"


def _order(point: Point) -> tuple[Format, int, int, int, int, str]:
    return (point.format, point.batch, point.out_features, point.in_features, point.rank or 0, point.scheme.name)


def _layers(points: Sequence[Point]) -> Iterator[tuple[tuple[int, int, int], list[Point]]]:
    """Points by (out, in, batch): those of one dense layer together."""
    for shape, group in groupby(points, key=lambda point: (point.out_features, point.in_features, point.batch)):
        yield shape, list(group)


def _write_onnx(points: Sequence[Point], paths: Mapping[Point, Path], work: Path) -> Iterator[Point]:
    for (rows, columns, batch), group in _layers(points):
        source = _layer(rows, columns, batch, work)
        files = OnnxFiles(source.model, Samples({"x": _inputs(columns)}), largest=WEIGHT_MAX)
        for point in group:
            with atomic_path(paths[point]) as out:
                _write_point(files, source, point, out)
            yield point


def _write_tflite(points: Sequence[Point], paths: Mapping[Point, Path], work: Path) -> Iterator[Point]:
    if find_spec("ai_edge_litert") is None or find_spec("flatbuffers") is None:
        raise ModelError("the TFLite schema is not installed", hint="pip install 'edgepack[tflite]'")
    for (rows, columns, batch), group in _layers(points):
        weight, bias = _dense(rows, columns)
        inputs = _inputs(columns)
        for point in group:
            parts = [dense(weight, bias)]
            if point.rank is not None:
                left, right = _pair(rows, columns, point.rank)
                parts = [dense(right, None), dense(left, bias)]
            with atomic_path(paths[point]) as out:
                write_layer(out, parts, point.scheme, batch, inputs)
            yield point


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


def _write_point(files: OnnxFiles, source: OnnxSource, point: Point, out: Path) -> None:
    layer = source.layers[0]
    if point.rank is None:
        files.write({}, FileScheme.of(point.scheme), out)
        return
    left, right = _pair(layer.out_features, layer.in_features, point.rank)
    pair = low_rank(left, right, layer.bias)
    if point.structure.is_correction:
        pair = low_rank_correction(left, right, layer.bias, layer.weight)
    files.write({layer.name: pair}, FileScheme.of(point.scheme), out)


def _inputs(columns: int) -> Array:
    return np.random.default_rng(SEED).standard_normal((SAMPLES, columns), np.float32)
