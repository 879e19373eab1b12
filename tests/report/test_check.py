"""What `edgepack check` says, to people and to machines."""

from __future__ import annotations

import csv as reader
import io
import json
from dataclasses import replace
from pathlib import Path

from edgepack.benchmark.results import LayerCounts
from edgepack.check.changes import changes, notes
from edgepack.check.check import Checked
from edgepack.check.figures import PackFigures
from edgepack.check.thresholds import STANDARD
from edgepack.report.check import check_report
from edgepack.report.render import csv, markdown
from edgepack.report.render import json as as_json
from edgepack.report.report import Report
from tests.check.test_changes import BASE, FILE, counts
from tests.report.shown import terminal_text

GROWN = replace(
    FILE,
    size_bytes=10_050,
    counts=counts(1.016e6, 9e4),
    layers=(LayerCounts("fc1", True, counts(4.16e5, 4e4)), LayerCounts("fc2", True, counts(5e5, 4.01e4))),
)


def report(own: PackFigures, base: PackFigures | None) -> Report:
    held = () if base is None else tuple(changes(own, base, STANDARD))
    told = () if base is None else tuple(notes(own, base))
    against = None if base is None else "main"
    return check_report(Checked(Path("dist/mlp.rpi4"), against, own, base, STANDARD, held, told))


def test_layers_that_changed_stand_below_their_file() -> None:
    shown = terminal_text(report(replace(BASE, files=(GROWN,)), BASE))
    assert shown == (
        """\
dist/mlp.rpi4 against main on rpi4: 2 of 11 figures over what is allowed

 layer        figure          base     now change allowed
 ───────────────────────────────────────────────────────────────
 model.onnx
   whole file size         10.0 kB 10.1 kB  +0.5%    1.0%
   whole file drop           +0.10   +0.10  +0.00    0.50
   whole file instructions  1.00 M  1.02 M  +1.6%    1.0% OVER
   whole file L1d misses     100 k  90.0 k -10.0%    3.0% better
   whole file L2 misses     10.0 k  9.00 k -10.0%    3.0% better
   fc1        instructions   400 k   416 k  +4.0%    1.0% OVER
   fc1        L1d misses    50.0 k  40.0 k -20.0%    3.0% better
   fc1        L2 misses     5.00 k  4.00 k -20.0%    3.0% better

3 figures of layers and of the parts between them are within what is allowed (--json has all)
"""
    )


def test_markdown_holds_the_same_rows() -> None:
    lines = markdown.render(report(replace(BASE, files=(GROWN,)), BASE)).splitlines()
    assert "| model.onnx | fc1 | instructions | 400 k | 416 k | +4.0% | 1.0% | OVER |" in lines
    assert lines[0] == "dist/mlp.rpi4 against main on rpi4: 2 of 11 figures over what is allowed"


def test_machines_get_every_figure_and_the_error() -> None:
    grown = report(replace(BASE, files=(GROWN,)), BASE)
    rows = list(reader.DictReader(io.StringIO(csv.render(grown))))
    assert len(rows) == 11
    assert [(row["part"], row["figure"]) for row in rows if row["over"] == "True"] == [
        ("", "instructions"), ("fc1", "instructions"),
    ]  # fmt: skip
    document = json.loads(as_json.render(grown))
    assert document["passed"] is False
    assert document["error"]["message"] == (
        "dist/mlp.rpi4: 2 of 11 figures grew by more than is allowed against main: model.onnx, fc1; model.onnx"
    )
    assert [case.name for case in grown.cases if case.failure] == ["whole file: instructions", "fc1: instructions"]
    within = json.loads(as_json.render(report(BASE, BASE)))
    assert within["passed"] is True
    assert "error" not in within


def test_figures_alone_are_a_table() -> None:
    shown = terminal_text(report(BASE, None))
    assert " model.onnx   10.0 kB   +0.10   1.00 M        100 k              10.0 k" in shown
    assert "figures alone, held against nothing" in shown
