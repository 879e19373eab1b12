"""Rows and tables of emulated sessions, to the letter."""

# Tables stand here as they are printed.
# ruff: noqa: E501

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.benchmark.results import EmulatedResult, EmulatedVariant, Emulation, LayerCounts
from edgepack.emulator.counts import Counts
from edgepack.pack.facts import facts_of
from edgepack.report.emulated import RUNTIME, CountRatio, EmulatedRow, emulated_rows
from edgepack.targets.target import Bandwidth, Cache, Cluster, Ipc, Target
from edgepack.units import agreement, fewer, misses, signed, span
from tests.report.shown import csv_rows, render_csv, render_json, render_markdown, render_text
from tests.report.test_compare import PACK
from tests.report.test_compare import rows as measured_rows

K, M = 1 << 10, 1 << 20
BOARD = Target(
    "board", "A board", "aarch64", ("neon",),
    (
        Cluster(
            "main", "cortex-a72", 4, 1000, ipc=Ipc(1.0, 2.0), L1d=Cache(32 * K, "core", 2), L1i=Cache(48 * K, "core", 3),
            L2=Cache(M, "all", 16), read=Bandwidth(4.0, 5.0),
        ),
    ),
    M,
)  # fmt: skip
CACHES = ("l1i=49152:3:64", "l1d=32768:2:64", "l2=1048576:16:64:shared")
EMULATION = Emulation(CACHES, "cortex-a72", "qemu-aarch64 version 7.2.22 (Debian 1:7.2)", {"onnxruntime": "1.31.1"}, ())


def counts(instructions: float, l1d: float, l2: float) -> Counts:
    return Counts(instructions, instructions / 2, instructions * 4, {"L1i": 20.0, "L1d": l1d, "L2": l2})


def variant(name: str, size_bytes: int, *rounds: Counts, layers: tuple[LayerCounts, ...] = (), db: float | None = None) -> EmulatedVariant:  # fmt: skip
    return EmulatedVariant(name, "onnx", f"{name}.onnx", size_bytes, "ab" * 32, rounds, layers, None, db)


PACKED = variant(
    "edgepack", 59_179,
    counts(100_000, 1200, -0.25), counts(100_010, 1201, 0.5), counts(99_900, 1200, 0.0),
    layers=(
        LayerCounts("0.weight", True, counts(80_000, 1000, 0.0)),
        LayerCounts("between 0.weight and 2.weight", False, counts(900, 90, -3.0)),
        LayerCounts("2.weight", True, counts(9_000, 100, 0.4)),
    ),
    db=84.2,
)  # fmt: skip
FP32 = variant("dense-fp32", 1_628_811, counts(500_000, 70_000, 66_000), counts(500_000, 70_000, 66_330), db=200.0)
INT8 = variant(
    "dense-int8", 413_157, counts(401_000, 15_000, 14_200),
    layers=(
        LayerCounts("0.weight", True, counts(391_000, 14_000, 13_000)),
        LayerCounts("2.weight", True, counts(9_000, 100, 0.4)),
        LayerCounts("after 2.weight", False, counts(500, 10, 0.0)),
    ),
)  # fmt: skip
RESULT = EmulatedResult("2026", "0.1", "mlp", "board", 1, "seeded", EMULATION, (PACKED, FP32, INT8))
LAYERS = [{"layer": "0.weight", "rank": 32}, {"layer": "2.weight", "rank": None}]
MANIFEST: dict[str, Any] = {
    "metric": {"name": "accuracy"},
    "files": {
        "model.onnx": {"scheme": "int8-static-qdq", "metric": 97.0, "layers": LAYERS},
        "baseline/fp32.onnx": {"scheme": "fp32", "metric": 97.1},
    },
}


def rows(result: EmulatedResult = RESULT, target: Target | str = BOARD) -> list[EmulatedRow]:
    return emulated_rows(result, facts_of(MANIFEST, PACK), target)


ASSUMED = "; ".join(rows()[0].assumptions)
NOTES = (
    "emulated, not measured: counts of one inference by onnxruntime 1.31.1 under qemu-aarch64 version 7.2.22 -cpu cortex-a72",
    "modelled caches: L1i 48K 3-way, L1d 32K 2-way, L2 1M 16-way shared; LRU, no prefetcher, virtual addresses",
    f"time bound: arithmetic on the counts, no measurement; {ASSUMED}",
    "between rounds instructions differ by at most 0.10%, L2 misses (where over 100) by at most 0.25%",
)


