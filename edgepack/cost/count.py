"""Counts of one-layer files on an emulated target, each kept in the cache, and cost tables filled with them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.registry import TOOLS, KnownFormat, backend
from edgepack.backends.schemes import CONVOLVED, TABULATED
from edgepack.cost import layer_files
from edgepack.cost.emulated import (
    LEVELS,
    CallCost,
    ConvCosts,
    ConvGrid,
    CostTable,
    Deviation,
    Grid,
    HeldOut,
    Level,
    SchemeCosts,
    own_folder,
    save_table,
    table_for,
    table_identity,
    table_name,
)
from edgepack.cost.interpolate import interpolate
from edgepack.devices.device import Job
from edgepack.devices.emulated import EmulatedDevice
from edgepack.emulator.counts import Counts, middle, per_inference
from edgepack.emulator.facts import cpu_files
from edgepack.errors import TransientDeviceError
from edgepack.model.point import Point, conv_point, linear_point
from edgepack.model.scheme import Format, Scheme
from edgepack.model.structure import RANK_TILE
from edgepack.plan.candidates import break_even_rank
from edgepack.targets.target import Target
from edgepack.workspace import (
    Cache,
    Keyed,
    Progress,
    Step,
    Workspace,
    file_digest,
    open_workspace,
    record_store,
    shipped,
    silent,
)

RUNS, ROUNDS, WARMUP_RUNS = 1, 3, 1
SETTLED_SHARE, SETTLED_INSTRUCTIONS = 0.01, 500
"""How far the two rounds that agree best may lie apart; beyond both, the file is counted once more."""
GROUP_FILES, GROUP_BYTES = 120, 128 << 20
"""Of models in one process: it holds them all, some of them twice while a runtime packs their weights."""
TIMEOUT_S = 3600.0

STANDARD_GRID = Grid(sides=(16, 128, 512, 2048), ranks=(8, 32, 128, 512), batches=(1, 4, 16))
"""Counts are linear in each side between these; the batches are those at which kernels change from row to tile."""
STANDARD_CONV_GRID = ConvGrid(channels=(8, 16, 64, 256), kernels=(3, 5), sides=(7, 14))
"""A thousand million multiplications per scheme; counts go on linearly beyond, in places most of all. A tile of kernels
costs the same half empty as full, and none has fewer channels than 8."""

HELD_OUT = 24
HELD_OUT_BATCHES = (1, 1, 2, 4, 8)
HELD_OUT_KERNELS = ((1, 1), (3, 3), (5, 5), (3, 1), (1, 3))
HELD_OUT_PLACES = (49, 56, 100, 196, 196, 784)
HELD_OUT_MACS = 30_000_000
"""Of a convolution at most: channels are halved until it has no more."""
SMALLEST_SIDE = 32
FEW_LINES = 256
"""Misses below this many lines (16 KiB) are left out of the error: a share of next to nothing says nothing."""
SEED = 0


class Counter:
    """Counts points on one emulated target, and says which runtimes ran them.

    Attributes:
        device: the emulated target.
        runtimes: format → name and version.
    """

    def __init__(self, target: Target, workspace: Workspace) -> None:
        self.device = EmulatedDevice(target)
        self.runtimes: dict[Format, str] = {}
        self._workspace = workspace
        # The plugin's sources, what tells the runtimes which CPU it is, and the versions of what runs.
        folder = shipped("runtimes/emulator/cachesim.c").parent
        sources = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
        guest = [cpu_files(target)["proc/cpuinfo"], self.device.cpu, self.device.caches, self.device.qemu_version]
        self._key = [RUNS, ROUNDS, WARMUP_RUNS, sources, guest]

    def count(self, points: Iterable[Point]) -> dict[Point, Counts]:
        """Counts of one inference of the layer itself: those of the call of the runtime are taken off.

        Raises:
            ModelError: a file cannot be written.
            DeviceError: the emulated process failed.
            OutputError: the cache folder cannot be written.
        """
        points, progress = list(points), self._workspace.progress
        known = {point: self._workspace.known(COUNTS, Keyed([self._key, point])) for point in points}
        found = {point: one for point, one in known.items() if one is not None}
        missing = [point for point in points if point not in found]
        paths = layer_files.layer_files(missing, progress)
        done = len(found)
        for fmt in dict.fromkeys(point.format for point in missing):
            for group in _groups([point for point in missing if point.format == fmt], paths):
                progress(f"count {fmt} layers", done, len(points))
                found |= self._count_group(fmt, group, paths)
                done += len(group)
        progress("count layers", len(points), len(points))
        return found

    def call(self, fmt: Format) -> Counts:
        """Counts of one call of the runtime with next to nothing to compute."""
        known = self._workspace.cached(CALL, Keyed([self._key, fmt], lambda: self._run(fmt, ())[0]))
        self.runtimes[fmt] = known.runtime
        return known.counts

    def close(self) -> None:
        """Removes the device's temporary files."""
        self.device.close()

    def _count_group(self, fmt: Format, group: Sequence[Point], paths: Mapping[Point, Path]) -> dict[Point, Counts]:
        blank, every = self._run(fmt, [paths[point] for point in group])
        self._workspace.cached(CALL, Keyed([self._key, fmt], lambda: blank))  # what it counted along serves as well
        rounds: dict[Point, Sequence[Counts]] = dict(zip(group, every, strict=True))
        unsettled = [point for point in group if not _settled(*_closest(rounds[point]))]
        if unsettled:
            _, again = self._run(fmt, [paths[point] for point in unsettled])
            rounds |= {point: (*rounds[point], *more) for point, more in zip(unsettled, again, strict=True)}
        call = self.call(fmt)
        entries = {point: Keyed([self._key, point], partial(_Layer, rounds[point], call)) for point in group}
        return {point: self._workspace.cached(COUNTS, entry) for point, entry in entries.items()}

    def _run(self, fmt: Format, files: Sequence[Path]) -> tuple[_Blank, list[list[Counts]]]:
        """Raw counts of the blank model and of the files, each round apart."""
        with tempfile.TemporaryDirectory(prefix="edgepack-counts-") as folder:
            blank = Path(folder) / f"blank.{fmt}"
            backend(fmt).blank(blank)
            more = tuple(self.device.push(path) for path in files)
            job = Job(
                "marks",
                fmt,
                str(blank),
                more_models=more,
                warmup_runs=WARMUP_RUNS,
                runs=RUNS,
                rounds=ROUNDS,
                timeout_s=TIMEOUT_S,
            )
            report, found = _counted(self.device, job)
        first, *others = (per_inference(found, index) for index in range(len(files) + 1))
        return _Blank(first, f"{report['runtime']['name']} {report['runtime']['version']}"), others


