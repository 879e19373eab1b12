"""Files in exact integer arithmetic on CPUs whose own saturates: the runtime needs constants that are used once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgepack.backends.onnx.file import save
from edgepack.backends.runtime import load
from edgepack.metrics.values import sqnr_db
from tests.backends.onnx.onnx_layers import info, model, node, normal


def test_a_decoded_constant_with_several_uses(tmp_path: Path) -> None:
    """As ONNX Runtime's quantizer writes constants: decoded once, for all operators that use them."""
    steps = [
        node("DequantizeLinear", ["q", "scale", "zero"], ["w"]),
        node("Mul", ["x", "w"], ["m"]),
        node("QuantizeLinear", ["m", "scale", "zero"], ["r"]),
        node("DequantizeLinear", ["r", "scale", "zero"], ["s"]),
        node("Mul", ["s", "w"], ["y"]),
    ]
    codes = np.arange(-4, 4, dtype=np.int8) * 30
    constants = {"q": codes, "zero": np.array(3, np.int8), "scale": np.array(0.02, np.float32)}
    path = tmp_path / "qdq.onnx"
    save(model(steps, [info("x", ["N", 8])], [info("y", ["N", 8])], constants), path)
    x = normal(5, 8)
    weight = (codes.astype(np.float32) - 3) * np.float32(0.02)
    middle = (np.clip(np.round(x * weight / np.float32(0.02)) + 3, -128, 127) - 3) * np.float32(0.02)
    np.testing.assert_allclose(load(path, "onnx", exact=True).run({"x": x})[0], middle * weight, atol=1e-5)


def test_scales_per_channel_without_zero_points(tmp_path: Path) -> None:
    """As exporters write weights that are symmetric: a codes' constant, a scale per channel, and no third input."""
    codes = np.arange(-12, 12, dtype=np.int8).reshape(8, 3) * 10
    constants = {"q": codes, "scale": np.array([0.01, 0.02, 0.03], np.float32)}
    steps = [node("DequantizeLinear", ["q", "scale"], ["w"], axis=1), node("MatMul", ["x", "w"], ["y"])]
    path = tmp_path / "symmetric.onnx"
    save(model(steps, [info("x", ["N", 8])], [info("y", ["N", 3])], constants), path)
    x = normal(5, 8)
    assert sqnr_db(load(path, "onnx", exact=True).run({"x": x})[0], x @ (codes * constants["scale"])) > 30
