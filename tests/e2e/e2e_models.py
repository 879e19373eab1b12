"""Small models and data that the tests make in a moment: a classifier of clustered points, as ONNX and as a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES, HIDDEN, CLASSES = 64, 96, 8
Weights = dict[str, np.ndarray]

RECIPE = """
import numpy as np, torch
from torch import nn
from edgepack.model.types import Recipe

def points(count, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(8, 64))
    y = rng.integers(0, 8, count)
    return (centres[y] + rng.normal(size=(count, 64))).astype(np.float32), y

def recipe():
    torch.manual_seed(0)
    (x, y), (test_x, test_y) = points(800, 1), points(400, 2)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 8))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    evaluate = lambda predict: (predict(test_x).argmax(1) == test_y).mean(dtype=np.float32) * 100
    return Recipe(model, (torch.zeros(1, 64),), {"x": x, "y": y}, evaluate)
"""


def points(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (count, 64) around 8 centres, and which centre."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    y = rng.integers(0, CLASSES, count)
    return (centres[y] + rng.normal(size=(count, FEATURES))).astype(np.float32), y


def weights() -> Weights:
    """A 64-96-64-8 perceptron: two random layers of nearly low rank, then a least-squares fit to the labels."""
    x, y = points(800, 1)
    rng = np.random.default_rng(3)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    w = {"w1": _thin(rng, HIDDEN, CLASSES) @ centres, "w2": _thin(rng, FEATURES, 16) @ _thin(rng, 16, HIDDEN)}
    w = {name: matrix / 4 + 0.01 * rng.normal(size=matrix.shape) for name, matrix in w.items()}
    w |= {"b1": 0.1 * rng.normal(size=HIDDEN), "b2": 0.1 * rng.normal(size=FEATURES)}
    hidden = np.maximum(np.maximum(x @ w["w1"].T + w["b1"], 0) @ w["w2"].T + w["b2"], 0)
    inputs = np.hstack([hidden, np.ones((len(x), 1))])
    wanted = np.eye(CLASSES)[y]
    fitted = np.linalg.solve(inputs.T @ inputs + 0.1 * np.eye(inputs.shape[1]), inputs.T @ wanted)
    w |= {"w3": fitted[:-1].T, "b3": fitted[-1]}
    return {name: np.asarray(array, np.float32) for name, array in w.items()}


def _thin(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return rng.normal(size=(rows, columns)) / np.sqrt(columns)


def mlp_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"], transB=1, name="fc1"),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu1"),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["h2"], transB=1, name="fc2"),
        helper.make_node("Relu", ["h2"], ["r2"], name="relu2"),
        helper.make_node("Gemm", ["r2", "w3", "b3"], ["scores"], transB=1, name="fc3"),
    ]


def write_onnx(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    *,
    output: str = "scores",
    batch: int | str = 1,
    domains: Sequence[str] = (),
) -> Path:
    """A model with one input `x` (batch, 64)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, FEATURES])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, None])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def mlp(path: Path, edit: Callable[[Weights], object] | None = None) -> Path:
    """The classifier as an ONNX file; `edit` may damage its weights first."""
    made = weights()
    if edit is not None:
        edit(made)
    return write_onnx(path, mlp_nodes(), made)


def samples(path: Path, count: int = 640, seed: int = 4, *, labels: bool = False) -> Path:
    """Calibration points as an .npz."""
    x, y = points(count, seed)
    np.savez(path, x=x, **({"y": y} if labels else {}))
    return path
