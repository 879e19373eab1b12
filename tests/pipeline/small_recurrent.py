"""A recurrent classifier of short sequences and its data, made in a moment: nothing is trained but its last layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper

from tests.pipeline import fitted

FEATURES, STEPS, UNITS, CLASSES = 96, 8, 48, 6
GATES = {"LSTM": 4, "GRU": 3}


def sequences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy sequences (count, 8, 96), and which of 6 smooth patterns each of them follows."""
    rng = np.random.default_rng(seed)
    few = np.random.default_rng(77).normal(size=(CLASSES, STEPS, 4))
    patterns = few @ np.random.default_rng(78).normal(size=(4, FEATURES)) / 2
    y = rng.integers(0, CLASSES, count)
    return (patterns[y] + 1.5 * rng.normal(size=(count, STEPS, FEATURES))).astype(np.float32), y


def write_recurrent(folder: Path, operator: str, **attributes: int) -> Path:
    """LSTM or GRU over the steps, then a least-squares fit to its last state. Labelled data in `data.npz` beside it."""
    rng, rows = np.random.default_rng(5), GATES[operator] * UNITS
    u, _, vt = np.linalg.svd(rng.normal(size=(rows, FEATURES)), full_matrices=False)
    constants = {
        "W": (1.5 * (u * np.geomspace(1, 0.01, len(vt))) @ vt)[None],
        "R": rng.normal(size=(1, rows, UNITS)) / 12,
        "B": rng.normal(size=(1, 2 * rows)) / 10,
        "axes": np.array([0]),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], name="steps", perm=[1, 0, 2]),
        helper.make_node(
            operator, ["steps", "W", "R", "B"], ["", "last"], name="cells", hidden_size=UNITS, **attributes
        ),
        helper.make_node("Squeeze", ["last", "axes"], [fitted.FEATURES], name="squeeze"),
    ]
    path = folder / f"{operator.lower()}.onnx"
    fitted.write_fitted(path, nodes, constants, sequences(1200, 1), width=UNITS, ridge=0.1)
    x, y = sequences(1600, 2)
    np.savez(folder / "data.npz", x=x, y=y)
    return path
