"""Reports as the tests read them."""

from __future__ import annotations

import csv as reader
import io
from collections.abc import Sequence

from rich.console import Console

from edgepack.report.compare import CompareRow
from edgepack.report.comparison import comparison_report
from edgepack.report.emulated import EmulatedRow
from edgepack.report.render import csv, json, markdown, terminal
from edgepack.report.report import Report


def terminal_text(report: Report, width: int = 160) -> str:
    """As a terminal of this width shows it, without colours and the blanks at the ends of lines."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, force_terminal=False).print(terminal.render(report))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def text(report: Report, width: int = 160) -> str:
    """The same without the empty lines around it."""
    return terminal_text(report, width).strip("\n")


def render_text(rows: Sequence[CompareRow], width: int = 160, emulated: Sequence[EmulatedRow] = ()) -> str:
    """A comparison for the terminal."""
    return terminal_text(comparison_report(rows, emulated), width)


def render_markdown(rows: Sequence[CompareRow], emulated: Sequence[EmulatedRow] = ()) -> str:
    """A comparison in markdown."""
    return markdown.render(comparison_report(rows, emulated))


def render_csv(rows: Sequence[CompareRow], emulated: Sequence[EmulatedRow] = ()) -> str:
    """A comparison in CSV."""
    return csv.render(comparison_report(rows, emulated))


def csv_rows(text: str, kind: str) -> list[dict[str, str]]:
    """The rows of one kind in a CSV that has several, without the columns of the others."""
    rows = [row for row in reader.DictReader(io.StringIO(text)) if row["kind"] == kind]
    return [{name: cell for name, cell in row.items() if any(one[name] for one in rows)} for row in rows]


def render_json(rows: Sequence[CompareRow], emulated: Sequence[EmulatedRow] = ()) -> str:
    """A comparison in JSON."""
    return json.render(comparison_report(rows, emulated))
