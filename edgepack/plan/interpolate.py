"""Counts between the points of a cost table's grid.

How well this does is in every table (`CostTable.held_out`). For the shipped ones, over 24 random layers per form on
four CPUs, the error relative to the count has these medians and 90th percentiles:

- instructions at batches of the grid (1, 4, 16): ONNX Runtime 1 % and 2 to 6 %, LiteRT int8 1 to 3 % and 6 to 17 %,
  LiteRT fp32 1 % and 24 to 44 %, for its kernels change with the remainder of the sides by 8;
- instructions between those batches: ONNX Runtime 1 to 4 % and 1 to 7 %; LiteRT up to 36 % and 54 %, for it takes rows
  by tiles, and two rows often cost what four do;
- L1d misses: 1 to 9 % and 7 to 46 %;
- last-level misses: 1 to 6 % where a working set is clearly larger than the cache, and up to all of them at the knee.

Beyond the grid everything is continued linearly. On a Cortex-A72, instructions at 32 and 128 rows and at sides of 4096
and 8000 came out within 4 %, those at 10 outputs up to 74 % too low.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from edgepack.plan.table import CostTable, FormCosts, Grid, Level, Point


@dataclass(frozen=True)
class Interpolated:
    """Counts of one layer.

    Attributes:
        instructions: of one inference, without the call of the runtime.
        misses: by level.
        extrapolated: whether the point lies outside of the grid, where the nearest two counts are continued linearly.
    """

    instructions: float
    misses: dict[Level, float]
    extrapolated: bool


def interpolate(table: CostTable, point: Point) -> Interpolated | None:
    """Counts of a layer; None where the table lacks its format or form.

    Instructions are linear in each of out, in, rank and batch between two points of the grid, and so are kernels: their
    loops are nested, so a count is a sum of products of the loops' lengths.
    """
    costs = table.costs.get(point.format, {}).get(point.form)
    if costs is None:
        return None
    corners = list(_corners(table.grid, point))
    instructions = max(0.0, sum(weight * costs.instructions[index] for weight, index, _ in corners))
    misses = {level: _misses(table, costs, level, point, corners) for level in table.levels}
    return Interpolated(instructions, misses, _outside(table.grid, point))


def _corners(grid: Grid, point: Point) -> Iterator[tuple[float, int, Point]]:
    """(weight, index into the counts, point of the grid) of the cell's corners; the weights add up to 1."""
    sides, batches = len(grid.sides), len(grid.batches)
    ranks = [(1.0, 0)] if point.rank is None else [(w, i + 1) for w, i in _between(grid.ranks, point.rank)]
    axes = (_between(grid.sides, point.out_features), _between(grid.sides, point.in_features), ranks)
    for (a, i), (b, j), (c, k), (d, m) in product(*axes, _between(grid.batches, point.batch)):
        index = ((i * sides + j) * (1 + len(grid.ranks)) + k) * batches + m
        rank = None if k == 0 else grid.ranks[k - 1]
        corner = Point(point.format, point.form, grid.sides[i], grid.sides[j], rank, grid.batches[m])
        yield a * b * c * d, index, corner


def _between(axis: Sequence[int], value: int) -> list[tuple[float, int]]:
    """(weight, index) of the two neighbours of a value; outside of the axis, of the two nearest to it."""
    if value in axis or len(axis) == 1:
        return [(1.0, axis.index(value) if value in axis else 0)]
    upper = min(max(1, sum(knot < value for knot in axis)), len(axis) - 1)
    share = (value - axis[upper - 1]) / (axis[upper] - axis[upper - 1])
    return [(1.0 - share, upper - 1), (share, upper)]


def _outside(grid: Grid, point: Point) -> bool:
    pairs = [(grid.sides, point.out_features), (grid.sides, point.in_features), (grid.batches, point.batch)]
    if point.rank is not None:
        pairs.append((grid.ranks, point.rank))
    return any(not axis[0] <= value <= axis[-1] for axis, value in pairs)


def _misses(
    table: CostTable, costs: FormCosts, level: Level, point: Point, corners: list[tuple[float, int, Point]]
) -> float:
    """The knee where a working set outgrows a cache is put where it is; only the rest is taken from the corners.

    The first level has none: every call of the runtime empties it.
    """
    counts = costs.misses[level]
    if level in ("L1i", "L1d"):
        return max(0.0, sum(weight * counts[index] for weight, index, _ in corners))
    overflow = _overflow(table, level, point)
    total = overflow * _lines(table, level, point)
    for weight, index, corner in corners:
        there = _overflow(table, level, corner)
        rest = counts[index] - there * _lines(table, level, corner)
        # What a corner misses beyond one reading it only misses because it does not fit.
        total += weight * rest * (min(1.0, overflow / there) if there else 1.0)
    return max(0.0, total)


def streamed_lines(table: CostTable, level: Level, point: Point) -> float:
    """Lines that a layer brings into a unified cache if it reads its weights and activations once, in order."""
    return _overflow(table, level, point) * _lines(table, level, point)


def _overflow(table: CostTable, level: Level, point: Point) -> float:
    """Share of a layer's lines, 0 to 1, that a cache does not keep until the next inference.

    A set of an LRU cache whose lines are read in a circle keeps all or none. A working set spreads almost evenly over
    the sets: the first overflow when half a line per set is still free, the last when one and a half are too many.
    """
    size, ways, line = table.cache_geometry(level)
    call = table.calls[point.format].misses
    # What the runtime itself touches in between takes its place in the cache as well.
    beside = call["L1i"] + call["L1d"]
    over = (_lines(table, level, point) + beside) * line / size - 1.0
    return min(1.0, max(0.0, (over * ways + 0.5) / 2.0))


def _lines(table: CostTable, level: Level, point: Point) -> float:
    """Of a layer's weights and activations."""
    values = point.batch * (point.in_features + point.out_features + (point.rank or 0))
    return (point.weights * (4 if point.form == "fp32" else 1) + 4 * values) / table.cache_geometry(level)[2]
