"""The renderings of a comparison, to the letter."""

# Tables stand here as they are printed.
# ruff: noqa: E501

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.benchmark.stats import Comparison, Summary
from edgepack.benchmark.summary import Sustained, VariantSummary
from edgepack.pack.facts import FileFacts, facts_of
from edgepack.report.compare import CompareRow, compare_rows
from edgepack.units import count, seconds, size
from tests.report.shown import render_csv, render_json, render_markdown, render_text

PACK = Path("some/mlp.rpi4")
MANIFEST: dict[str, Any] = {
    "schema_version": 1,
    "model": {"name": "mnist-mlp"},
    "metric": {"name": "accuracy"},
    "files": {
        "model.onnx": {"scheme": "int8-dynamic", "metric": 94.6},
        "baseline/fp32.onnx": {"scheme": "fp32", "metric": 94.8},
        "baseline/int8.onnx": {"scheme": "int8-dynamic", "metric": 94.83},
        "model.tflite": {"scheme": "int8-dynamic-range", "metric": 94.5, "drop": 0.31},
    },
}


def latency(median: float) -> Summary:
    return Summary(4, 400, median, median * 0.98, median * 1.02, median * 1.1, median * 0.95, median * 0.05)


BASE = VariantSummary(
    model="mnist-mlp",
    target="rpi4",
    device="Raspberry Pi 4",
    native=True,
    threads=1,
    quick=False,
    format="onnx",
    variant="edgepack",
    file="model.onnx",
    size_bytes=64_219,
    warm=latency(4.82e-6),
    cold=latency(41.2e-6),
    load_s={"numpy_s": 0.1, "session_s": 0.02},
    resident_bytes=1_630_000,
    peak_bytes=2_000_000,
    cache_misses=812.0,
    cache_misses_note=None,
    vs_fp32=Comparison(12.14, 11.9, 12.3, 0.008, "faster"),
    vs_int8=Comparison(0.5, 0.48, 0.52, 0.008, "slower"),
    notes=(),
    methods={"latency": "by a clock"},
)
FP32 = replace(
    BASE, variant="dense-fp32", file="fp32.onnx", size_bytes=1_628_400, warm=latency(58.5e-6), vs_fp32=None,
    vs_int8=Comparison(0.99, 0.97, 1.01, 0.4, "no difference"), cache_misses=12_345.6,
)  # fmt: skip
INT8 = replace(BASE, variant="dense-int8", size_bytes=410_000, vs_int8=None, cold=None, resident_bytes=None)
TFLITE = replace(BASE, format="tflite", size_bytes=52_000, vs_fp32=None, vs_int8=None)


def rows() -> list[CompareRow]:
    return compare_rows([BASE, FP32, INT8, TFLITE], facts_of(MANIFEST, PACK))


def test_terminal() -> None:
    assert render_text(rows()) == TERMINAL


TERMINAL = """\

 variant                    size     p50     p90    cold  memory misses accuracy  drop vs fp32      vs int8
 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 mnist-mlp, rpi4, onnx
   edgepack              64.2 kB 4.82 µs 5.30 µs 41.2 µs 1.63 MB    812    94.60  0.20 12.1× faster 2.00× slower
   dense-fp32            1.63 MB 58.5 µs 64.4 µs 41.2 µs 1.63 MB 12.3 k    94.80  0.00 –            no difference
   dense-int8             410 kB 4.82 µs 5.30 µs       –       –    812    94.83 -0.03 12.1× faster –

 mnist-mlp, rpi4, tflite
   edgepack              52.0 kB 4.82 µs 5.30 µs 41.2 µs 1.63 MB    812    94.50  0.31 –            –

"""


def test_markdown() -> None:
    assert render_markdown(rows()) == MARKDOWN


MARKDOWN = """\
| model | target | format | variant | size | p50 | p90 | cold | memory | misses | accuracy | drop | vs fp32 | vs int8 |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |
| mnist-mlp | rpi4 | onnx | edgepack | 64.2 kB | 4.82 µs | 5.30 µs | 41.2 µs | 1.63 MB | 812 | 94.60 | 0.20 | 12.1× faster | 2.00× slower |
| mnist-mlp | rpi4 | onnx | dense-fp32 | 1.63 MB | 58.5 µs | 64.4 µs | 41.2 µs | 1.63 MB | 12.3 k | 94.80 | 0.00 | – | no difference |
| mnist-mlp | rpi4 | onnx | dense-int8 | 410 kB | 4.82 µs | 5.30 µs | – | – | 812 | 94.83 | -0.03 | 12.1× faster | – |
| mnist-mlp | rpi4 | tflite | edgepack | 52.0 kB | 4.82 µs | 5.30 µs | 41.2 µs | 1.63 MB | 812 | 94.50 | 0.31 | – | – |
"""


