"""A comparison as a markdown table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgepack.report.cells import RIGHT_ALIGNED, table
from edgepack.report.compare import CompareRow

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#])")


def render_markdown(rows: Sequence[CompareRow]) -> str:
    """One table with every column, then the notes as a list. Signs with a meaning in markdown are escaped."""
    cells = table(rows)
    rule = ["---:" if header in RIGHT_ALIGNED else "---" for header in cells.headers]
    lines = [_line(cells.headers), _line(rule), *(_line([_escape(cell) for cell in line]) for line in cells.lines)]
    if cells.notes:
        lines += ["", *(f"- {_escape(note)}" for note in cells.notes)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)
