"""Counts between the points of a cost table's grid.

How well this does is in every table (`CostTable.held_out`). For the shipped ones, over 24 random layers per scheme on
four CPUs, the error relative to the count has these medians and 90th percentiles:

- instructions at batches of the grid (1, 4, 16): ONNX Runtime 1 % and 2 to 6 %, LiteRT int8 1 to 3 % and 6 to 17 %,
  LiteRT fp32 1 % and 24 to 44 %, for its kernels change with the remainder of the sides by 8;
- instructions between those batches: ONNX Runtime 1 to 4 % and 1 to 7 %; LiteRT up to 36 % and 54 %, for it takes rows
  by tiles, and two rows often cost what four do;
- L1d misses: 1 to 9 % and 7 to 46 %;
- last-level misses: 1 to 6 % where a working set is clearly larger than the cache, and up to all of them at the knee.

Of 24 random convolutions per scheme on a Cortex-A72, instructions at the images of the grid were 0 to 5 % off (90 %:
1 to 9 %), at others, four times as large ones among them, 1 to 5 % (90 %: 2 to 8 %, ONNX Runtime fp32 21 %, for its
kernels take places by tiles); L1d misses in LiteRT 70 to 78 %, which are a small share of its time.

Beyond the grid everything is continued linearly. On a Cortex-A72, instructions at 32 and 128 rows and at sides of 4096
and 8000 came out within 4 %, those at 10 outputs up to 74 % too low.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from edgepack.cost.emulated import Axes, CostTable, Level, SchemeCosts
from edgepack.model.point import Point, is_convolution
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
    """Layers of one kind, format and scheme as columns (n,).

    Attributes:
        rows, columns: outputs and inputs, channels of convolutions.
        steps: ranks, 0 of a dense layer; of convolutions the places of their kernels, 0 of a kernel of one place.
        vectors: that one inference multiplies.
        item_bytes: of a weight.
        convolved: whether they are convolutions.
    """

    rows: Array
    columns: Array
    steps: Array
    vectors: Array
    item_bytes: float
    convolved: bool

    @property
    def weights(self) -> Array:
        dense = self.rows * self.columns
        if self.convolved:
            return dense * np.maximum(self.steps, 1)
        return np.where(self.steps > 0, self.steps * (self.rows + self.columns), dense)

    @property
    def values(self) -> Array:
        """Of their inputs, outputs, and what stands between two factors."""
        return self.vectors * (self.columns + self.rows + (0 if self.convolved else self.steps))


def interpolate(table: CostTable, point: Point) -> Interpolated | None:
    """Counts of a layer; None where the table lacks its kind, format or scheme."""
    found = interpolate_all(table, [point])
    return None if found is None else found[0]


def interpolate_all(table: CostTable, points: Sequence[Point]) -> list[Interpolated] | None:
    """Counts of layers, all of one kind, format and scheme; None where the table lacks it.

    Instructions are linear in each of out, in, rank or places of a kernel, and vectors between two points of the grid,
    and so are kernels: their loops are nested, so a count is a sum of products of the loops' lengths. A kernel of one
    place is no patch, and a plane by itself.
    """
    if not points:
        return []
    first = points[0]
    part = table.of(first)
    costs = None if part is None else part.costs.get(first.format, {}).get(first.scheme.name)
    if part is None or costs is None:
        return None
    axes, layers = part.grid.axes, _columns(points)
    corners = list(_corners(axes, layers))
    counts = np.array(costs.instructions, np.float64)
    instructions = np.maximum(0.0, sum(weight * counts[index] for weight, index, _ in corners))
    misses = {level: _misses(table, costs, level, first, layers, corners) for level in table.levels}
    outside = _outside(axes, layers)
    return [
        Interpolated(float(instructions[i]), {level: float(misses[level][i]) for level in misses}, bool(outside[i]))
        for i in range(len(points))
    ]


def _columns(points: Sequence[Point]) -> _Layers:
    facts = np.array([(p.out_features, p.in_features, _step(p), p.batch) for p in points], np.float64)
    rows, columns, steps, vectors = facts.T
    return _Layers(rows, columns, steps, vectors, points[0].scheme.bits_read / 8, is_convolution(points[0]))


def _step(point: Point) -> int:
    places = prod(point.kernel)
    return places if places > 1 else point.rank or 0


def _corners(axes: Axes, layers: _Layers) -> Iterator[tuple[Array, Array, _Layers]]:
    """(weight, index into the counts, point of the grid) of the cells' corners; the weights of a layer add up to 1."""
    sides, steps, vectors = axes
    beside = layers.steps > 0
    knots = np.array([0, *steps])
    planes = [
        # A dense layer, or a kernel of one place, lies on its own plane, before the first step.
        (np.where(beside, share, float(upper == 0)), np.where(beside, index + 1, 0))
        for upper, (share, index) in enumerate(_between(steps, layers.steps))
    ]
    every = (_between(sides, layers.rows), _between(sides, layers.columns), planes, _between(vectors, layers.vectors))
    lengths, widths = np.array(sides), np.array(vectors)
    for (a, i), (b, j), (c, k), (d, m) in product(*every):
        weight = a * b * c * d
        if np.any(weight):
            index = ((i * len(sides) + j) * len(knots) + k) * len(vectors) + m
            there = (lengths[i], lengths[j], knots[k], widths[m])
            yield weight, index, _Layers(*there, layers.item_bytes, layers.convolved)


def _between(axis: Sequence[int], values: Array) -> list[tuple[Array, Array]]:
    """(weight, index) of the two neighbours of each value; outside of the axis, of the two nearest to it."""
    if len(axis) == 1:
        return [(np.ones(len(values)), np.zeros(len(values), np.int64))]
    knots = np.array(axis, np.float64)
    upper = np.clip(np.searchsorted(knots, values), 1, len(axis) - 1)
    share = (values - knots[upper - 1]) / (knots[upper] - knots[upper - 1])
    return [(1.0 - share, upper - 1), (share, upper)]


def _outside(axes: Axes, layers: _Layers) -> Array:
    sides, steps, vectors = axes
    outside = np.zeros(len(layers.rows), np.bool_)
    for axis, values in ((sides, layers.rows), (sides, layers.columns), (vectors, layers.vectors)):
        outside |= (values < axis[0]) | (values > axis[-1])
    return outside | (layers.steps > 0) & ((layers.steps < steps[0]) | (layers.steps > steps[-1]))


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
    return np.asarray((layers.weights * layers.item_bytes + 4 * layers.values) / table.cache_geometry(level)[2])
