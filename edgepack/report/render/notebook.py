"""A report as plain HTML tables, for a cell of a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgepack.report.render.cells import cell_texts, line_text
from edgepack.report.render.terminal import chart_text
from edgepack.report.report import Chart, Line, Report, Table, Told


def render(report: Report) -> str:
    """Its lines and tables in their order, the warnings below the title."""
    warnings = [f"<p><strong>warning: {escape(warning)}</strong></p>" for warning in report.warnings]
    titles = [f"<p>{_text(line)}</p>" for line in report.title]
    return "\n".join([*titles, *warnings, *map(_block, report.for_people)])


def _block(block: Told) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Chart):
        return f"<p>{escape(f'{block.title}: {chart_text(block)}')}</p>"
    return f"<p><small>{_text(block.line)}</small></p>" if block.note else f"<p>{_text(block.line)}</p>"


def _table(block: Table) -> str:
    table = block.shown_to("people")
    sides = ["right" if column.right else "left" for column in table.columns]
    caption = f"<caption>{_text(table.title)}</caption>" if table.title else ""
    head = _row("th", [column.header for column in table.columns], sides)
    rows = "".join(_row("td", row, sides) for row in cell_texts(table))
    notes = "".join(f"<p><small>{_text(note)}</small></p>" for note in table.notes)
    return f"<table>{caption}<thead>{head}</thead><tbody>{rows}</tbody></table>{notes}"


def _row(tag: str, cells: Iterable[str], sides: Sequence[str]) -> str:
    aligned = zip(cells, sides, strict=True)
    found = (f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for cell, side in aligned)
    return f"<tr>{''.join(found)}</tr>"


def _text(line: Line) -> str:
    return escape(line_text(line))
