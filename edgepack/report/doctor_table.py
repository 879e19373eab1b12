"""The table of `edgepack doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.table import Table


class Tool(Protocol):
    """What a row needs; `edgepack.doctor.Finding` is one."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def purpose(self) -> str: ...  # noqa: D102
    @property
    def found(self) -> str | None: ...  # noqa: D102
    @property
    def install(self) -> str: ...  # noqa: D102


def render_doctor(tools: Sequence[Tool]) -> Table:
    """One row per tool: what it is for, and its version or the command that installs it."""
    rows = [(t.name, t.purpose, t.found or f"missing: {t.install}") for t in tools]
    return plain_table(("tool", "for", "here"), rows)
