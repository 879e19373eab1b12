"""One-layer TFLite files: the converter and the quantizer make the same of the same layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.layer_file import write_layer
from edgepack.backends.tflite.schemes import FP32, INT8_STATIC, SCHEMES
from edgepack.model.replacement import dense, low_rank
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.sources.onnx import open_onnx

ROWS, COLUMNS, RANK, BATCH = 48, 72, 8, 3
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((ROWS, COLUMNS), np.float32)
BIAS = RNG.standard_normal(ROWS, np.float32)
LEFT, RIGHT = RNG.standard_normal((ROWS, RANK), np.float32), RNG.standard_normal((RANK, COLUMNS), np.float32)
INPUTS = RNG.standard_normal((16, COLUMNS), np.float32)
PARTS = {"dense": [dense(WEIGHT, BIAS)], "pair": [dense(RIGHT, None), dense(LEFT, BIAS)]}


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


def test_large_constants_are_aligned(tmp_path: Path) -> None:
    path = tmp_path / "own.tflite"
    write_layer(path, PARTS["dense"], FP32, 1, INPUTS)
    raw = path.read_bytes()
    assert raw.index(WEIGHT.tobytes()) % 16 == 0
    assert raw.index(BIAS.tobytes()) % 16 == 0
