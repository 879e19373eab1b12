"""Tiny real models for the bench and runner tests, made once per test session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

# In a process of its own: litert_torch prints to stdout, and its import warns and takes seconds.
_MAKE_TFLITE = """
import sys, torch, litert_torch
from litert_quantizer import quantizer, recipe
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10)).eval()
litert_torch.convert(model, (torch.zeros(1, 64),)).export(sys.argv[1] + "/fp32.tflite")
quantize = quantizer.Quantizer(sys.argv[1] + "/fp32.tflite", recipe.dynamic_wi8_afp32())
quantize.quantize().export_model(sys.argv[1] + "/int8.tflite")
"""


def write_mlp(path: Path, sizes: list[int], *, batch: int | str = 1, seed: int = 0) -> Path:
    """An ONNX MLP of Gemm nodes; input `x` (batch, sizes[0]), output `y`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for index, (rows, columns) in enumerate(zip(sizes[1:], sizes[:-1], strict=True)):
        out = "y" if index == len(sizes) - 2 else f"h{index}"
        weight = (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)
        weights += [
            numpy_helper.from_array(weight, f"w{index}"),
            numpy_helper.from_array(np.ones(rows, np.float32), f"b{index}"),
        ]
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [out], transB=1))
        last = out
    puts = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, s]) for n, s in (("x", sizes[0]), ("y", sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "mlp", puts[:1], puts[1:], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def write_tflite(folder: Path) -> None:
    """`fp32.tflite` and `int8.tflite`, (1, 64) → (1, 10), into a folder."""
    done = subprocess.run([sys.executable, "-c", _MAKE_TFLITE, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cannot make the TFLite models: {done.stderr[-2000:]}")