def test_a_row_joins_counts_with_what_the_manifest_says() -> None:
    packed, fp32, int8 = rows()
    assert (packed.instructions, packed.l1d_misses, packed.last_level_misses) == (100_000, 1200, 0.0)
    assert (packed.l1i_misses, packed.accesses) == (20, 50_000)
    assert (packed.scheme, packed.metric, packed.metric_name) == ("int8-static-qdq", 97.0, "accuracy")
    assert packed.drop == pytest.approx(0.1)
    assert (int8.scheme, int8.metric, int8.drop) == (None, None, None)
    assert packed.spread_instructions == pytest.approx(0.001)
    assert packed.spread_misses == 0.5, "of one miss, where the median is less"
    assert (fp32.last_level_misses, fp32.memory_bytes) == (66_165, 66_165 * 64)
    assert fp32.spread_misses == pytest.approx(165 / 66_165)
    assert packed.vs_fp32 == CountRatio(5.0, None), "no misses to divide by"
    assert int8.vs_fp32 == CountRatio(pytest.approx(500 / 401), pytest.approx(66_165 / 14_200))
    assert (fp32.vs_fp32, int8.vs_int8) == (None, None)


def test_the_bound_is_the_formulas() -> None:
    packed, fp32, _ = rows()
    assert (packed.time_low_s, packed.time_high_s) == (pytest.approx(50e-6), pytest.approx(100e-6))
    assert fp32.time_low_s == pytest.approx(max(500_000 / 2e9, 66_165 * 64 / 5e9))
    assert fp32.time_high_s == pytest.approx(500_000 / 1e9 + 66_165 * 64 / 4e9)
    assert packed.time_unknown is None


def test_the_remainder_is_the_whole_less_its_parts() -> None:
    packed, fp32, int8 = rows()
    assert [part.name for part in packed.parts] == ["0.weight", "between 0.weight and 2.weight", "2.weight", RUNTIME]
    assert [part.rank for part in packed.parts] == [32, None, None, None]
    assert [part.layer for part in packed.parts] == [True, False, True, False]
    for row in (packed, int8):
        assert sum(part.instructions for part in row.parts) == row.instructions
        assert sum(part.l1d_misses for part in row.parts) == row.l1d_misses
        assert sum(part.share for part in row.parts) == pytest.approx(1)
    assert packed.parts[0].share == 0.8
    assert fp32.parts == ()


def test_terminal() -> None:
    assert render_text([], 400, rows()) == TERMINAL


TERMINAL = f"""\

 variant             size instr. L1d misses L2 misses  time bound agrees vs fp32            vs int8
 ────────────────────────────────────────────────────────────────────────────────────────────────────────────
 mlp, board, onnx
   edgepack       59.2 kB  100 k     1.20 k         0   50–100 µs  84 dB 5.0× fewer instr.  4.0× fewer instr.
   dense-fp32     1.63 MB  500 k     70.0 k    66.2 k 0.85–1.6 ms  exact –                  1.25× more instr.
   dense-int8      413 kB  401 k     15.0 k    14.2 k  200–628 µs      – 1.25× fewer instr. –

{NOTES[0]}
{NOTES[1]}
{NOTES[2]}
{NOTES[3]}

layers of mlp, board, onnx: edgepack

 layer                            rank    share   instr.   dense int8   L1d misses   dense int8   L2 misses   dense int8
 ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 0.weight                           32    80.0%   80.0 k        391 k       1.00 k       14.0 k           0       13.0 k
 between 0.weight and 2.weight             0.9%      900            –           90            –           0            –
 2.weight                        dense     9.0%   9.00 k       9.00 k          100          100           0            0
 after 2.weight                               –        –          500            –           10           –            0
 runtime                                  10.1%   10.1 k          500           10          890           3       1.20 k
 whole                                   100.0%    100 k        401 k       1.20 k       15.0 k           0       14.2 k

"""


def test_markdown_escapes_and_has_both_tables() -> None:
    text = render_markdown([], rows(replace(RESULT, model="a|b")))
    assert text == MARKDOWN


