"""One block of attention whose queries, keys and values look at the same few directions of their input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack.model.types import Array

WIDTH, TOKENS, DIRECTIONS, LABELS = 192, 8, 40, 6
LAYERS = ("q_proj", "k_proj", "v_proj")


def arrays(seed: int = 0) -> dict[str, Array]:
    """Weights (in, out) and biases: those of `LAYERS` look at the same directions, but for noise."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(WIDTH, DIRECTIONS)) / WIDTH**0.5
    found = {}
    for name in LAYERS:
        own = common @ rng.normal(size=(DIRECTIONS, WIDTH)) / DIRECTIONS**0.5
        found[name] = own + 0.03 * rng.normal(size=own.shape) / WIDTH**0.5
        found[f"{name}.bias"] = 0.1 * rng.normal(size=WIDTH)
    found["scores"] = rng.normal(size=(WIDTH, LABELS)) / WIDTH**0.5
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


def write_attention(folder: Path, seed: int = 0) -> Path:
    """Tokens (1, TOKENS, WIDTH) → scores (1, LABELS), with unlabelled data in `data.npz` beside it."""
    constants = {**arrays(seed), "scale": np.float32(WIDTH**-0.5)}
    nodes = []
    for name in LAYERS:
        nodes.append(helper.make_node("MatMul", ["x", name], [f"{name}.y"], name=f"{name}.product"))
        nodes.append(helper.make_node("Add", [f"{name}.y", f"{name}.bias"], [f"{name}.out"]))
    nodes += [
        helper.make_node("Transpose", ["k_proj.out"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q_proj.out", "turned"], ["alike"]),
        helper.make_node("Mul", ["alike", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v_proj.out"], ["mixed"]),
        helper.make_node("ReduceMean", ["mixed"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "scores"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, TOKENS, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, LABELS])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = folder / "attention.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    x = np.random.default_rng(seed + 1).normal(size=(400, TOKENS, WIDTH)).astype(np.float32)
    np.savez(folder / "data.npz", x=x)
    return path
