"""One-layer TFLite files: the converter and the quantizer make the same of the same layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.layer_file import Part, write_layer
from edgepack.backends.tflite.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, SCHEMES
from edgepack.model.replacement import low_rank
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.sources.onnx import open_onnx

ROWS, COLUMNS, RANK, BATCH = 48, 72, 8, 3
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((ROWS, COLUMNS), np.float32)
BIAS = RNG.standard_normal(ROWS, np.float32)
LEFT, RIGHT = RNG.standard_normal((ROWS, RANK), np.float32), RNG.standard_normal((RANK, COLUMNS), np.float32)
INPUTS = RNG.standard_normal((16, COLUMNS), np.float32)
CONV_2D = 3
"""Of the schema's operators."""
PARTS = {"dense": [Part(WEIGHT, BIAS)], "pair": [Part(RIGHT, None), Part(LEFT, BIAS)]}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, Scheme], Path]]:
    """Files of the dense layer and of the pair in every scheme, as a build emits them."""
    folder = tmp_path_factory.mktemp("converted")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [BATCH, s]) for n, s in (("x", COLUMNS), ("y", ROWS)))
    constants = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(BIAS, "b")]
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], "g", [x], [y], constants)
    path = folder / "layer.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    source = open_onnx(path)
    samples = {"x": np.stack([np.resize(row, (BATCH, COLUMNS)) for row in INPUTS])}
    files = {}
    with TfliteEmitter() as emitter:
        emitter.load_onnx(path, {"x": (BATCH, COLUMNS)})
        for kind, factors in (("dense", {}), ("pair", {source.layers[0].name: low_rank(LEFT, RIGHT, BIAS)})):
            files[kind, FP32] = folder / f"{kind}.fp32.tflite"
            assert not emitter.emit(files[kind, FP32], source.layers, factors or None)
            for scheme in SCHEMES[1:]:
                files[kind, scheme] = folder / f"{kind}.{scheme}.tflite"
                emitter.quantize(
                    files[kind, FP32], files[kind, scheme], scheme, samples if scheme == INT8_STATIC else None
                )
        yield files


def operators(path: Path) -> list[dict[str, Any]]:
    """Every operator with its version, its attributes, and the types, shapes and grids of what it reads and writes."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (graph,) = model.subgraphs

    def tensor(index: int) -> Any:
        if index < 0:
            return None
        found = graph.tensors[index]
        buffer = model.buffers[found.buffer].data
        grid = found.quantization
        scales = None if grid is None or grid.scale is None else (len(grid.scale), grid.quantizedDimension)
        return found.type, tuple(found.shape), 0 if buffer is None else len(buffer), scales

    return [
        {
            "code": (model.operatorCodes[op.opcodeIndex].builtinCode, model.operatorCodes[op.opcodeIndex].version),
            "options": None if op.builtinOptions is None else vars(op.builtinOptions),
            "reads": [tensor(index) for index in op.inputs],
            "writes": [tensor(index) for index in op.outputs],
        }
        for op in graph.operators
    ]


def answers(path: Path, rows: Array) -> Array:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], rows)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


@pytest.mark.parametrize("kind", list(PARTS))
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_file_is_what_a_build_emits(
    kind: str, scheme: Scheme, converted: dict[tuple[str, Scheme], Path], tmp_path: Path
) -> None:
    path = tmp_path / "own.tflite"
    write_layer(path, PARTS[kind], scheme, BATCH, INPUTS)
    assert operators(path) == operators(converted[kind, scheme])
    rows = INPUTS[:BATCH]
    reference = rows
    for part in PARTS[kind]:
        reference = reference @ part.weight.T + (0 if part.bias is None else part.bias)
    own, theirs = answers(path, rows), answers(converted[kind, scheme], rows)
    spread = np.abs(reference).max()
    limit = 1e-5 if scheme == FP32 else 0.25 if scheme.bits == 4 else 0.03
    assert np.abs(own - reference).max() < limit * spread
    assert np.abs(own - theirs).max() < 2 * limit * spread


@pytest.mark.parametrize("side", [1, 3])
def test_a_convolution_is_what_a_build_emits(side: int, tmp_path: Path) -> None:
    """But for what turns its images: channels stand first in ONNX."""
    outputs, channels, image = 24, 16, (7, 6)
    kernel = RNG.standard_normal((outputs, channels, side, side), np.float32)
    bias, images = BIAS[:outputs], RNG.standard_normal((4, channels, *image), np.float32)
    given, taken = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s, *image])
        for n, s in (("x", channels), ("y", outputs))
    )
    constants = [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(bias, "b")]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[side // 2] * 4)
    graph = helper.make_graph([node], "g", [given], [taken], constants)
    path, float_file = tmp_path / "layer.onnx", tmp_path / "float.tflite"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    part = Part(np.ascontiguousarray(np.moveaxis(kernel, 1, -1)), bias)
    with TfliteEmitter() as emitter:
        emitter.load_onnx(path, {"x": (1, channels, *image)})
        assert not emitter.emit(float_file, open_onnx(path).layers, None)
        for scheme in (FP32, INT8_DYNAMIC, INT8_STATIC):
            theirs, own = float_file, tmp_path / f"own.{scheme}.tflite"
            if scheme != FP32:
                theirs = tmp_path / f"{scheme}.tflite"
                samples = {"x": images[:, None]} if scheme == INT8_STATIC else None
                emitter.quantize(float_file, theirs, scheme, samples)
            write_layer(own, [part], scheme, 1, np.moveaxis(images, 1, -1))
            emitted = [one for one in operators(theirs) if one["code"][0] == CONV_2D]
            assert [one for one in operators(own) if one["code"][0] == CONV_2D] == emitted
            found = answers(own, np.moveaxis(images[:1], 1, -1))
            expected = np.moveaxis(answers(theirs, images[:1]), 1, -1)
            assert np.abs(found - expected).max() < (1e-5 if scheme == FP32 else 0.05) * np.abs(expected).max()


def test_large_constants_are_aligned(tmp_path: Path) -> None:
    path = tmp_path / "own.tflite"
    write_layer(path, PARTS["dense"], FP32, 1, INPUTS)
    raw = path.read_bytes()
    assert raw.index(WEIGHT.tobytes()) % 16 == 0
    assert raw.index(BIAS.tobytes()) % 16 == 0
