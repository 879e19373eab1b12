"""What a table of emulated costs holds and how well it interpolates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgepack.report.cells import NONE, count
from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.console import Group


def render_costs(target: str, table: Mapping[str, Any]) -> Group:
    """A row per scheme, the grid and its source below.

    Args:
        target: that was asked for.
        table: the fields of a cost table.
    """
    from rich.console import Group
    from rich.text import Text

    levels = [level for level in next(iter(table["calls"].values()))["misses"] if level != "L1i"]
    headers = (
        "format",
        "scheme",
        "one call",
        "instr. off by",
        "between batches",
        *(f"{level} misses" for level in levels),
    )
    lines = []
    for fmt, schemes in table["costs"].items():
        for scheme in schemes:
            held = table["held_out"].get(fmt, {}).get(scheme)
            cells = [held["instructions"], held["between_batches"], *map(held["misses"].get, levels)] if held else []
            call = count(table["calls"][fmt]["instructions"])
            lines.append((fmt, scheme, call, *([_deviation(cell) for cell in cells] or [NONE] * (len(headers) - 3))))
    grid = table["grid"]
    notes = [
        f"counted for {target}: {table['core']}, {', '.join(table['caches'])}; {', '.join(table['runtimes'].values())} "
        f"under {table['emulator']}",
        *table["notes"],
        f"grid: sides {_list(grid['sides'])}, ranks {_list(grid['ranks'])} and dense, batches {_list(grid['batches'])}",
        "off by: |interpolated / counted - 1| of layers between the points, median to 90th percentile (how many)",
    ]
    return Group(plain_table(headers, lines, right=headers[2:]), *(Text(note, style="dim") for note in notes))


def _deviation(cell: Mapping[str, Any] | None) -> str:
    return NONE if cell is None else f"{cell['median']:.0%} to {cell['p90']:.0%} ({cell['points']})"


def _list(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
