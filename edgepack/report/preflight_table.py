"""`edgepack doctor --host` for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.table import Table


class Checked(Protocol):
    """One thing that was looked at on a device."""

    @property
    def name(self) -> str:
        """What it is."""

    @property
    def found(self) -> str:
        """In words."""

    @property
    def advice(self) -> str | None:
        """What to do about it; None where it is well."""


def render_preflight(checks: Sequence[Checked]) -> Table:
    """A line per thing: whether it is well, what was found, what to do."""
    lines = [("!" if one.advice else "ok", one.name, one.found, one.advice or "") for one in checks]
    headers = ("", "device", "found", "what to do")
    width = 4 if any(one.advice for one in checks) else 3
    return plain_table(headers[:width], [line[:width] for line in lines])
