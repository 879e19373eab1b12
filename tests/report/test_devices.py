"""Devices side by side, to the letter, and the runs that may not stand there."""

# Tables stand here as they are printed.
# ruff: noqa: E501

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.benchmark.stats import Comparison
from edgepack.report.compare import CompareRow, compare_rows
from edgepack.report.devices import side_by_side
from tests.report.shown import csv_rows, render_csv, render_json, render_markdown, render_text
from tests.report.test_compare import BASE, FP32, INT8, latency

LIKE = {"threads": "1", "schedule": "full", "inputs": "seeded", "tool": "edgepack runner 1", "onnxruntime": "1.31.1"}


def run(reached: str, median: float, like: dict[str, str] | None = None, **changes: Any) -> list[CompareRow]:
    """Three variants on one device."""
    title = "2×Some CPU" if reached == "local" else "Raspberry Pi 4"
    shared: dict[str, Any] = {
        "reached": reached, "device": title, "device_id": reached[:8], "conditions": LIKE | (like or {}), "session": "1",
    } | changes  # fmt: skip
    made = [
        replace(BASE, warm=latency(median), **shared),
        replace(FP32, warm=latency(10 * median), vs_int8=Comparison(0.25, 0.2, 0.3, 0.01, "slower"), **shared),
        replace(INT8, warm=latency(median / 2), **shared),
    ]
    return compare_rows(made)


def test_two_devices_stand_in_a_table_of_their_own() -> None:
    rows = [*run("pi@a", 4e-3), *run("local", 1e-4)]
    assert render_text(rows) == TERMINAL


TERMINAL = """\

 variant                                size     p50     p90    cold  memory misses vs fp32      vs int8
 ────────────────────────────────────────────────────────────────────────────────────────────────────────────
 mnist-mlp, rpi4 on pi@a, onnx
   edgepack                          64.2 kB 4.00 ms 4.40 ms 41.2 µs 1.63 MB    812 12.1× faster 2.00× slower
   dense-fp32                        1.63 MB 40.0 ms 44.0 ms 41.2 µs 1.63 MB 12.3 k –            4.00× slower
   dense-int8                         410 kB 2.00 ms 2.20 ms       –       –    812 12.1× faster –

 mnist-mlp, rpi4 on 2×Some CPU, onnx
   edgepack                          64.2 kB  100 µs  110 µs 41.2 µs 1.63 MB    812 12.1× faster 2.00× slower
   dense-fp32                        1.63 MB 1.00 ms 1.10 ms 41.2 µs 1.63 MB 12.3 k –            4.00× slower
   dense-int8                         410 kB 50.0 µs 55.0 µs       –       –    812 12.1× faster –


mnist-mlp: p50 on each device, and against dense int8 there, 1 thread, full schedule

 format   variant                        pi@a               2×Some CPU
 ─────────────────────────────────────────────────────────────────────
 onnx     edgepack     4.00 ms (2.00× slower)    100 µs (2.00× slower)
 onnx     dense-fp32   40.0 ms (4.00× slower)   1.00 ms (4.00× slower)
 onnx     dense-int8                  2.00 ms                  50.0 µs

"""


def test_markdown_csv_and_json_hold_the_same_table() -> None:
    rows = [*run("pi@a", 4e-3), *run("local", 1e-4)]
    assert render_markdown(rows).split("\n\n", 1)[1] == MARKDOWN
    lines = csv_rows(render_csv(rows), "devices")
    assert [(line["variant"], line["device"], line["latency_p50_s"]) for line in lines[:3]] == [
        ("edgepack", "pi@a", "0.004"), ("edgepack", "2×Some CPU", "0.0001"), ("dense-fp32", "pi@a", "0.04"),
    ]  # fmt: skip
    assert (lines[0]["vs_int8_speedup"], lines[0]["vs_int8_verdict"]) == ("0.5", "slower")
    assert lines[-1]["vs_int8_speedup"] == ""
    (table,) = json.loads(render_json(rows))["devices"]["tables"]
    assert table["devices"] == ["pi@a", "2×Some CPU"]
    assert table["conditions"] == {"onnx": LIKE}
    assert table["lines"][0]["figures"][1]["latency_p50_s"] == 1e-4


MARKDOWN = """\
mnist-mlp: p50 on each device, and against dense int8 there, 1 thread, full schedule

| format | variant | pi@a | 2×Some CPU |
| --- | --- | ---: | ---: |
| onnx | edgepack | 4.00 ms (2.00× slower) | 100 µs (2.00× slower) |
| onnx | dense-fp32 | 40.0 ms (4.00× slower) | 1.00 ms (4.00× slower) |
| onnx | dense-int8 | 2.00 ms | 50.0 µs |
"""


def test_unlike_runs_stay_apart_and_the_line_says_in_what() -> None:
    other = {"threads": "4", "onnxruntime": "1.30.0"}
    rows = [*run("pi@a", 4e-3), *run("pi@b", 3e-3, other)]
    found = side_by_side(rows)
    assert found.tables == ()
    line = "not beside each other: pi@a and pi@b differ in threads (1, 4) and onnxruntime (1.31.1, 1.30.0)"
    assert found.apart == (line,)
    assert render_text(rows).endswith(f"\n{line}\n")
    assert render_markdown(rows).endswith(f"\n- {line}\n")
    assert csv_rows(render_csv(rows), "not beside each other") == [
        {"kind": "not beside each other", "not_beside_each_other": line}
    ]
    assert json.loads(render_json(rows))["devices"]["apart"] == [line]


