"""A report as text for a terminal, as markdown, CSV, JSON, HTML, XML and a picture: where alone figures become words.

A new way to write reports is a module here with a `render`, and its line in `RENDERERS`: every command that prints a
report then offers it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import OutputError

if TYPE_CHECKING:
    from edgepack.report.report import Report


@dataclass(frozen=True)
class Renderer:
    """One way to write a report.

    Attributes:
        name: of its module here, which is loaded when it is used; its option on the command line is `--name`.
        help: of that option.
        for_machines: whether a program reads it: then an error is a report as well, and nothing else is printed.
        to_file: whether its option names a file, which is written beside what another one prints.
        files: what is written beside it.
    """

    name: str
    help: str
    for_machines: bool = False
    to_file: bool = False
    files: tuple[tuple[Renderer, Path], ...] = ()

    @property
    def option(self) -> str:
        """What asks for it on the command line."""
        return f"--{self.name}"

    def render(self, report: Report) -> Any:
        """The text of a report; bytes of a picture, and a rich renderable for the terminal."""
        return import_module(f"{__name__}.{self.name}").render(report)


TERMINAL = Renderer("terminal", "")
"""Where no other is asked for; it has no option."""

HTML = Renderer("html", "Also write a page with charts to this file.", to_file=True)

PNG = Renderer("png", "Also write a picture for a slide to this file; needs Chromium.", to_file=True)

MARKDOWN = Renderer("markdown", "Print markdown tables.")

RENDERERS = (
    Renderer("json", "Print JSON for machines.", for_machines=True),
    MARKDOWN,
    Renderer("csv", "Print CSV, full precision, as one table."),
    HTML,
    PNG,
)

COMMENT = replace(MARKDOWN, help="Also write markdown to this file, for a pull request's comment.", to_file=True)
JUNIT = Renderer("junit", "Also write JUnit's XML to this file, a case for each figure.", to_file=True)
"""Of commands that test something, beside or in place of the others of their names."""


def write_report(report: Report, renderer: Renderer, path: Path) -> None:
    """A report as a file, whole or not there.

    Raises:
        OutputError: nothing can be written there.
    """
    from edgepack.workspace import atomic_path

    if path.is_dir():
        raise OutputError(f"{path}: found a folder, expected the name of a file", hint="such as report.html")
    with atomic_path(path) as temporary:
        rendered = renderer.render(report)
        if isinstance(rendered, bytes):
            temporary.write_bytes(rendered)
        else:
            temporary.write_text(rendered, encoding="utf-8", errors="backslashreplace")
