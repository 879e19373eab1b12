"""The table of `edgepack targets calibrate`, to the letter."""

from __future__ import annotations

from typing import Any

from edgepack.report.targets import calibrated_report
from tests.report.shown import text as shown


def layer(fmt: str, scheme: str, rank: int | None, seconds: float, side: int = 512, batch: int = 1) -> dict[str, Any]:
    shape = {"out_features": side, "in_features": 784, "rank": rank, "kernel": None, "batch": batch}
    return {"format": fmt, "scheme": scheme, **shape, "seconds": seconds, "spread_s": seconds / 20, "rounds": 15}


def record(**changes: Any) -> dict[str, Any]:
    layers = [
        layer("onnx", "fp32", None, 44e-6),
        layer("onnx", "fp32", 64, 7.4e-6),
        layer("onnx", "fp32", None, 1e-6, side=10),
        layer("onnx", "int8-dynamic", None, 13.1e-6),
        layer("onnx", "int8-dynamic", 64, 5.8e-6),
        layer("tflite", "fp32", None, 38.2e-6, batch=4),
    ]
    return {
        "target": "host",
        "threads": 1,
        "path": "measured/host/0.json",
        "asked": 6,
        "fingerprint": {
            "cores": ["2x EPYC ? MHz"],
            "runtimes": {"onnx": "onnxruntime 1", "tflite": "ai-edge-litert 2"},
        },
        "calls": {"onnx": {"seconds": 3.7e-6}, "tflite": {"seconds": 6.1e-7}},
        "layers": layers,
        "refused": [{"format": "onnx", "scheme": "int8-dynamic", "reason": "no kernel"}],
        **changes,
    }


def text(found: dict[str, Any]) -> list[str]:
    return [line.strip() for line in shown(calibrated_report(found), 150).splitlines() if line.strip()]


def test_every_scheme_has_a_row_with_the_same_layers_and_the_fastest_are_named() -> None:
    lines = [" ".join(line.split()) for line in text(record())]
    assert lines[0] == "format scheme layers dense, e.g. factors, e.g. spread of the rounds refused"
    assert lines[2:5] == [
        "onnx fp32 3 512x784: 44.0 µs 512x784 rank 64: 7.40 µs 5% to 5% –",
        "onnx int8-dynamic 2 512x784: 13.1 µs 512x784 rank 64: 5.80 µs 5% to 5% 1",
        "tflite fp32 1 512x784, 4 rows: 38.2 µs – 5% to 5% –",
    ]
    assert lines[7:] == [
        "512x784 onnx int8-dynamic 13.1 µs onnx fp32 44.0 µs",
        "512x784, 4 rows tflite fp32 38.2 µs – –",
        "10x784 onnx fp32 1.00 µs – –",
        "host, 1 thread: 2x EPYC ? MHz; onnxruntime 1, ai-edge-litert 2",
        "one call of the runtime, which no figure contains: onnx 3.70 µs, tflite 610 ns",
        "asked for 6 layers, 6 are known; spread: interquartile range / median, median to 90th percentile",
        "kept in measured/host/0.json",
    ]


def test_nothing_measured_is_still_a_report() -> None:
    lines = text(record(layers=[], calls={}, threads=4))
    assert "host, 4 threads: 2x EPYC ? MHz; onnxruntime 1, ai-edge-litert 2" in lines
    assert "one call of the runtime, which no figure contains: –" in lines