MARKDOWN = rf"""| model | target | format | variant | size | instr. | L1d misses | L2 misses | time bound | agrees | vs fp32 | vs int8 |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |
| a\|b | board | onnx | edgepack | 59.2 kB | 100 k | 1.20 k | 0 | 50–100 µs | 84 dB | 5.0× fewer instr. | 4.0× fewer instr. |
| a\|b | board | onnx | dense-fp32 | 1.63 MB | 500 k | 70.0 k | 66.2 k | 0.85–1.6 ms | exact | – | 1.25× more instr. |
| a\|b | board | onnx | dense-int8 | 413 kB | 401 k | 15.0 k | 14.2 k | 200–628 µs | – | 1.25× fewer instr. | – |

- {NOTES[0]}
- {NOTES[1]}
- {NOTES[2]}
- {NOTES[3]}

layers of a\|b, board, onnx: edgepack

| layer | rank | share | instr. | dense int8 | L1d misses | dense int8 | L2 misses | dense int8 |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 0.weight | 32 | 80.0% | 80.0 k | 391 k | 1.00 k | 14.0 k | 0 | 13.0 k |
| between 0.weight and 2.weight |  | 0.9% | 900 | – | 90 | – | 0 | – |
| 2.weight | dense | 9.0% | 9.00 k | 9.00 k | 100 | 100 | 0 | 0 |
| after 2.weight |  | – | – | 500 | – | 10 | – | 0 |
| runtime |  | 10.1% | 10.1 k | 500 | 10 | 890 | 3 | 1.20 k |
| whole |  | 100.0% | 100 k | 401 k | 1.20 k | 15.0 k | 0 | 14.2 k |
"""


def test_csv_has_a_table_for_the_files_and_one_for_their_parts() -> None:
    files, parts = (csv_rows(render_csv([], rows()), kind) for kind in ("emulated", "emulated parts"))
    assert [row["variant"] for row in files] == ["edgepack", "dense-fp32", "dense-int8"]
    first = files[0]
    assert (first["instructions"], first["last_level"], first["agreement_db"]) == ("100000", "L2", "84.2")
    assert (first["vs_fp32_instructions"], first["vs_fp32_last_level_misses"]) == ("5.0", "")
    assert (files[1]["vs_fp32_instructions"], files[1]["memory_bytes"]) == ("", str(66_165.0 * 64))
    assert "parts" not in first
    assert len(parts) == 8
    assert (parts[0]["variant"], parts[0]["name"], parts[0]["rank"], parts[0]["share"]) == (
        "edgepack",
        "0.weight",
        "32",
        "0.8",
    )
    assert parts[3]["name"] == RUNTIME
    assert not any(row is None for line in [*files, *parts] for row in line.values())


def test_csv_of_both_kinds_keeps_the_measured_table_first() -> None:
    measured = measured_rows()[0]
    found = list(csv.DictReader(io.StringIO(render_csv([measured], rows()))))
    assert list(dict.fromkeys(row["kind"] for row in found)) == ["measured", "emulated", "emulated parts"]
    (alone,) = csv.DictReader(io.StringIO(render_csv([measured])))
    assert "kind" not in alone, "there is but one kind"
    assert {**found[0], **alone} == found[0]
    both = render_text([measured], 400, rows())
    assert both.index("p50") < both.index("L2 misses") < both.index("layers of")
    assert render_markdown([measured], rows()).startswith(render_markdown([measured]))


def test_json_holds_rows_and_parts_as_they_are() -> None:
    document = json.loads(render_json([], rows()))
    assert (document["schema_version"], document["rows"]) == (1, [])
    packed = document["emulated"][0]
    assert packed["instructions"] == 100_000
    assert packed["vs_int8"] == {"instructions": 4.01, "last_level_misses": None}
    assert packed["parts"][0] == {
        "name": "0.weight", "layer": True, "rank": 32, "instructions": 80_000, "l1d_misses": 1000,
        "last_level_misses": 0.0, "share": 0.8,
    }  # fmt: skip
    assert packed["notes"] == [*NOTES[:2]]
    assert json.loads(render_json([]))["emulated"] == []


def test_without_int8_baseline_the_layers_stand_alone() -> None:
    text = render_text([], 400, rows(replace(RESULT, variants=(PACKED,))))
    assert "dense int8" not in text
    assert " 0.weight                           32    80.0%   80.0 k       1.00 k           0\n" in text
    assert "vs fp32" not in text, "a column in which no row has a figure is left out"


def test_without_layers_there_is_no_layer_table() -> None:
    bare = replace(PACKED, layers=(), layers_missing="the operator Foo cannot be cut")
    text = render_text([], 400, rows(replace(RESULT, variants=(bare,))))
    assert "layers of" not in text.replace("the layers of", "")
    assert "the layers of edgepack (onnx) were not counted: the operator Foo cannot be cut" in text


