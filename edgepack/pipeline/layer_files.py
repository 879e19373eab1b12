"""Model files of one linear layer with random weights: what a cost table is counted on. No target changes them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from edgepack.cache import atomic_path, default_root, digest
from edgepack.data import Samples
from edgepack.emit.tflite import TfliteEmitter
from edgepack.errors import ModelError
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.plan.table import Point
from edgepack.progress import Progress, silent
from edgepack.quantize.grid import WEIGHT_MAX
from edgepack.sources.onnx import OnnxSource, open_onnx
from edgepack.types import Array, Factors, Format
from edgepack.versions import tool_versions

VERSION = 1
OPSET, IR_VERSION = 17, 8
SEED = 0
SAMPLES = 8
"""Of calibration, for the static forms: values change no counts, they only have to give sane ranges."""


def layer_files(points: Iterable[Point], progress: Progress = silent) -> dict[Point, Path]:
    """The file of every point in the cache folder, written where it is not there yet.

    Args:
        points: what to write.
        progress: told of every file.

    Raises:
        ModelError: a converter failed, or is not installed.
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
    return f"{point.out_features}x{point.in_features}.{rank}.batch{point.batch}.{point.form}.{point.format}"


def _order(point: Point) -> tuple[Format, int, int, int, int, str]:
    return (point.format, point.batch, point.out_features, point.in_features, point.rank or 0, point.form)


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
                files.write(_factors(source, point.rank), point.form, out)
            yield point


def _write_tflite(points: Sequence[Point], paths: Mapping[Point, Path], work: Path) -> Iterator[Point]:
    """One converter process for all: it takes seconds to start."""
    with TfliteEmitter() as emitter:
        emitter.warm_up()
        for (rows, columns, batch), group in _layers(points):
            source = _layer(rows, columns, batch, work)
            emitter.load_onnx(source.path, {"x": (batch, columns)})
            samples = {"x": np.stack([np.resize(row, (batch, columns)) for row in _inputs(columns)])}
            for rank, forms in groupby(group, key=lambda point: point.rank):
                plain = work / "plain.tflite"
                if emitter.emit(plain, source.layers, _factors(source, rank) or None):
                    raise ModelError(f"the converter does not find the layer {rows}x{columns} again")
                for point in forms:
                    with atomic_path(paths[point]) as out:
                        if point.form == "fp32":
                            out.write_bytes(plain.read_bytes())
                        else:
                            emitter.quantize(plain, out, point.form, samples if point.form == "int8-static" else None)
                    yield point


def _layer(rows: int, columns: int, batch: int, work: Path) -> OnnxSource:
    """One dense layer with a bias, as exporters write it."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(SEED)
    weight = rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))
    constants = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(rng.standard_normal(rows, np.float32), "b"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, columns])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, rows])
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    path = work / "layer.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)
    return open_onnx(path)


def _factors(source: OnnxSource, rank: int | None) -> dict[str, Factors]:
    """Random factors of the layer: ranks above its break-even are points of the grid as well."""
    if rank is None:
        return {}
    layer = source.layers[0]
    rng = np.random.default_rng(SEED)
    left = rng.standard_normal((layer.out_features, rank), np.float32) / np.float32(np.sqrt(rank))
    right = rng.standard_normal((rank, layer.in_features), np.float32) / np.float32(np.sqrt(layer.in_features))
    return {layer.name: Factors(left, right, layer.bias)}


def _inputs(columns: int) -> Array:
    return np.random.default_rng(SEED).standard_normal((SAMPLES, columns), np.float32)