def test_every_run_stands_with_its_like() -> None:
    quick = {"schedule": "quick"}
    rows = [*run("pi@a", 4e-3), *run("pi@b", 3e-3, quick), *run("pi@c", 2e-3), *run("pi@d", 1e-3, quick)]
    found = side_by_side(rows)
    assert [table.devices for table in found.tables] == [("pi@a", "pi@c"), ("pi@b", "pi@d")]
    assert found.apart == ("not beside each other: pi@a and pi@b differ in schedule (full, quick)",)


def test_a_second_run_of_a_device_is_neither_mixed_nor_shown_twice() -> None:
    rows = [
        *run("pi@a", 4e-3),
        *run("pi@b", 3e-3),
        *run("pi@a", 9e-3, session="2"),
        *run("pi@a", 1.0, {"threads": "4"}),
    ]
    found = side_by_side(rows)
    (table,) = found.tables
    assert table.devices == ("pi@a", "pi@b")
    figure = table.lines[0].figures[0]
    assert figure is not None
    assert figure.latency_p50_s == 9e-3  # the later one
    assert found.apart == ("not beside each other: pi@b and pi@a differ in threads (1, 4)",)


def test_formats_on_the_same_devices_share_a_table_and_others_have_their_own() -> None:
    lite = {"onnxruntime": "none", "ai-edge-litert": "2.3.0"}
    both = [row for name in ("pi@a", "pi@b") for row in (*run(name, 1e-3), *run(name, 2e-3, lite, format="tflite"))]
    (table,) = side_by_side(both).tables
    assert [line.format for line in table.lines] == ["onnx"] * 3 + ["tflite"] * 3
    more = [*both, *run("pi@c", 1e-3), *run("pi@c", 1e-3, lite | {"tool": "benchmark_model 2"}, format="tflite")]
    found = side_by_side(more)
    assert [table.devices for table in found.tables] == [("pi@a", "pi@b", "pi@c"), ("pi@a", "pi@b")]
    line = "pi@a and pi@c differ in tool (edgepack runner 1, benchmark_model 2) (mnist-mlp, tflite)"
    assert found.apart == (f"not beside each other: {line}",)


def test_a_variant_that_a_device_lacks_is_a_dash() -> None:
    assert "| onnx | dense-int8 | 2.00 ms | – |" in render_markdown([*run("pi@a", 4e-3), *run("pi@b", 1e-4)[:2]])


def test_one_device_has_no_such_table() -> None:
    rows = [*run("pi@a", 4e-3), *run("pi@a", 3e-3, {"threads": "4"})]
    assert side_by_side(rows).tables == side_by_side(rows).apart == ()
    assert "on pi@a" not in render_text(rows)


def test_other_models_are_no_runs_of_this_one() -> None:
    assert side_by_side([*run("pi@a", 1.0), *run("pi@b", 1.0, model="other")]).tables == ()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"cluster": "cortex-a55"}, ("pi@a cortex-a76", "pi@a cortex-a55")),
        ({"device_id": "ffff"}, ("pi@a cortex-a76 pi@a", "pi@a cortex-a76 ffff")),
    ],
)
def test_names_say_no_more_than_they_must(changes: dict[str, Any], names: tuple[str, str]) -> None:
    rows = [*run("pi@a", 1.0, cluster="cortex-a76"), *run("pi@a", 2.0, **{"cluster": "cortex-a76"} | changes)]
    assert side_by_side(rows).tables[0].devices == names


def test_a_devices_name_cannot_break_out_of_its_cell() -> None:
    text = render_markdown([*run("a|b", 1.0), *run("[x](y)", 1.0)])
    assert r"| format | variant | a\|b | \[x\](y) |" in text
    assert "[x](y)" in render_text([*run("a|b", 1.0), *run("[x](y)", 1.0)])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.sampled_from("xy")), max_size=8))
def test_no_table_ever_mixes_conditions(sessions: list[tuple[str, str, str]]) -> None:
    rows = [
        row
        for number, (device, threads, tool) in enumerate(sessions)
        for row in run(device, 1.0 + number, {"threads": threads, "tool": tool}, session=str(number))[:1]
    ]
    medians = {row.latency_p50_s: row.conditions for row in rows}
    found = side_by_side(rows)
    for table in found.tables:
        for line in table.lines:
            shown = [medians[figure.latency_p50_s] for figure in line.figures if figure is not None]
            assert len(shown) == len(table.devices) >= 2
            assert all(one == table.conditions["onnx"] for one in shown)
    kinds = {(threads, tool) for _, threads, tool in sessions}
    if len({device for device, _, _ in sessions}) > 1:
        assert len(found.apart) <= len(kinds) - 1
        assert bool(found.apart) == (len(kinds) > 1)
