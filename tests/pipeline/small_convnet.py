"""A convolutional classifier of small images and its data, made in a moment: nothing is trained but its last layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper

from tests.pipeline.fitted import FEATURES, write_fitted

CHANNELS, SIDE, CLASSES = 3, 12, 8
WIDTHS = (24, 48, 64)


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images (count, 3, 12, 12), and which of 8 smooth patterns each of them shows."""
    rng = np.random.default_rng(seed)
    small = np.random.default_rng(98).normal(size=(CLASSES, CHANNELS, SIDE // 3, SIDE // 3))
    patterns = np.kron(small, np.ones((3, 3)))
    y = rng.integers(0, CLASSES, count)
    return (patterns[y] + 2.5 * rng.normal(size=(count, CHANNELS, SIDE, SIDE))).astype(np.float32), y


def decaying(outputs: int, inputs: int, seed: int) -> np.ndarray:
    """A kernel (outputs, inputs, 3, 3) whose singular values as a matrix fall to a hundredth."""
    u, _, vt = np.linalg.svd(np.random.default_rng(seed).normal(size=(outputs, inputs * 9)), full_matrices=False)
    return (2 * (u * np.geomspace(1, 0.01, len(vt))) @ vt).reshape(outputs, inputs, 3, 3)


def write_convnet(folder: Path) -> Path:
    """Three convolutions of 3×3, the second with strides, then a least-squares fit to what they give. Labelled data in
    `data.npz` beside it."""
    constants = {"k1": decaying(WIDTHS[0], CHANNELS, 1), "b1": np.linspace(-0.1, 0.1, WIDTHS[0])}
    for number, (given, taken) in enumerate(zip(WIDTHS[1:], WIDTHS, strict=False), start=2):
        constants[f"k{number}"] = decaying(given, taken, number)
        constants[f"b{number}"] = np.linspace(-0.1, 0.1, given)
    nodes = []
    for number in (1, 2, 3):
        before, pads = "x" if number == 1 else f"r{number - 1}", [1, 1, 1, 1]
        steps = [2, 2] if number == 2 else [1, 1]
        inputs = [before, f"k{number}", f"b{number}"]
        name = f"conv{number}"
        nodes.append(helper.make_node("Conv", inputs, [f"c{number}"], name=name, pads=pads, strides=steps))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], name=f"relu{number}"))
    nodes.append(helper.make_node("Flatten", ["r3"], [FEATURES], name="flatten"))
    path = folder / "convnet.onnx"
    write_fitted(path, nodes, constants, images(1200, 1), width=WIDTHS[2] * (SIDE // 2) ** 2, ridge=10)
    x, y = images(1600, 2)
    np.savez(folder / "data.npz", x=x, y=y)
    return path
