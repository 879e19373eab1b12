"""Reports as the tests read them."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.report.compare import CompareRow
from edgepack.report.comparison import comparison_report
from edgepack.report.emulated import EmulatedRow
from edgepack.report.render import csv, json, markdown, terminal
from edgepack.report.report import Report


def text(report: Report, width: int = 160) -> str:
    """As a terminal of this width shows it, without the blanks at the ends of lines and the empty lines around it."""
    return terminal.render_text(report, width).strip("\n")


def render_text(rows: Sequence[CompareRow], width: int = 160, emulated: Sequence[EmulatedRow] = ()) -> str:
    """A comparison for the terminal."""
    return terminal.render_text(comparison_report(rows, emulated), width)


def render_markdown(rows: Sequence[CompareRow], emulated: Sequence[EmulatedRow] = ()) -> str:
    """A comparison in markdown."""
    return markdown.render(comparison_report(rows, emulated))


def render_csv(rows: Sequence[CompareRow], emulated: Sequence[EmulatedRow] = ()) -> str:
    """A comparison in CSV."""
    return csv.render(comparison_report(rows, emulated))


def render_json(rows: Sequence[CompareRow], emulated: Sequence[EmulatedRow] = ()) -> str:
    """A comparison in JSON."""
    return json.render(comparison_report(rows, emulated))
