"""A classifier of clustered points and its data, made in a moment, and the options to build it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.options import BuildOptions
from edgepack.targets.file import get_target
from edgepack.workspace import Cache, Workspace

FEATURES, HIDDEN, CLASSES = 256, 320, 8


def points(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (count, FEATURES) around 8 centres, and which centre."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    y = rng.integers(0, CLASSES, count)
    return (0.25 * centres[y] + rng.normal(size=(count, FEATURES))).astype(np.float32), y


def write_classifier(folder: Path) -> Path:
    """256-320-320-8: two random layers whose weights decay slowly, then a least-squares fit. Labelled data in
    `data.npz` beside it."""
    rng = np.random.default_rng(3)

    def decaying(rows: int, columns: int) -> np.ndarray:
        u, _, vt = np.linalg.svd(rng.normal(size=(rows, columns)), full_matrices=False)
        return 3 * (u * np.geomspace(1, 0.05, len(vt))) @ vt

    x, y = points(1200, 1)
    w1, w2 = decaying(HIDDEN, FEATURES), decaying(HIDDEN, HIDDEN)
    hidden = np.maximum(np.maximum(x @ w1.T, 0) @ w2.T, 0)
    inputs = np.hstack([hidden, np.ones((len(x), 1))])
    fitted = np.linalg.lstsq(inputs, np.eye(CLASSES)[y], rcond=None)[0]
    constants = {"w1": w1, "b1": np.zeros(HIDDEN), "w2": w2, "w3": fitted[:-1].T, "b3": fitted[-1]}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"], transB=1),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2"], ["h2"], transB=1),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("Gemm", ["r2", "w3", "b3"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()],
    )
    path = folder / "points.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    np.savez(folder / "data.npz", x=x, y=y)
    return path


def options(model: Path, target: str = "rpi4", **changes: Any) -> BuildOptions:
    """A build of the classifier to ONNX."""
    asked: dict[str, Any] = {"data": model.parent / "data.npz", "formats": ("onnx",), **changes}
    return BuildOptions(str(model), get_target(target), **asked)


def working_in(folder: Path, evaluator: Evaluator, *, cache: Cache | None = None, **changes: Any) -> Evaluator:
    """The evaluator with a temporary folder of its own, which nobody was warned in, and perhaps another cache."""
    old = evaluator.workspace
    return replace(evaluator, workspace=Workspace(cache or old.cache, folder, old.seed, old.workers), **changes)
