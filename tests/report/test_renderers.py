"""One report through every renderer: what a column, a chart, a note and a warning become in each."""

# Tables stand here as they are printed.
# ruff: noqa: E501

from __future__ import annotations

import csv as reader
import io
import json as parser
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from rich.console import Console

from edgepack.report import build, compare, devices, doctor, emulated, inspect, targets
from edgepack.report.render import JUNIT, csv, json, markdown, terminal
from edgepack.report.render.cells import WORDS, cell_text
from edgepack.report.report import (
    Axis,
    Case,
    Chart,
    Column,
    Field,
    Figure,
    Mark,
    Paragraph,
    Report,
    Series,
    Table,
    Unit,
    facts,
    hidden,
    make_table,
)
from tests.report.shown import terminal_text


@dataclass(frozen=True)
class Speed:
    speedup: float
    verdict: str


@dataclass(frozen=True)
class Row:
    name: str
    size_bytes: int | None
    speed: Speed | None = None
    heat: float | None = None


FIELDS: tuple[Field[Row], ...] = (
    Field(Column("name", "what")),
    Field(Column("size_bytes", "size", "bytes")),
    Field(Column("speed", "vs int8", "ratio", parts=("speedup", "verdict"))),
    Field(Column("heat", "°C", "integer", optional=True)),
    Field(hidden("twice_bytes", "bytes"), lambda row: None if row.size_bytes is None else 2 * row.size_bytes),
)
ROWS = (Row("a|b", 64_219, Speed(2.0, "faster")), Row("=cmd()", None))
REPORT = Report(
    title=(("all of ", Figure(1_630_000, "bytes"), " [x]"),),
    blocks=(
        make_table(FIELDS, ROWS, title="first", notes=(("at most ", Figure(0.5, "share")), "and *no* more")),
        Chart(
            "read",
            Axis("size_bytes", "binary"),
            Axis("load_s", "seconds"),
            (Series("read", (Mark(1024.0, 1e-9), Mark(65536.0, 8e-9))),),
            of="a72",
            drawn=False,
        ),
        Paragraph("how to read it", note=True),
        Table((Column("n", "n", "integer"),), ((1,),), only="data"),
        Table((Column("m", "m", "integer"),), ((2,),), only="people"),
    ),
    warnings=("slow_down",),
    record={"b": float("nan"), "a": [1, (2.5, float("inf"))]},
)


def test_terminal() -> None:
    assert terminal_text(REPORT, 60) == TERMINAL


TERMINAL = """\
all of 1.63 MB [x]
warning: slow_down

first

 what        size   vs int8
 ───────────────────────────────
 a|b      64.2 kB   2.00× faster
 =cmd()         –   –

at most 50.0%
and *no* more
  read             ▁█ 1K to 64K
how to read it

 m
 ─
 2

"""


def test_markdown() -> None:
    assert markdown.render(REPORT) == MARKDOWN


MARKDOWN = r"""all of 1.63 MB \[x\]

- warning: slow\_down

first

| what | size | vs int8 |
| --- | ---: | --- |
| a\|b | 64.2 kB | 2.00× faster |
| =cmd() | – | – |

- at most 50.0%
- and \*no\* more

- read: ▁█ 1K to 64K
- how to read it

| m |
| ---: |
| 2 |
"""


def test_csv() -> None:
    assert csv.render(REPORT) == CSV


CSV = """\
name,size_bytes,speedup,verdict,heat,twice_bytes,of,chart,load_s,n
a|b,64219,2.0,faster,,128438,,,,
'=cmd(),,,,,,,,,
,1024.0,,,,,a72,read,1e-09,
,65536.0,,,,,a72,read,8e-09,
,,,,,,,,,1
"""


def test_json_is_the_record_and_valid() -> None:
    text = json.render(REPORT)
    assert parser.loads(text, parse_constant=pytest.fail) == {"a": [1, [2.5, None]], "b": None}
    assert text.index('"a"') < text.index('"b"')


def test_an_optional_column_is_there_where_it_has_a_figure() -> None:
    report = Report(blocks=(make_table(FIELDS, [Row("a", 1, heat=78)]),))
    assert terminal_text(report).split()[:4] == ["what", "size", "vs", "int8"]
    assert "°C" in terminal_text(report)
    assert "| °C |" in markdown.render(report)
    assert "°C" not in markdown.render(Report(blocks=(make_table(FIELDS, [Row("a", 1)]),)))


def test_groups_are_named_once_and_lack_empty_columns() -> None:
    columns = (Column("pack", "pack"), Column("file", "file"), Column("x", "x", "seconds"), Column("y", "y", "ratio"))
    rows = (("p", "a", None, Speed(0.5, "slower")), ("p", "b", None, None), ("q", "a", None, None))
    table = Table(columns, rows, lead=1)
    lines = [line.split() for line in terminal_text(Report(blocks=(table,))).splitlines() if line.strip()]
    assert lines[0] == ["file", "y"]
    assert lines[2:] == [["p"], ["a", "2.00×", "slower"], ["b", "–"], ["q"], ["a", "–"]]
    assert markdown.render(Report(blocks=(table,))).startswith("| pack | file | x | y |\n")


def test_what_is_faster_is_green_and_what_is_slower_red() -> None:
    columns = (Column("pack", "pack"), Column("file", "file"), Column("y", "y", "ratio"))
    rows = (("p", "a", Speed(0.5, "slower")), ("p", "b", Speed(2.0, "faster")))
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=60)
    console.print(terminal.render(Report(blocks=(Table(columns, rows, lead=1),), warnings=("w",))))
    assert "\x1b[31m2.00× slower" in stream.getvalue()
    assert "\x1b[32m2.00× faster" in stream.getvalue()
    assert "\x1b[33mwarning: w" in stream.getvalue()


