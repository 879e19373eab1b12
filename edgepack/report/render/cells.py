"""The words for a raw value, by its unit: what the terminal and markdown share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgepack import units
from edgepack.report.report import Column, Figure, Line, Table, Unit
from edgepack.validation import plain_lines

MOST = 100_000
"""Characters of a text; no report of edgepack has longer ones."""


def _texts(value: Sequence[str]) -> str:
    return "; ".join(value)


def _repeated(value: tuple[str, int]) -> str:
    name, times = value
    return name if times == 1 else f"{name} ×{times}"


def _clusters(value: Sequence[tuple[int, str, float | None]]) -> str:
    return " + ".join(f"{cores}×{core}" + (f" {hz / 1e9:g}" if hz else "") for cores, core, hz in value)


def _estimate(text: str, source: str) -> str:
    return f"~{text}" if source == "estimate" else text


def _spread(value: tuple[float, float]) -> str:
    return f"{value[0]:.0%} to {value[1]:.0%}"


WORDS: Mapping[Unit, Callable[[Any], str]] = {
    "raw": str,
    "text": lambda value: line_text(value),
    "list": _texts,
    "repeated": _repeated,
    "yes": lambda value: "yes" if value else "no",
    "mark": lambda value: "*" if value else "",
    "clusters": _clusters,
    "digest": lambda value: f"{value[:16]}… ok",
    "ratio": units.ratio,
    "fewer": units.fewer,
    "bytes": units.size,
    "binary": units.binary,
    "seconds": units.seconds,
    "count": units.count,
    "signed count": units.signed,
    "misses": units.misses,
    "integer": str,
    "percent": lambda value: f"{value}%",
    "share": lambda value: f"{value:.1%}",
    "whole share": lambda value: f"{value:.0%}",
    "fine share": lambda value: f"{value:.2%}",
    "growth": lambda value: f"{value:+.1%}",
    "times": lambda value: f"{value:.1f}×",
    "score": units.score,
    "change": units.change,
    "decibels": units.agreement,
    "loss": lambda value: f"{value:.2g}",
    "fine loss": lambda value: f"{value:.3g}",
    "gigabytes per second": lambda value: f"{value * 1e-9:.3g}",
    "nanoseconds": lambda value: f"{value * 1e9:.3g}",
    "gigahertz": lambda value: f"{value / 1e9:.3f} GHz",
    "megahertz": lambda value: f"{value / 1e6:.0f} MHz",
    "whole seconds": lambda value: f"{value:.0f} s",
    "figures": lambda value: line_text(value),
    "span": lambda value: units.span(*value),
    "drift": lambda value: units.drift(*value),
    "shape": lambda value: f"{value[0]}×{value[1]}",
    "of": lambda value: f"{value[0]} of {value[1]}",
    "lost": units.lost,
    "spread": _spread,
    "deviation": lambda value: f"{_spread(value[:2])} ({value[2]})",
    "cache": lambda value: _estimate(units.binary(value[0]), value[1]),
    "bandwidth": lambda value: _estimate(units.bandwidth(value[0], value[1]), value[2]),
    "range": lambda value: _estimate(f"{value[0]:g}–{value[1]:g}", value[2]),
}


def words(value: object, unit: Unit) -> str:
    """A value that is known. Text in a column of figures stands as it is."""
    return plain_lines(value if isinstance(value, str) and unit != "digest" else WORDS[unit](value), MOST)


def cell_text(value: object, column: Column) -> str:
    """A cell of a table for people."""
    return column.missing if value is None else words(value, column.unit)


def line_text(line: Line) -> str:
    """A sentence, its figures in words."""
    if isinstance(line, str):
        return plain_lines(line, MOST)
    return "".join(plain_lines(part, MOST) if isinstance(part, str) else _figure(part) for part in line)


def _figure(figure: Figure) -> str:
    return units.NONE if figure.value is None else words(figure.value, figure.unit)


def cell_texts(table: Table) -> list[tuple[str, ...]]:
    """Every row of a table for people."""
    return [tuple(map(cell_text, row, table.columns)) for row in table.rows]
