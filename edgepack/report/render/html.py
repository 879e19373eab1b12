"""A report as one HTML file that needs no network: warnings, charts, tables that sort, filter and copy, and how it was
made."""

from __future__ import annotations

import math
import platform
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import astuple, is_dataclass
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from edgepack.backends.registry import TOOLS
from edgepack.report.render.cells import cell_text, line_text
from edgepack.report.render.svg import bar_key_svg, bars_svg, chart_svg, key_svg, largest
from edgepack.report.render.terminal import SENTENCE
from edgepack.report.report import Bars, Block, Chart, Column, Line, Paragraph, Report, Table
from edgepack.workspace import tool_versions

Drawing = Chart | Bars
NOTE, HIDDEN = ' class="note"', ' class="hidden"'
"""Below what it is of; for screen readers alone."""


def render(report: Report, *, live: str = "") -> str:
    """The page. Nothing in it is run but its own script: its digest is in the page's policy.

    Args:
        report: what it shows.
        live: of a page that a server sends: what `state` there says until the page is another one.
    """
    style, script = (files(__package__).joinpath("page", name).read_text("utf-8") for name in ("page.css", "page.js"))
    head, *lines = report.title or (report.command or "edgepack",)
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    if live:
        policy += "; connect-src 'self'"
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}; base-uri 'none'; form-action 'none'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="color-scheme" content="light dark"><title>{_text(head)}</title>',
            f'<link rel="icon" href="data:,"><style>{style}</style></head><body data-live="{escape(live)}">',
            '<a class="skip" href="#report">Skip to the report</a>',
            f'<main id="report" tabindex="-1"><h1>{_text(head)}</h1>',
            *_warnings(report.warnings),
            *(f"<p>{_text(line)}</p>" for line in lines),
            *_blocks(report.drawn),
            *_made_by(report.command),
            f'</main><p id="said" role="status" class="hidden"></p><script>{script}</script></body></html>',
            "",
        )
    )


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _warnings(warnings: Iterable[str]) -> Iterator[str]:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    if items:
        yield f'<section class="warnings" aria-label="Warnings"><h2>Warnings</h2><ul>{items}</ul></section>'


def _made_by(command: str) -> Iterator[str]:
    versions = {**tool_versions(TOOLS), "Python": platform.python_version()}
    yield "<footer><h2>How this was made</h2>"
    if command:
        yield f'<pre tabindex="0"><code>{escape(command)}</code></pre>'
    yield f"<p>{escape(', '.join(f'{name} {version}' for name, version in versions.items()))}</p></footer>"


def _blocks(blocks: Iterable[Block]) -> Iterator[str]:
    """Charts that follow each other stand side by side where there is room."""
    row: list[str] = []
    for block in blocks:
        if isinstance(block, Chart | Bars):
            row.append(_figure(block))
            continue
        yield from _row(row)
        row = []
        yield _table(block.shown_to("people")) if isinstance(block, Table) else _paragraph(block)
    yield from _row(row)


def _row(figures: list[str]) -> Iterator[str]:
    if any(figures):
        yield f'<div class="charts">{"".join(figures)}</div>'


def _paragraph(block: Paragraph) -> str:
    return f"<p{NOTE if block.note else ''}>{_text(block.line)}</p>"


def _figure(block: Drawing) -> str:
    """A drawing, what its signs mean, and its figures as a table that opens."""
    drawing = chart_svg(block) if isinstance(block, Chart) else bars_svg(largest(block))
    if not drawing:
        return ""
    notes = [block.note] if block.note else []
    if isinstance(block, Bars) and block != largest(block):
        notes.append(f"the {len(largest(block).names)} with the longest bars of {len(block.names)}")
    title = f"{block.of}: {block.title}" if isinstance(block, Chart) and block.of else block.title
    note = f"<p{NOTE}>{escape('; '.join(notes))}</p>" if notes else ""
    opener = f"<summary>Figures<span{HIDDEN}> of {escape(title)}</span></summary>"
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{drawing}{_legend(block)}{note}"
        f"<details>{opener}{_table(_figures(block, title))}</details></figure>"
    )


def _legend(block: Drawing) -> str:
    if isinstance(block, Chart):
        keys = [(key_svg(series, index), series.name) for index, series in enumerate(block.series) if series.marks]
    else:
        keys = [(bar_key_svg(index), name) for index, (name, _) in enumerate(block.series)]
    items = "".join(f"<li>{sign}{escape(name)}</li>" for sign, name in keys)
    return f'<ul class="legend">{items}</ul>'


def _figures(block: Drawing, title: str) -> Table:
    """What is drawn, as a table."""
    if isinstance(block, Bars):
        axis = block.axis
        own = (Column(f"{name} {axis.key}", name, axis.unit) for name, _ in block.series)
        rows = zip(block.names, *(values for _, values in block.series), strict=True)
        return Table((Column("name", "name"), *own), tuple(rows), title)
    axes = (Column(axis.key, axis.header or axis.key, axis.unit) for axis in (block.x, block.y))
    points = [(series.name, mark.name or None, mark.x, mark.y) for series in block.series for mark in series.marks]
    lines = [("line", rule.name, rule.x, None) for rule in block.rules]
    columns = (Column("series", "what"), Column("name", "name", optional=True), *axes)
    return Table(columns, (*points, *lines), title).shown_to("people")


def _table(table: Table) -> str:
    """A table in a box of its own, which scrolls where the page is too narrow."""
    title = _text(table.title) or "Table"
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(line_text(table.title)) or "Table"}">'
    caption = f"<caption{'' if table.title else HIDDEN}>{title}</caption>"
    head = "".join(_header(column, _is_wide(table, index)) for index, column in enumerate(table.columns))
    body = "".join(f"<tr>{''.join(_cells(row, table.columns))}</tr>" for row in table.rows)
    notes = "".join(f"<li>{_text(note)}</li>" for note in table.notes)
    below = f"<ul{NOTE}>{notes}</ul>" if notes else ""
    return (
        f'<div class="table">{box}'
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{below}</div>"
    )


def _is_wide(table: Table, index: int) -> bool:
    """Whether it holds sentences."""
    column = table.columns[index]
    return not column.right and any(len(cell_text(row[index], column)) > SENTENCE for row in table.rows)


def _header(column: Column, wide: bool) -> str:
    name = column.header or column.key.replace("_", " ")
    kind = ' class="w"' if wide else _class(column)
    return f'<th scope="col" data-key="{escape(column.key)}"{kind}>{escape(name)}</th>'


def _cells(row: tuple[object, ...], columns: tuple[Column, ...]) -> Iterator[str]:
    for index, (value, column) in enumerate(zip(row, columns, strict=True)):
        tag = "td" if index else 'th scope="row"'
        yield f"<{tag}{_class(column)}{_raw(value)}>{_text(cell_text(value, column))}</{tag[:2]}>"


def _class(column: Column) -> str:
    return ' class="n"' if column.right else ""


def _raw(value: Any) -> str:
    """A number as it is, for copies in full precision; of several numbers the first, for sorting."""
    if isinstance(value, int | float):
        return f' data-v="{value!r}"' if math.isfinite(value) else ""
    parts = astuple(value) if is_dataclass(value) and not isinstance(value, type) else value
    if isinstance(parts, tuple | list) and parts and isinstance(parts[0], int | float) and math.isfinite(parts[0]):
        return f' data-s="{float(parts[0])!r}"'
    return ""


def _text(line: Line) -> str:
    return "<br>".join(escape(line_text(line)).split("\n"))
