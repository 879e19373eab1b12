from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.tflite.read import linear_ops, operators, weight_bytes
from edgepack.backends.tflite.runtime import interpreter, load, signature
from edgepack.errors import ModelError

Written = tuple[Path, np.ndarray, np.ndarray]


def written(folder: Path, weight: np.ndarray, bias: np.ndarray) -> Path:
    """A file with one FULLY_CONNECTED, made with the schema alone: an independent source for the reader."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, shape: list[int], buffer: int) -> object:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, shape, buffer, schema.TensorType.FLOAT32
        return made

    model, graph, operator, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    operator.inputs, operator.outputs = [0, 1, 2], [3]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    shapes = {"x": [1, 6], "w": [4, 6], "b": [4], "y": [1, 4]}
    graph.tensors = [tensor(n, s, {"w": 1, "b": 2}.get(n, 0)) for n, s in shapes.items()]
    graph.inputs, graph.outputs, graph.operators = [0], [3], [operator]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT() for _ in range(3)]
    for buffer, array in zip(model.buffers[1:], (weight, bias), strict=True):
        buffer.data = list(array.astype("<f4").tobytes())
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = [schema.TensorMapT()], [schema.TensorMapT()]
    signature.inputs[0].name, signature.inputs[0].tensorIndex = "input", 0
    signature.outputs[0].name, signature.outputs[0].tensorIndex = "output", 3
    model.signatureDefs = [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    (folder / "m.tflite").write_bytes(builder.Output())
    return folder / "m.tflite"


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Written:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    return written(tmp_path_factory.mktemp("tflite"), weight, bias), weight, bias


def test_reads_what_was_written(model_file: Written) -> None:
    path, weight, bias = model_file
    (op,) = linear_ops(path)
    assert operators(path) == ["FULLY_CONNECTED"]
    assert (op.op, op.bits, op.axis, op.scales.size) == ("FULLY_CONNECTED", 32, None, 0)
    np.testing.assert_array_equal(op.values, weight)
    assert op.bias is not None
    np.testing.assert_array_equal(op.bias, bias)
    assert weight_bytes(path) == 4 * 6 * 4


def test_runs_by_name_and_narrows_wide_types(model_file: Written) -> None:
    path, weight, bias = model_file
    key, inputs = signature(path)
    assert (key, list(inputs), inputs["input"].shape) == ("serving_default", ["input"], (1, 6))
    value = np.linspace(-1, 1, 6).reshape(1, 6)
    (got,) = load(path, threads=1).run({"input": value})
    want = value @ weight.T + bias
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("inputs", "message"), [({"x": (1, 6)}, "the file has"), ({"input": (1, 7)}, "has shape")])
def test_wrong_inputs(model_file: Written, inputs: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(model_file[0], threads=1).run({name: np.zeros(shape, np.float32) for name, shape in inputs.items()})


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\0" * 64, b"\x1c\0\0\0TFL3" + b"\xff" * 100])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tflite").write_bytes(content)
    for read in (linear_ops, weight_bytes, operators, interpreter):
        with pytest.raises(ModelError):
            read(tmp_path / "x.tflite")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        linear_ops(tmp_path / "x.tflite")


def test_truncated_files_never_crash(model_file: Written, tmp_path: Path) -> None:
    """In a process of its own: the failure that this guards against is a crash of the interpreter."""
    script = """
import sys
from pathlib import Path
from edgepack.errors import ModelError
from edgepack.backends.tflite.read import weight_bytes
from edgepack.backends.tflite.read import linear_ops
from edgepack.backends.tflite.runtime import interpreter
content = Path(sys.argv[1]).read_bytes()
target = Path(sys.argv[2])
for size in range(0, len(content) - 1, 37):
    target.write_bytes(content[:size])
    for read in (linear_ops, weight_bytes, interpreter):
        try:
            read(target)
        except ModelError:
            pass
print("survived")
"""
    command = [sys.executable, "-c", script, str(model_file[0]), str(tmp_path / "cut.tflite")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "survived"), done.stderr[-2000:]