def test_no_bound_says_why() -> None:
    unread = replace(BOARD, clusters=(replace(BOARD.main_cluster, read=None),))
    for target, reason in (
        (unread, "no time bound: the read bandwidth of board is not known"),
        ("no target board here", "no time bound: no target board here"),
    ):
        (row,) = rows(replace(RESULT, variants=(PACKED,)), target)
        assert (row.time_low_s, row.time_high_s, row.assumptions) == (None, None, ())
        text = render_text([], 400, [row])
        assert reason in text
        assert "arithmetic" not in text


def test_a_level_has_the_targets_own_name() -> None:
    cluster = replace(BOARD.main_cluster, L2=None, L3=Cache(M, "all", 16))
    third = rows(replace(RESULT, target="other"), replace(BOARD, name="other", clusters=(cluster,)))
    assert {row.last_level for row in third} == {"L3"}
    assert "L3 1M 16-way shared" in third[0].notes[1]
    text = render_text([], 400, [*rows(), *third])
    assert "last-level misses" in text
    assert "66.2 k L2" in text
    assert "66.2 k L3" in text
    assert "mlp for other: modelled caches: L1i 48K 3-way, L1d 32K 2-way, L3 1M" in text
    assert [row.last_level for row in rows(RESULT, "unknown")] == ["L2"] * 3


def test_threads_and_notes_of_the_emulated_cpu_are_shown() -> None:
    noted = replace(EMULATION, notes=("QEMU has no cortex-a55: its instructions are run as cortex-a76's",))
    text = render_text([], 400, rows(replace(RESULT, threads=4, emulation=noted)))
    assert "mlp, board (4 threads), onnx" in text
    assert text.count("QEMU has no cortex-a55") == 1


def test_a_strangers_manifest_gives_no_ranks() -> None:
    for layers in (
        5,
        [5, {"layer": 3, "rank": 1}, {"layer": "0.weight", "rank": "1"}, {"layer": "0.weight", "rank": True}],
    ):
        row = emulated_rows(RESULT, facts_of({"files": {"model.onnx": {"layers": layers}}}, PACK), BOARD)[0]
        assert [part.rank for part in row.parts] == [None] * 4
    assert emulated_rows(RESULT, None, BOARD)[0].scheme is None


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line) for line in render_text([], width, rows()).splitlines()) <= width


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (misses, -3.0, "0"), (misses, 0.99, "0"), (misses, 1.0, "1"), (misses, 14_200, "14.2 k"),
        (signed, -1200, "-1.20 k"), (signed, -0.4, "0"), (signed, 12_100, "12.1 k"),
        (agreement, 84.2, "84 dB"), (agreement, 200.0, "exact"), (agreement, -3.0, "-3 dB"),
        (fewer, None, "–"), (fewer, CountRatio(3.94, None), "3.9× fewer instr."), (fewer, CountRatio(1.006, 1), "as many instr."),
        (fewer, CountRatio(1.04, 1), "1.04× fewer instr."), (fewer, CountRatio(0.5, 1), "2.0× more instr."),
        (fewer, CountRatio(123.4, 1), "123× fewer instr."),
    ],
)  # fmt: skip
def test_figures(function: Any, value: Any, text: str) -> None:
    assert function(value) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (6.1e-6, 24e-6, "6.1–24 µs"), (0.2e-6, 1.2e-6, "0.2–1.2 µs"), (0.03e-6, 1.2e-6, "0.03–1.2 µs"),
        (123e-6, 456e-6, "123–456 µs"), (0.5e-3, 1.21e-3, "0.5–1.2 ms"), (2e-6, 2e-6, "2.0 µs"),
        (5e-9, 20e-9, "5.0–20 ns"), (1.0, 2.0, "1.0–2.0 s"), (0.4, 0.9999, "0.4–1.0 s"),
    ],
)  # fmt: skip
def test_spans(low: float, high: float, text: str) -> None:
    assert span(low, high) == text


@given(st.floats(1e-9, 100), st.floats(1, 10))
def test_a_span_keeps_its_ends_within_its_digits(low: float, factor: float) -> None:
    numbers, unit = span(low, low * factor).split()
    scale = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
    first, _, last = numbers.partition("–")
    assert float(first) * scale == pytest.approx(low, rel=0.06)
    assert float(last or first) * scale == pytest.approx(low * factor, rel=0.06)