def test_scores_stand_under_the_name_of_their_metric() -> None:
    facts = facts_of(MANIFEST, PACK)
    cosine, own = (
        compare_rows([replace(BASE, model=name)], replace(facts, metric=name)) for name in ("cosine", "m.py:hit")
    )
    assert " misses cosine drop " in render_text(cosine)
    assert " misses   hit drop " in render_text(own)
    both = render_text([*cosine, *own])
    assert " misses score drop " in both
    assert both.endswith("score of cosine: cosine\nscore of m.py:hit: hit\n")
    long = render_text(compare_rows([BASE], replace(facts, metric="m.py:" + "x" * 99)))
    assert f"score of mnist-mlp: {'x' * 99}" in long.replace("\n", "")


def test_an_error_is_shown_as_people_know_it() -> None:
    facts = replace(facts_of(MANIFEST, PACK), metric="mse", files={"model.onnx": FileFacts(metric=-0.25, drop=0.01)})
    assert " 0.25 0.01" in render_text(compare_rows([BASE], facts))


def test_several_packs_in_one_table_each_with_its_notes() -> None:
    here = [
        replace(one, target="rpi4", device="2×Some CPU", native=False, quick=True, cache_misses=None,
                cache_misses_note="permission denied", threads=2,
                notes=("quick run: short and few measurements", "measured on 2×Some CPU, not on rpi4"))
        for one in (BASE, FP32)
    ]  # fmt: skip
    host = [replace(one, target="host", device="2×Some CPU") for one in (BASE,)]
    assert render_text([*compare_rows(here), *compare_rows(host)]) == SEVERAL


SEVERAL = """\

 variant                                size     p50     p90    cold  memory      misses vs fp32      vs int8
 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 mnist-mlp, rpi4 (2 threads) *, onnx
   edgepack                          64.2 kB 4.82 µs 5.30 µs 41.2 µs 1.63 MB unavailable 12.1× faster 2.00× slower
   dense-fp32                        1.63 MB 58.5 µs 64.4 µs 41.2 µs 1.63 MB unavailable –            no difference

 mnist-mlp, host, onnx
   edgepack                          64.2 kB 4.82 µs 5.30 µs 41.2 µs 1.63 MB         812 12.1× faster 2.00× slower

mnist-mlp for rpi4: quick run: short and few measurements
mnist-mlp for rpi4: * measured on 2×Some CPU, not on rpi4
mnist-mlp for rpi4: cache misses unavailable: permission denied
"""


def test_sustained_latency_has_a_column_where_it_was_measured() -> None:
    long = replace(BASE, sustained=Sustained(4.8e-6, 6.1e-6, (41.0, 78.4)))
    text = render_text(compare_rows([long, FP32], facts_of(MANIFEST, PACK)))
    header, packed, fp32 = (next(line for line in text.splitlines() if word in line) for word in
                            (" variant", "  edgepack", "  dense-fp32"))  # fmt: skip
    assert header.split().index("sustained") == header.split().index("cold") + 1
    assert "4.80 µs → 6.10 µs at 78 °C" in packed
    assert "41.2 µs                          – 1.63 MB" in fp32
    without = replace(long, sustained=Sustained(4.8e-6, 6.1e-6))
    assert "| 4.80 µs → 6.10 µs |" in render_markdown(compare_rows([without]))
    (row,) = csv.DictReader(io.StringIO(render_csv(compare_rows([long]))))
    assert (row["sustained_first_s"], row["sustained_last_s"], row["sustained_end_c"]) == ("4.8e-06", "6.1e-06", "78.4")


def test_csv_has_full_precision_and_one_line_a_row() -> None:
    found = list(csv.DictReader(io.StringIO(render_csv(rows()))))
    assert len(found) == 4
    first = found[0]
    assert (first["latency_p50_s"], first["size_bytes"], first["drop"]) == ("4.82e-06", "64219", str(94.8 - 94.6))
    assert (first["vs_fp32_speedup"], first["vs_fp32_verdict"]) == ("12.14", "faster")
    assert float(first["vs_fp32_shrink"]) == 1_628_400 / 64_219
    assert (found[1]["vs_fp32_speedup"], found[2]["cold_p50_s"]) == ("", "")
    assert render_csv(rows()).splitlines()[0] == CSV_HEADER


