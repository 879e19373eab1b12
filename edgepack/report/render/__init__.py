"""A report as text for a terminal, as markdown, as CSV and as JSON: the only places where figures become words.

A new way to write reports is a module here with a `render`, and its line in `RENDERERS`: every command that prints a
report then offers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepack.report.report import Report


@dataclass(frozen=True)
class Renderer:
    """One way to write a report.

    Attributes:
        name: of its module here, which is loaded when it is used; its option on the command line is `--name`.
        help: of that option.
        for_machines: whether a program reads it: then an error is a report as well, and nothing else is printed.
    """

    name: str
    help: str
    for_machines: bool = False

    @property
    def option(self) -> str:
        """What asks for it on the command line."""
        return f"--{self.name}"

    def render(self, report: Report) -> Any:
        """The text of a report; a rich renderable for the terminal."""
        return import_module(f"{__name__}.{self.name}").render(report)


TERMINAL = Renderer("terminal", "")
"""Where no other is asked for; it has no option."""

RENDERERS = (
    Renderer("json", "Print JSON for machines.", for_machines=True),
    Renderer("markdown", "Print markdown tables."),
    Renderer("csv", "Print CSV, full precision, as one table."),
)