def test_facts_that_are_not_known() -> None:
    table = facts("rpi4", [("RAM", (Figure(1 << 30, "binary"), "–", Figure(8 << 30, "binary"))), ("L3", None)])
    lines = terminal_text(Report(blocks=(table,))).splitlines()
    assert [line.split() for line in lines[3:5]] == [["RAM", "1G–8G"], ["L3", "–"]]
    assert list(reader.reader(io.StringIO(csv.render(Report(blocks=(table,))))))[1:] == [["RAM", "1G–8G"], ["L3", ""]]


def test_a_line_break_does_not_end_a_row_of_markdown() -> None:
    report = Report(blocks=(Table((Column("x", "x"),), (("a\nb",),)),))
    assert "| a b |" in markdown.render(report)


def test_parts_that_do_not_fit_their_column_are_a_defect() -> None:
    table = Table((Column("x", "x", "span", parts=("low_s", "high_s", "more")),), (((1.0, 2.0),),))
    with pytest.raises(ValueError, match="x has 2 parts, its column names 3"):
        csv.render(Report(blocks=(table,)))


def test_every_unit_has_its_words() -> None:
    assert set(WORDS) == set(get_args(Unit))


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("bytes", 64_219, "64.2 kB"), ("binary", 1536 << 10, "1.5M"), ("seconds", 4.82e-6, "4.82 µs"),
        ("count", 12_345.6, "12.3 k"), ("signed count", -1200, "-1.20 k"), ("misses", 0.3, "0"), ("integer", 7, "7"),
        ("integer", "dense", "dense"), ("percent", 15, "15%"), ("share", 0.0766, "7.7%"), ("whole share", 0.998, "100%"),
        ("fine share", 0.0025, "0.25%"), ("times", 33.9371, "33.9×"), ("score", -0.001, "0.00"), ("change", 0.4, "+0.40"),
        ("decibels", 84.2, "84 dB"), ("loss", 0.00857, "0.0086"), ("fine loss", 0.1234, "0.123"),
        ("shape", (512, 784), "512×784"), ("of", (1, 2), "1 of 2"), ("repeated", ("Gemm", 1), "Gemm"),
        ("repeated", ("Gemm", 3), "Gemm ×3"), ("yes", False, "no"), ("mark", True, "*"), ("mark", False, ""),
        ("drift", (4.8e-6, 6.1e-6, 78.4), "4.80 µs → 6.10 µs at 78 °C"), ("drift", (1e-3, 2e-3, None), "1.00 ms → 2.00 ms"),
        ("lost", (0.0082, 7.3e-6, 1e-15), "8.2e-03 + 7.3e-06 + 0"), ("lost", (None, 1.7e-4, None), "1.7e-04"),
        ("spread", (0.05, 0.125), "5% to 12%"), ("deviation", (0.01, 0.1, 14), "1% to 10% (14)"),
        ("cache", (1 << 15, "reference"), "32K"), ("cache", (1 << 19, "estimate"), "~512K"),
        ("bandwidth", (3.7e9, 4.4e9, "reference"), "3.7–4.4"), ("bandwidth", (5e9, 5e9, "estimate"), "~5"),
        ("range", (0.8, 3.0, "estimate"), "~0.8–3"), ("gigahertz", 1.2e9, "1.200 GHz"), ("megahertz", 1.5e9, "1500 MHz"),
        ("whole seconds", 9.6, "10 s"), ("digest", "0123456789abcdef" * 4, "0123456789abcdef… ok"),
        ("clusters", [(2, "cortex-a76", 2.3e9), (4, "cortex-a55", None)], "2×cortex-a76 2.3 + 4×cortex-a55"),
        ("list", ("a", "b"), "a; b"), ("bytes", None, "–"),
    ],
)  # fmt: skip
def test_words(unit: Unit, value: Any, text: str) -> None:
    assert cell_text(value, Column("x", "x", unit)) == text


def columns() -> Iterator[Column]:
    """Those of every table whose columns do not depend on its rows."""
    for module in (build, compare, devices, doctor, emulated, inspect, targets):
        for value in vars(module).values():
            for each in value if isinstance(value, tuple) else ():
                if isinstance(each, Field | Column):
                    yield each.column if isinstance(each, Field) else each
    yield from compare.measured_table([]).columns


SUFFIX: dict[Unit, tuple[str, ...]] = {
    "bytes": ("_bytes",),
    "binary": ("_bytes",),
    "seconds": ("_s",),
    "megahertz": ("_hz",),
    "gigabytes per second": ("_bytes_per_s",),
}


def test_names_in_data_end_in_their_si_unit() -> None:
    found = list(columns())
    assert len(found) > 80
    for column in found:
        if column.unit in SUFFIX:
            assert column.key.endswith(SUFFIX[column.unit]), column


def test_cases_as_junit_are_counted_and_say_why_they_failed() -> None:
    cases = (Case("b", "x"), Case("a", "<y> & z", ("grew by ", Figure(0.03, "growth"))), Case("a", "w"))
    root = ElementTree.fromstring(JUNIT.render(Report(cases=cases)))
    assert root.attrib == {"tests": "3", "failures": "1"}
    assert [suite.attrib for suite in root] == [
        {"name": "a", "tests": "2", "failures": "1"},
        {"name": "b", "tests": "1", "failures": "0"},
    ]
    (failure,) = root.iter("failure")
    assert failure.text == failure.get("message") == "grew by +3.0%"
    assert [case.get("name") for case in root.iter("testcase")] == ["<y> & z", "w", "x"]