@dataclass(frozen=True)
class _Blank:
    """Rounds of a model with next to nothing to compute, and the runtime that ran it, with its version."""

    rounds: Sequence[Counts]
    runtime: str


@dataclass(frozen=True)
class _Call:
    """Counts of one call of a runtime."""

    runtime: str
    counts: Counts


@dataclass(frozen=True)
class _Layer:
    """Rounds of one layer's file, and what of each is the call of the runtime."""

    rounds: Sequence[Counts]
    call: Counts


def _call_counts(blank: _Blank) -> _Call:
    return _Call(blank.runtime, middle(_closest(blank.rounds)))


def _layer_counts(layer: _Layer) -> Counts:
    return middle(_closest(layer.rounds)) - layer.call


def _unpacked_call(record: Mapping[str, Any]) -> _Call:
    return _Call(record["runtime"], Counts(**record["counts"]))


COUNTS: Step[_Layer, Counts] = Step(
    "counts", 2, _layer_counts, record_store(asdict, lambda record: Counts(**record)), tools=TOOLS
)
CALL: Step[_Blank, _Call] = Step("calls", 1, _call_counts, record_store(asdict, _unpacked_call), tools=TOOLS)


def _counted(device: EmulatedDevice, job: Job) -> tuple[Mapping[str, Any], list[tuple[int, int, Counts]]]:
    try:
        return device.count(job)
    except TransientDeviceError:
        return device.count(job)


