"""An ONNX model of images whose batch is open: the TFLite file's can be resized, and takes channels last if asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.e2e_cli import run

BATCH = 3


def images(path: Path) -> Path:
    """(N, 3, 12, 8) → (N, 5)."""
    rng = np.random.default_rng(0)
    shapes = {"k": (16, 3, 3, 3), "kb": (16,), "w": (16, 5), "wb": (5,)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "k", "kb"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "wb"], ["scores"]),
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 12, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.mark.parametrize("last", [False, True])
def test_a_pack_of_images(tmp_path: Path, last: bool) -> None:
    source, pack = images(tmp_path / "m.onnx"), tmp_path / "pack"
    options = ("--target", "rpi4", "--precision", "fp32", "--out", pack, *(["--channels-last"] if last else []))
    done = run("build", source, *options)
    assert done.code == 0, done.err
    interpreter = Interpreter(model_path=str(pack / "model.tflite"))
    (detail,) = interpreter.get_input_details()
    assert list(detail["shape_signature"]) == ([-1, 12, 8, 3] if last else [-1, 3, 12, 8])
    batch = np.random.default_rng(1).standard_normal((BATCH, 3, 12, 8)).astype(np.float32)
    (want,) = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"]).run(None, {"image": batch})
    given = np.ascontiguousarray(np.moveaxis(batch, 1, 3)) if last else batch
    interpreter.resize_tensor_input(detail["index"], given.shape, strict=True)
    answers = interpreter.get_signature_runner()(image=given)
    np.testing.assert_allclose(answers["scores"], want, rtol=1e-4, atol=1e-4)
    entry = json.loads((pack / "manifest.json").read_text())["files"]["model.tflite"]
    assert entry.get("channels_last") == (["image"] if last else None)
    assert ("model.tflite takes image as (N, H, W, C)" in (pack / "README.md").read_text()) == last
    assert (pack / "example_inputs.tflite.npz").exists() == last
    ran = subprocess.run([sys.executable, str(pack / "run.py")], capture_output=True, text=True, check=True)
    assert ran.stdout.count("gives") == 2
    if last:
        done = run("bench", pack, "--target", "host", "--quick", "--no-cold", "--json")
        assert done.code == 0, done.err
