"""A report as text for a terminal, as markdown, as CSV and as JSON: the only places where figures become words.

A new way to write reports is a module here with a `render`, and its line in `RENDERERS`: every command that prints a
report then offers it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgepack.report.render import csv, json, markdown, terminal
from edgepack.report.report import Report


@dataclass(frozen=True)
class Renderer:
    """One way to write a report.

    Attributes:
        name: its option on the command line is `--name`.
        help: of that option.
        render: the text of a report; a rich renderable for the terminal.
        for_machines: whether a program reads it: then an error is a report as well, and nothing else is printed.
    """

    name: str
    help: str
    render: Callable[[Report], Any]
    for_machines: bool = False

    @property
    def option(self) -> str:
        """What asks for it on the command line."""
        return f"--{self.name}"


TERMINAL = Renderer("terminal", "", terminal.render)
"""Where no other is asked for; it has no option."""

RENDERERS = (
    Renderer("json", "Print JSON for machines.", json.render, for_machines=True),
    Renderer("markdown", "Print markdown tables.", markdown.render),
    Renderer("csv", "Print CSV, full precision; several tables have an empty line between.", csv.render),
)
