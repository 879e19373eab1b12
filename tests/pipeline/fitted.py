"""Completes small models whose last layer alone is trained: a least-squares fit to what the rest of them gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.session import session

FEATURES = "features"
"""What the nodes of such a model end in: (N, width)."""


def write_fitted(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    examples: tuple[np.ndarray, np.ndarray],
    *,
    width: int,
    ridge: float,
) -> None:
    """Nodes from `x` to `features`, and a Gemm behind them that tells the classes.

    Args:
        constants: by name; whole numbers are int64, all others float32.
        examples: inputs (N, …) and classes (N,).
        width: of the features.
        ridge: the weight of the penalty.
    """
    x, y = examples
    classes = int(y.max()) + 1
    _save(path, nodes, constants, x.shape[1:], (FEATURES, width))
    features = session(path).run(None, {"x": x})[0]
    inputs = np.hstack([features, np.ones((len(x), 1))])
    penalized = inputs.T @ inputs + ridge * np.eye(inputs.shape[1])
    fitted = np.linalg.solve(penalized, inputs.T @ np.eye(classes)[y])
    head = helper.make_node("Gemm", [FEATURES, "head", "bias"], ["scores"], name="gemm", transB=1)
    _save(
        path,
        [*nodes, head],
        {**constants, "head": fitted[:-1].T, "bias": fitted[-1]},
        x.shape[1:],
        ("scores", classes),
    )


def _save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    shape: Sequence[int],
    output: tuple[str, int],
) -> None:
    kinds = {name: np.int64 if array.dtype.kind == "i" else np.float32 for name, array in constants.items()}
    name, width = output
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(np.asarray(array, kinds[key]), key) for key, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
