"""Tables of the marked blocks."""

from __future__ import annotations

from collections.abc import Sequence

TITLES = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}


def markdown_table(headers: Sequence[str], lines: Sequence[Sequence[str]], *, right: Sequence[str]) -> str:
    """A markdown table; the headers in `right` align their columns to the right."""
    rule = ["---:" if header in right else "---" for header in headers]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, rule, *lines))


def kilobytes(size: float) -> str:
    """Bytes as kB with one digit."""
    return f"{size / 1000:.1f}"


def one_line(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def decibels(noise: float | None) -> str:
    """Signal over noise; None where there is no noise."""
    return "equal" if noise is None else f"{noise:.1f}"
