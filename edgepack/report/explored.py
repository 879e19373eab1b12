"""The plans of `edgepack build --explore`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgepack.metrics import Drop
from edgepack.model.scheme import Format
from edgepack.report.cells import seconds, size
from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.console import Group

HEADERS = ("", "plan", "format", "scheme", "factored", "weights", "size", "latency", "drop", "±")


@dataclass(frozen=True)
class ExploredRow:
    """One plan that was emitted and measured.

    Attributes:
        number: what `--pick` takes.
        on_front: whether no other plan of its format is at least as good in drop, latency and size, and better in one.
        factored: layers, of how many.
        weights_share: weight parameters kept, of the linear layers.
        latency_s: predicted, of the linear layers.
        source: of the latency.
    """

    number: int
    on_front: bool
    format: Format
    scheme: str
    factored: tuple[int, int]
    weights_share: float
    size_bytes: int
    latency_s: float
    source: str
    drop: Drop


def explored_json(rows: Sequence[ExploredRow]) -> list[dict[str, Any]]:
    """For machines."""
    return [{**asdict(row), "drop": {**asdict(row.drop), "value": row.drop.value}} for row in rows]


def render_explored(rows: Sequence[ExploredRow], warnings: Sequence[str] = ()) -> Group:
    """One line per plan, the front marked, how to build one of them, and the warnings."""
    from rich.console import Group
    from rich.text import Text

    table = plain_table(HEADERS, [_cells(row) for row in rows], right=("plan", *HEADERS[4:]))
    sources = {row.format: row.source for row in rows}
    notes = [
        "* on the Pareto front: no other plan of its format is as good in drop, latency and size, and better in one.",
        f"drop: of {rows[0].drop.metric} on {rows[0].drop.samples} guard samples; ±: paired test, one-sided 95 %.",
        *(f"latency: linear layers of {fmt}, predicted by the {source}." for fmt, source in sources.items()),
        "Build one with --pick NUMBER, or one per format with --pick NUMBER,NUMBER, and the same other options.",
    ]
    heard = [Text(f"warning: {warning}", style="yellow") for warning in warnings]
    return Group(table, Text("\n".join(notes), style="dim"), *heard)


def _cells(row: ExploredRow) -> tuple[str, ...]:
    return (
        "*" if row.on_front else "",
        str(row.number),
        row.format,
        row.scheme,
        f"{row.factored[0]} of {row.factored[1]}",
        f"{row.weights_share:.1%}",
        size(row.size_bytes),
        seconds(row.latency_s),
        f"{round(row.drop.value, 2) + 0.0:.2f}",
        f"{row.drop.margin:.2f}",
    )
