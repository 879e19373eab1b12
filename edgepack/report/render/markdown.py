"""A report as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from edgepack.report.render.cells import cell_texts, line_text
from edgepack.report.render.terminal import chart_text
from edgepack.report.report import Chart, Line, Paragraph, Report, Table, Told
from edgepack.units import markdown


def render(report: Report) -> str:
    """Its tables with all their columns, each with its notes as a list below. Signs with a meaning in markdown are
    escaped."""
    parts = [f"{_escape(line)}\n" for line in report.title]
    if report.warnings:
        parts.append(_list(f"warning: {warning}" for warning in report.warnings))
    for kind, blocks in groupby(report.for_people, key=_kind):
        if kind == "list":
            parts.append(_list(map(_sentence, blocks)))
        else:
            parts += [
                _table(block) if isinstance(block, Table) else f"{_escape(_sentence(block))}\n" for block in blocks
            ]
    return "\n".join(parts)


def _kind(block: Told) -> str:
    return "list" if isinstance(block, Chart) or (isinstance(block, Paragraph) and block.note) else "one"


def _sentence(block: Told) -> str:
    if isinstance(block, Chart):
        return f"{block.title}: {chart_text(block)}"
    return line_text(block.line) if isinstance(block, Paragraph) else ""


def _table(block: Table) -> str:
    table = block.shown_to("people")
    headers = [_escape(column.header) for column in table.columns]
    rule = ["---:" if column.right else "---" for column in table.columns]
    lines = [_row(headers), _row(rule), *(_row([_escape(cell) for cell in row]) for row in cell_texts(table))]
    text = "\n".join(lines) + "\n"
    if table.notes:
        text += f"\n{_list(map(line_text, table.notes))}"
    title = _escape(table.title)
    return f"{title}\n\n{text}" if title else text


def _list(lines: Iterable[str]) -> str:
    return "".join(f"- {_escape(line)}\n" for line in lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(line: Line) -> str:
    return markdown(" ".join(line_text(line).split("\n")))