def _closest(rounds: Sequence[Counts]) -> tuple[Counts, Counts]:
    """The two rounds that agree best: now and then something else happens in one of them, and not a small thing."""
    ordered = sorted(rounds, key=lambda one: one.instructions)
    return min(pairwise(ordered), key=lambda pair: pair[1].instructions - pair[0].instructions)


def _settled(less: Counts, more: Counts) -> bool:
    apart = more.instructions - less.instructions
    return apart <= max(SETTLED_INSTRUCTIONS, SETTLED_SHARE * more.instructions)


def _groups(points: Sequence[Point], paths: Mapping[Point, Path]) -> Iterator[list[Point]]:
    group: list[Point] = []
    size = 0
    for point in points:
        size += paths[point].stat().st_size
        if group and (len(group) == GROUP_FILES or size > GROUP_BYTES):
            yield group
            group, size = [], paths[point].stat().st_size
        group.append(point)
    if group:
        yield group


def fill_table(
    target: Target,
    grid: Grid = STANDARD_GRID,
    progress: Progress = silent,
    *,
    convolutions: ConvGrid | None = STANDARD_CONV_GRID,
    held_out: int = HELD_OUT,
    cache: Cache | None = None,
) -> CostTable:
    """Counts one layer at every point of the grids on an emulated target, and keeps the table in the cache folder.

    A table that is there already, of the same grid, emulator and runtimes, is completed by the schemes that it lacks.
    Every point that is counted is kept, so an interrupted call goes on where it was. The standard grids take some
    twenty minutes of one core, and once as much for the model files, which all targets share.

    Args:
        target: aarch64 or x86_64, with known caches.
        grid: where to count linear layers.
        progress: told of every group of points.
        convolutions: where to count convolutions; None for none.
        held_out: how many random layers between the points are counted to state the interpolation error; each in every
            scheme.
        cache: of the counts.

    Raises:
        TargetsError: a cache of the target is not known.
        DeviceError: the emulator is not installed, or an emulated process failed.
        ModelError: a model file cannot be written.
        OutputError: the cache folder cannot be written.
    """
    with (
        open_workspace(cache or Cache(), seed=SEED, progress=progress) as workspace,
        closing(Counter(target, workspace)) as counter,
    ):
        table = _known(table_for(target), _blank_table(target, grid, counter))
        others = {fmt: held_out_points(grid, fmt, held_out) for fmt in target.formats}
        costs, seen = _counted_more(table, TABULATED, others, counter)
        table = replace(table, costs=costs)
        table = replace(table, held_out=_held_out(table, table.held_out, seen))
        if convolutions is not None:
            part = table.convolutions
            if part is None or part.grid != convolutions:
                part = ConvCosts(convolutions, {fmt: {} for fmt in target.formats})
            others = {fmt: held_out_convolutions(convolutions, fmt, held_out) for fmt in target.formats}
            costs, seen = _counted_more(part, CONVOLVED, others, counter)
            part = replace(part, costs=costs)
            part = replace(part, held_out=_held_out(replace(table, convolutions=part), part.held_out, seen))
            table = replace(table, convolutions=part)
    save_table(table, own_folder() / table_name(target))
    return table


Costs = Mapping[KnownFormat, Mapping[str, SchemeCosts]]
Errors = Mapping[KnownFormat, Mapping[str, HeldOut]]


