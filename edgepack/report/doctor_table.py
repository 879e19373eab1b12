"""The table of `edgepack doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepack.doctor import Finding
from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.table import Table


def render_doctor(tools: Sequence[Finding]) -> Table:
    """One row per tool: what it is for, and its version or the command that installs it."""
    rows = [(t.name, t.purpose, t.found or f"missing: {t.install}") for t in tools]
    return plain_table(("tool", "for", "here"), rows)
