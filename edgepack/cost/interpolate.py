"""Counts between the points of a cost table's grid.

How well this does is in every table (`CostTable.held_out`). For the shipped ones, over 24 random layers per scheme on
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

import numpy as np

from edgepack.cost.emulated import CostTable, Grid, Level, SchemeCosts
from edgepack.model.point import Point
from edgepack.model.types import Array


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


@dataclass(frozen=True)
class _Layers:
    """Layers of one format and scheme as columns (n,); `rank` is 0 for a dense layer."""

    rows: Array
    columns: Array
    rank: Array
    batch: Array
    item_bytes: float

    @property
    def weights(self) -> Array:
        pair = self.rank * (self.rows + self.columns)
        return np.where(self.rank > 0, pair, self.rows * self.columns)


def interpolate(table: CostTable, point: Point) -> Interpolated | None:
    """Counts of a layer; None where the table lacks its format or scheme."""
    found = interpolate_all(table, [point])
    return None if found is None else found[0]


def interpolate_all(table: CostTable, points: Sequence[Point]) -> list[Interpolated] | None:
    """Counts of layers, all of one format and scheme; None where the table lacks it.

    Instructions are linear in each of out, in, rank and batch between two points of the grid, and so are kernels: their
    loops are nested, so a count is a sum of products of the loops' lengths.
    """
    if not points:
        return []
    first = points[0]
    costs = table.costs.get(first.format, {}).get(first.scheme.name)
    if costs is None:
        return None
    layers = _columns(points)
    corners = list(_corners(table.grid, layers))
    counts = np.array(costs.instructions, np.float64)
    instructions = np.maximum(0.0, sum(weight * counts[index] for weight, index, _ in corners))
    misses = {level: _misses(table, costs, level, first, layers, corners) for level in table.levels}
    outside = _outside(table.grid, layers)
    return [
        Interpolated(float(instructions[i]), {level: float(misses[level][i]) for level in misses}, bool(outside[i]))
        for i in range(len(points))
    ]


def _columns(points: Sequence[Point]) -> _Layers:
    facts = np.array([(p.out_features, p.in_features, p.rank or 0, p.batch) for p in points], np.float64)
    rows, columns, rank, batch = facts.T
    return _Layers(rows, columns, rank, batch, points[0].scheme.bits_read / 8)


def _corners(grid: Grid, layers: _Layers) -> Iterator[tuple[Array, Array, _Layers]]:
    """(weight, index into the counts, point of the grid) of the cells' corners; the weights of a layer add up to 1."""
    sides, batches = len(grid.sides), len(grid.batches)
    pair = layers.rank > 0
    knots = np.array([0, *grid.ranks])
    ranks = [
        # A dense layer lies on its own plane, before that of the first rank.
        (np.where(pair, share, float(upper == 0)), np.where(pair, index + 1, 0))
        for upper, (share, index) in enumerate(_between(grid.ranks, layers.rank))
    ]
    axes = (_between(grid.sides, layers.rows), _between(grid.sides, layers.columns), ranks)
    lengths, widths = np.array(grid.sides), np.array(grid.batches)
    for (a, i), (b, j), (c, k), (d, m) in product(*axes, _between(grid.batches, layers.batch)):
        weight = a * b * c * d
        if np.any(weight):
            index = ((i * sides + j) * len(knots) + k) * batches + m
            yield weight, index, _Layers(lengths[i], lengths[j], knots[k], widths[m], layers.item_bytes)


def _between(axis: Sequence[int], values: Array) -> list[tuple[Array, Array]]:
    """(weight, index) of the two neighbours of each value; outside of the axis, of the two nearest to it."""
    if len(axis) == 1:
        return [(np.ones(len(values)), np.zeros(len(values), np.int64))]
    knots = np.array(axis, np.float64)
    upper = np.clip(np.searchsorted(knots, values), 1, len(axis) - 1)
    share = (values - knots[upper - 1]) / (knots[upper] - knots[upper - 1])
    return [(1.0 - share, upper - 1), (share, upper)]


def _outside(grid: Grid, layers: _Layers) -> Array:
    outside = np.zeros(len(layers.rows), np.bool_)
    for axis, values in ((grid.sides, layers.rows), (grid.sides, layers.columns), (grid.batches, layers.batch)):
        outside |= (values < axis[0]) | (values > axis[-1])
    return outside | (layers.rank > 0) & ((layers.rank < grid.ranks[0]) | (layers.rank > grid.ranks[-1]))


def _misses(
    table: CostTable,
    costs: SchemeCosts,
    level: Level,
    like: Point,
    layers: _Layers,
    corners: list[tuple[Array, Array, _Layers]],
) -> Array:
    """The knee where a working set outgrows a cache is put where it is; only the rest is taken from the corners.

    The first level has none: every call of the runtime empties it.
    """
    counts = np.array(costs.misses[level], np.float64)
    if level in ("L1i", "L1d"):
        return np.asarray(np.maximum(0.0, sum(weight * counts[index] for weight, index, _ in corners)))
    overflow = _overflow(table, level, like, layers)
    total = overflow * _lines(table, level, layers)
    for weight, index, corner in corners:
        there = _overflow(table, level, like, corner)
        rest = counts[index] - there * _lines(table, level, corner)
        # What a corner misses beyond one reading it only misses because it does not fit.
        total = total + weight * rest * np.where(there > 0, np.minimum(1.0, overflow / np.maximum(there, 1e-12)), 1.0)
    return np.asarray(np.maximum(0.0, total))


def _overflow(table: CostTable, level: Level, like: Point, layers: _Layers) -> Array:
    """Share of a layer's lines, 0 to 1, that a cache does not keep until the next inference.

    A set of an LRU cache whose lines are read in a circle keeps all or none. A working set spreads almost evenly over
    the sets: the first overflow when half a line per set is still free, the last when one and a half are too many.
    """
    size, ways, line = table.cache_geometry(level)
    call = table.calls[like.format].misses
    # What the runtime itself touches in between takes its place in the cache as well.
    beside = call["L1i"] + call["L1d"]
    over = (_lines(table, level, layers) + beside) * line / size - 1.0
    return np.asarray(np.clip((over * ways + 0.5) / 2.0, 0.0, 1.0))


def _lines(table: CostTable, level: Level, layers: _Layers) -> Array:
    """Of a layer's weights and activations."""
    values = layers.batch * (layers.columns + layers.rows + layers.rank)
    return np.asarray((layers.weights * layers.item_bytes + 4 * values) / table.cache_geometry(level)[2])