def _counted_more(
    part: CostTable | ConvCosts,
    schemes: Mapping[Format, Sequence[Scheme]],
    others: Mapping[Format, Sequence[Point]],
    counter: Counter,
) -> tuple[Costs, dict[Point, Counts]]:
    """Costs with those of the schemes that are lacking, and counts of the other points in these schemes."""
    lacking = {fmt: [scheme for scheme in schemes[fmt] if scheme.name not in own] for fmt, own in part.costs.items()}
    new = [scheme for own in lacking.values() for scheme in own]
    asked = [point for own in others.values() for point in own if point.scheme in new]
    counts = counter.count([*(point for scheme in new for point in part.grid.points(scheme)), *asked])
    costs = {
        fmt: {**own, **{scheme.name: _column(counts, part.grid, scheme) for scheme in lacking[fmt]}}
        for fmt, own in part.costs.items()
    }
    return costs, {point: counts[point] for point in asked}


def _blank_table(target: Target, grid: Grid, counter: Counter) -> CostTable:
    """A table of the target without a scheme in it."""
    core, isa, caches = table_identity(target)
    calls = {fmt: _call(counter.call(fmt)) for fmt in target.formats}
    return CostTable(
        core=core,
        isa=isa,
        caches=caches,
        emulator=f"{counter.device.qemu_version}, CPU {counter.device.cpu}",
        notes=counter.device.notes,
        runtimes=dict(counter.runtimes),
        grid=grid,
        calls=calls,
        costs={fmt: {} for fmt in target.formats},
    )


def _known(table: CostTable | None, blank: CostTable) -> CostTable:
    """The table that is there already, where what it holds was counted as the blank one would be; else the blank."""
    if table is None or set(table.costs) != set(blank.costs):
        return blank
    held = {name: getattr(table, name) for name in ("calls", "costs", "held_out", "convolutions")}
    return table if table == replace(blank, **held) else blank


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
        points += [linear_point(scheme, rows, columns, rank, batch) for scheme in TABULATED[fmt]]
    return points


def held_out_convolutions(grid: ConvGrid, fmt: Format, count: int = HELD_OUT, seed: int = SEED) -> list[Point]:
    """Random convolutions, each in every scheme: channels inside of the grid, in multiples of a tile, as those of most
    networks and all ranks are; kernels along one axis as well; places between those of the grid and beyond."""
    rng = np.random.default_rng(seed)
    points: list[Point] = []
    low, high = np.log(max(grid.channels[0], RANK_TILE)), np.log(grid.channels[-1])
    for _ in range(count):
        rows, columns = (RANK_TILE * round(float(side) / RANK_TILE) for side in np.exp(rng.uniform(low, high, 2)))
        kernel, places = HELD_OUT_KERNELS[rng.integers(len(HELD_OUT_KERNELS))], int(rng.choice(HELD_OUT_PLACES))
        while rows * columns * prod(kernel) * places > HELD_OUT_MACS:
            rows, columns = (max(RANK_TILE, side // 2 // RANK_TILE * RANK_TILE) for side in (rows, columns))
        points += [conv_point(scheme, rows, columns, kernel, places) for scheme in CONVOLVED[fmt]]
    return points


def _column(counts: Mapping[Point, Counts], grid: Grid | ConvGrid, scheme: Scheme) -> SchemeCosts:
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


def _held_out(table: CostTable, known: Errors, counts: Mapping[Point, Counts]) -> Errors:
    """Errors of the interpolation, by format and scheme: those that are known, and those at points that the table does
    not hold."""
    schemes: dict[Scheme, dict[Point, Counts]] = {}
    for point, counted in counts.items():
        schemes.setdefault(point.scheme, {})[point] = counted
    found: dict[KnownFormat, dict[str, HeldOut]] = {fmt: {**own} for fmt, own in known.items()}
    for scheme, own in schemes.items():
        found.setdefault(scheme.backend, {})[scheme.name] = _errors(table, own)
    return found


def _errors(table: CostTable, counts: Mapping[Point, Counts]) -> HeldOut:
    on_grid: list[float] = []
    between: list[float] = []
    misses: dict[Level, list[float]] = {level: [] for level in table.levels if level != "L1i"}
    for point, counted in counts.items():
        guess, part = interpolate(table, point), table.of(point)
        if guess is None or part is None:
            continue
        shares = on_grid if point.batch in part.grid.axes[-1] else between
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