CSV_HEADER = (
    "model,target,device,reached,device_id,session,tool,governor,cluster,native,threads,quick,format,variant,scheme,"
    "size_bytes,latency_p50_s,latency_low_s,latency_high_s,latency_p90_s,cold_p50_s,sustained_first_s,"
    "sustained_last_s,sustained_end_c,load_s,resident_bytes,peak_bytes,cache_misses,cache_misses_note,metric"
    "_name,metric,drop,vs_fp32_speedup,vs_fp32_low,vs_fp32_high,vs_fp32_verdict,vs_fp32_shrink,vs_int8_speedup"
    ",vs_int8_low,vs_int8_high,vs_int8_verdict,vs_int8_shrink,notes"
)


def test_json_holds_every_row_as_it_is() -> None:
    document = json.loads(render_json(rows()))
    assert document["schema_version"] == 1
    assert [row["variant"] for row in document["rows"]] == ["edgepack", "dense-fp32", "dense-int8", "edgepack"]
    assert document["rows"][0]["vs_int8"] == {
        "speedup": 0.5,
        "low": 0.48,
        "high": 0.52,
        "verdict": "slower",
        "shrink": 410_000 / 64_219,
    }
    assert document["rows"][1]["vs_fp32"] is None
    assert document["rows"][0]["metric_name"] == "accuracy"
    assert document["rows"][0]["methods"] == {"latency": "by a clock"}
    assert document["devices"] == {"tables": [], "apart": []}


def test_accuracy_comes_from_the_manifest() -> None:
    packed, fp32, int8, tflite = rows()
    assert (packed.metric, packed.scheme) == (94.6, "int8-dynamic")
    assert packed.drop == pytest.approx(0.2)
    assert fp32.drop == 0.0
    assert int8.drop == pytest.approx(-0.03)
    assert tflite.drop == 0.31  # as written, for its fp32 baseline is not in the manifest


@pytest.mark.parametrize(
    "manifest",
    [None, {}, {"files": None}, {"files": []}, {"files": {"model.onnx": 5}}, {"files": {"model.onnx": {"metric": "94"}}},
     {"files": {"model.onnx": {"metric": float("nan"), "scheme": "\x1b[2J"}}, "metric": 3}, {"files": {"model.onnx": {"metric": True}}}],
)  # fmt: skip
def test_a_manifest_without_accuracy_leaves_a_dash(manifest: Any) -> None:
    (row,) = compare_rows([BASE], None if manifest is None else facts_of(manifest, PACK))
    assert (row.metric, row.drop, row.scheme, row.metric_name) == (None, None, None, None)
    assert "| – | – | 12.1× faster |" in render_markdown([row])


def test_names_cannot_break_out_of_their_cell() -> None:
    (row,) = compare_rows([replace(BASE, model="[red]a|b*c[/red]", target="=cmd()")])
    assert "[red]a|b*c[/red]" in render_text([row])
    assert r"| \[red\]a\|b\*c\[/red\] |" in render_markdown([row])
    assert next(csv.DictReader(io.StringIO(render_csv([row]))))["target"] == "'=cmd()"


def test_nothing_to_compare() -> None:
    assert render_csv([]).count("\n") == 1
    assert json.loads(render_json([]))["rows"] == []
    assert render_markdown([]).count("\n") == 2
    assert "variant" in render_text([])


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (size, 0, "0 B"), (size, 999, "999 B"), (size, 1000, "1.00 kB"), (size, 64_219, "64.2 kB"),
        (size, 999_600, "1.00 MB"), (size, 1_628_400, "1.63 MB"), (size, 12_345_678_901, "12.3 GB"), (size, -2000, "-2.00 kB"),
        (seconds, 4.82e-9, "4.82 ns"), (seconds, 4.82e-6, "4.82 µs"), (seconds, 9.996e-6, "10.0 µs"),
        (seconds, 99.96e-6, "100 µs"), (seconds, 0.9996e-3, "1.00 ms"), (seconds, 2.1, "2.10 s"),
        (count, 7.4, "7"), (count, 12_345.6, "12.3 k"), (count, 1_050_000, "1.05 M"),
    ],
)  # fmt: skip
def test_figures(function: Any, value: float, text: str) -> None:
    assert function(value) == text


UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@given(st.floats(1e-9, 900))
def test_a_time_keeps_three_digits(value: float) -> None:
    number, unit = seconds(value).split()
    assert float(number) * UNITS[unit] == pytest.approx(value, rel=0.006)
    assert len(number.replace(".", "")) == 3


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line) for line in render_text(rows(), width).splitlines()) <= width
