"""Fills a cost table for an emulated target: counts every point of a grid, and others to see how it interpolates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from edgepack.backends.schemes import SCHEMES
from edgepack.emulator.counts import Counts
from edgepack.model.point import Point, linear_point
from edgepack.model.scheme import Format, Scheme
from edgepack.pipeline.counting import Counter
from edgepack.plan.candidates import RANK_TILE, break_even_rank
from edgepack.plan.interpolate import interpolate
from edgepack.plan.table import LEVELS, CallCost, CostTable, Deviation, Grid, HeldOut, Level, SchemeCosts
from edgepack.plan.table_file import own_folder, save_table, table_identity, table_name
from edgepack.targets import Target
from edgepack.workspace import Cache, Progress, open_workspace, silent

STANDARD_GRID = Grid(sides=(16, 128, 512, 2048), ranks=(8, 32, 128, 512), batches=(1, 4, 16))
"""Counts are linear in each side between these; the batches are those at which kernels change from row to tile."""

HELD_OUT = 24
HELD_OUT_BATCHES = (1, 1, 2, 4, 8)
SMALLEST_SIDE = 32
FEW_LINES = 256
"""Misses below this many lines (16 KiB) are left out of the error: a share of next to nothing says nothing."""
SEED = 0


def fill_table(
    target: Target,
    grid: Grid = STANDARD_GRID,
    progress: Progress = silent,
    *,
    held_out: int = HELD_OUT,
    cache: Cache | None = None,
) -> CostTable:
    """Counts one linear layer at every point of a grid on an emulated target, and keeps the table in the cache folder.

    Every point that is counted is kept, so an interrupted call goes on where it was. The standard grid takes some ten
    minutes of one core, and once as much for the model files, which all targets share.

    Args:
        target: aarch64 or x86_64, with known caches.
        grid: where to count.
        progress: told of every group of points.
        held_out: how many random layers between the points are counted to state the interpolation error; each in every
            scheme.
        cache: of the counts.

    Raises:
        TargetsError: a cache of the target is not known.
        DeviceError: the emulator is not installed, or an emulated process failed.
        ModelError: a model file cannot be written.
        OutputError: the cache folder cannot be written.
    """
    core, isa, caches = table_identity(target)
    with (
        open_workspace(cache or Cache(), seed=SEED, progress=progress) as workspace,
        closing(Counter(target, workspace)) as counter,
    ):
        points = [p for fmt in target.formats for scheme in SCHEMES[fmt] for p in grid.points(scheme)]
        others = [p for fmt in target.formats for p in held_out_points(grid, fmt, held_out)]
        counts = counter.count([*points, *others])
        calls = {fmt: _call(counter.call(fmt)) for fmt in target.formats}
        table = CostTable(
            core=core,
            isa=isa,
            caches=caches,
            emulator=f"{counter.device.qemu_version}, CPU {counter.device.cpu}",
            notes=counter.device.notes,
            runtimes=dict(counter.runtimes),
            grid=grid,
            calls=calls,
            costs={
                fmt: {scheme.name: _column(counts, grid, scheme) for scheme in SCHEMES[fmt]} for fmt in target.formats
            },
        )
    if others:
        table = replace(table, held_out=_held_out(table, {point: counts[point] for point in others}))
    save_table(table, own_folder() / table_name(target))
    return table


def held_out_points(grid: Grid, fmt: Format, count: int = HELD_OUT, seed: int = SEED) -> list[Point]:
    """Random layers inside of the grid, each in every scheme: ragged sides, every other one a pair that may pay.

    The last third have sides in the upper half of the grid, where working sets pass the sizes of caches.
    """
    rng = np.random.default_rng(seed)
    low, high = max(grid.sides[0], SMALLEST_SIDE), grid.sides[-1]
    points: list[Point] = []
    for index in range(count):
        large = index >= count * 2 // 3
        sides = rng.uniform(high / 4, high, 2) if large else np.exp(rng.uniform(np.log(low), np.log(high), 2))
        rows, columns = map(int, sides)
        batch = int(rng.choice([batch for batch in HELD_OUT_BATCHES if batch <= grid.batches[-1]] or grid.batches))
        tiles = min(break_even_rank(rows, columns), grid.ranks[-1]) // RANK_TILE
        rank = RANK_TILE * int(np.exp(rng.uniform(0, np.log(tiles + 0.999)))) if index % 2 and tiles else None
        points += [linear_point(scheme, rows, columns, rank, batch) for scheme in SCHEMES[fmt]]
    return points


def _column(counts: Mapping[Point, Counts], grid: Grid, scheme: Scheme) -> SchemeCosts:
    own = [counts[point] for point in grid.points(scheme)]
    levels = LEVELS[: len(own[0].misses)]
    misses = {level: tuple(_whole(one.misses[level]) for one in own) for level in levels}
    return SchemeCosts(tuple(_whole(one.instructions) for one in own), misses)


def _call(counts: Counts) -> CallCost:
    levels = LEVELS[: len(counts.misses)]
    return CallCost(_whole(counts.instructions), {level: _whole(counts.misses[level]) for level in levels})


def _whole(count: float) -> int:
    """Rounded; a difference of two counts of next to nothing may come out below it."""
    return max(0, round(count))


def _held_out(table: CostTable, counts: Mapping[Point, Counts]) -> dict[Format, dict[str, HeldOut]]:
    """Errors of the interpolation at points that the table does not hold, by format and scheme."""
    found: dict[Format, dict[str, HeldOut]] = {}
    for fmt, schemes in table.costs.items():
        own = {
            scheme: {p: c for p, c in counts.items() if (p.format, p.scheme.name) == (fmt, scheme)}
            for scheme in schemes
        }
        found[fmt] = {scheme: _errors(table, points) for scheme, points in own.items()}
    return found


def _errors(table: CostTable, counts: Mapping[Point, Counts]) -> HeldOut:
    on_grid: list[float] = []
    between: list[float] = []
    misses: dict[Level, list[float]] = {level: [] for level in table.levels if level != "L1i"}
    for point, counted in counts.items():
        guess = interpolate(table, point)
        if guess is None:
            continue
        shares = on_grid if point.batch in table.grid.batches else between
        shares.append(abs(guess.instructions / counted.instructions - 1))
        for level, missed in misses.items():
            if max(counted.misses[level], guess.misses[level]) >= FEW_LINES:
                missed.append(abs(guess.misses[level] - counted.misses[level]) / max(counted.misses[level], FEW_LINES))
    return HeldOut(
        _deviation(on_grid),
        _deviation(between) if between else None,
        {level: _deviation(missed) if missed else None for level, missed in misses.items()},
    )


def _deviation(shares: Sequence[float]) -> Deviation:
    median, p90 = np.quantile(shares, [0.5, 0.9])
    return Deviation(len(shares), round(float(median), 4), round(float(p90), 4))
