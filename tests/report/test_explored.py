"""The plans of --explore, to the letter."""

# The tables are wider than a line of code on purpose.
# ruff: noqa: E501

from __future__ import annotations

import json

from edgepack.metrics.drop import Drop
from edgepack.pipeline.explore import ExploredRow
from edgepack.report.build import explored_report
from edgepack.report.render.json import render
from tests.report.shown import text


def drop(value: float, error: float = 0.1) -> Drop:
    return Drop("accuracy", 98.5, 98.5 - value, value, value + 1.645 * error, error, 800)


ROWS = (
    ExploredRow(1, False, "onnx", "fp32", (0, 2), {}, 1.0, 1_628_811, 4.7e-4, "emulated cost table", drop(0.0, 0.0)),
    ExploredRow(2, True, "onnx", "mixed", (1, 2), {"fc1": 32}, 0.1034, 51_200, 1.39e-5, "emulated cost table", drop(0.25)),
    ExploredRow(3, True, "tflite", "int8-dynamic-range", (2, 2), {"fc1": 8, "fc2": 64}, 0.05, 72_392, 9.79e-6, "roofline, nominal constants", drop(-0.001)),
)  # fmt: skip


def test_rows() -> None:
    assert text(explored_report(ROWS)) == EXPLORED


EXPLORED = """\
 plan       format   scheme               factored   rank   weights      size   latency   drop   at most
 ───────────────────────────────────────────────────────────────────────────────────────────────────────
    1       onnx     fp32                   0 of 2   –       100.0%   1.63 MB    470 µs   0.00      0.00
    2   *   onnx     mixed                  1 of 2   32       10.3%   51.2 kB   13.9 µs   0.25      0.41
    3   *   tflite   int8-dynamic-range     2 of 2   8–64      5.0%   72.4 kB   9.79 µs   0.00      0.16

* on the Pareto front: no other plan of its format is as good in drop, latency and size, and better in one.
drop: of accuracy on 800 validation samples; at most: with 90% confidence, one-sided.
latency: linear layers of onnx, predicted by the emulated cost table.
latency: linear layers of tflite, predicted by the roofline, nominal constants.
Build one with --pick NUMBER, or one per format with --pick NUMBER,NUMBER, and the same other options."""


def test_warnings_stand_on_top() -> None:
    shown = text(explored_report(ROWS, ["the time ran out [x]", "second"])).splitlines()
    assert shown[:2] == ["warning: the time ran out [x]", "warning: second"]


def test_json_has_the_drop_itself() -> None:
    rows = json.loads(render(explored_report(ROWS)))["plans"]
    assert [row["number"] for row in rows] == [1, 2, 3]
    assert rows[1] == {
        "number": 2,
        "on_front": True,
        "format": "onnx",
        "scheme": "mixed",
        "factored": [1, 2],
        "ranks": {"fc1": 32},
        "weights_share": 0.1034,
        "size_bytes": 51_200,
        "latency_s": 1.39e-5,
        "source": "emulated cost table",
        "drop": {
            "metric": "accuracy",
            "dense": 98.5,
            "emitted": 98.25,
            "value": 0.25,
            "bound": 0.25 + 1.645 * 0.1,
            "standard_error": 0.1,
            "samples": 800,
            "confidence": 0.9,
            "output": 0,
            "score": None,
        },
    }
