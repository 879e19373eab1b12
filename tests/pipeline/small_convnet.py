"""A convolutional classifier of small images and its data, made in a moment: nothing is trained but its last layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.session import session

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
    x, y = images(1200, 1)
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
    nodes.append(helper.make_node("Flatten", ["r3"], ["features"], name="flatten"))
    path = folder / "convnet.onnx"
    _save(path, nodes, constants, "features", WIDTHS[2] * (SIDE // 2) ** 2)
    features = session(path).run(None, {"x": x})[0]
    inputs = np.hstack([features, np.ones((len(x), 1))])
    ridge = inputs.T @ inputs + 10 * np.eye(inputs.shape[1])
    fitted = np.linalg.solve(ridge, inputs.T @ np.eye(CLASSES)[y])
    constants |= {"head": fitted[:-1].T, "bias": fitted[-1]}
    nodes.append(helper.make_node("Gemm", ["features", "head", "bias"], ["scores"], name="gemm", transB=1))
    _save(path, nodes, constants, "scores", CLASSES)
    x, y = images(1600, 2)
    np.savez(folder / "data.npz", x=x, y=y)
    return path


def _save(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], output: str, width: int) -> None:
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
