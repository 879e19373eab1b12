"""Measures layers on a device: one-layer files, many in one process, timed in turns; nothing is measured twice.

Everything goes through the `Device` protocol, so the device may be this machine or one at the end of a wire.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack.backends.registry import FACTS, FORMATS, backend
from edgepack.backends.schemes import CONVOLVED, CORRECTED, TABULATED
from edgepack.cost.layer_files import layer_files
from edgepack.cost.measured import (
    STANDARD_CONV_GRID,
    STANDARD_GRID,
    Entry,
    Fingerprint,
    MeasuredTable,
    fingerprint,
    grid_points,
    known_measured,
    save_measured,
)
from edgepack.cost.select import Shape
from edgepack.devices.device import Device, Job, probed, run_patiently
from edgepack.devices.facts import choose_cpus, facts_from_probe
from edgepack.errors import StableDeviceError, TargetsError
from edgepack.model.point import Point, linear_point, linear_point_in
from edgepack.model.scheme import Format, Scheme
from edgepack.model.structure import RANK_TILE, low_rank_correction
from edgepack.plan.candidates import break_even_rank, correction_ranks
from edgepack.targets.probe import target_from_probe
from edgepack.targets.target import Target
from edgepack.workspace import Cache, Progress, silent


@dataclass(frozen=True)
class Turns:
    """How long a layer is looked at: `rounds` turns of `turn_s` each, after a warm-up.

    Many short turns: what else runs on a device takes it for milliseconds at a time, and so spoils few of them.
    """

    rounds: int
    turn_s: float
    warmup_runs: int
    warmup_s: float


STANDARD = Turns(rounds=15, turn_s=0.001, warmup_runs=3, warmup_s=0.005)
QUICK = Turns(rounds=5, turn_s=0.001, warmup_runs=2, warmup_s=0.005)
GROUP_FILES, GROUP_BYTES = 40, 96 << 20
"""Of models in one process: it holds them all, and a runtime some of them twice while it packs their weights."""
GROUP_RAM_SHARE = 8
"""A group takes at most this part of the memory that is free on the device."""
DRIFT = 0.02
"""Of the CPU's clock during a group."""
UNDISTURBED, FEWEST = 0.97, 3
"""Share of a turn that the process had its CPU; the part of the turns that is taken at least."""
LEAST_S = 1e-9
TIMEOUT_S = 900.0


def measure_points(
    device: Device,
    target: Target,
    points: Iterable[Point],
    threads: int = 1,
    progress: Progress = silent,
    *,
    turns: Turns = STANDARD,
    cache: Cache | None = None,
) -> MeasuredTable:
    """Measures the points that are not known yet, and keeps them in the cache folder, group by group.

    Args:
        device: where to measure; the caller closes it.
        target: what it is measured as.
        points: to know afterwards.
        threads: of the inference.
        progress: told of every group.
        turns: how long each point is looked at; points known from fewer rounds are measured again.
        cache: by default the user's; with `fresh`, what is known is measured as well.

    Returns:
        Everything that is known of the device at this number of threads.

    Raises:
        TargetsError: the device is not of the target's kind.
        DeviceError: it was unreachable, lacks a runtime, or failed; what was measured before is kept.
        ModelError: a one-layer file cannot be written.
        OutputError: the cache folder cannot be written.
    """
    cache = cache or Cache()
    rig = _rig(device, target, threads, turns)
    known = known_measured(target.name, rig.fingerprint, threads, cache.root)
    table = known or MeasuredTable(rig.fingerprint, target.name, threads, _now())
    wanted = sorted(dict.fromkeys(points), key=near)
    missing = [point for point in wanted if cache.fresh or not _is_known(table, point, turns)]
    _require_runtimes(rig, missing)
    done = len(wanted) - len(missing)
    with tempfile.TemporaryDirectory(prefix="edgepack-turns-") as folder:
        for group in _groups(missing, rig.group_bytes):
            progress(f"time {group[0].format} layers", done, len(wanted))
            found = _measure(rig, group, layer_files(group), _blank(Path(folder), group[0].format))
            new = MeasuredTable(
                rig.fingerprint, target.name, threads, _now(), found.entries, found.calls, found.refused
            )
            table = save_measured(new, cache.root)
            done += len(group)
    progress("time layers", len(wanted), len(wanted))
    return table


@dataclass(frozen=True)
class _Rig:
    """A device and how it is used."""

    device: Device
    fingerprint: Fingerprint
    threads: int
    cpus: tuple[int, ...]
    turns: Turns
    group_bytes: int


@dataclass(frozen=True)
class _Found:
    entries: dict[Point, Entry] = field(default_factory=dict)
    calls: dict[Format, Entry] = field(default_factory=dict)
    refused: dict[Point, str] = field(default_factory=dict)


def _rig(device: Device, target: Target, threads: int, turns: Turns) -> _Rig:
    report = probed(device)
    facts = facts_from_probe(report, device.name)
    found = target_from_probe(report, target.name)
    mark = device_fingerprint(report)
    lacking = sorted(set(target.isa) - set(found.isa))
    if not facts.is_target(target) or lacking:
        without = f" without {', '.join(lacking)}" if lacking else ""
        cores = ", ".join(sorted({cluster.core for cluster in found.clusters}))
        raise TargetsError(
            f"{device.name} is no {target.name}: found {found.arch} {cores}{without}, expected {target.arch} "
            f"{target.main_cluster.core}",
            hint="measure on a device of that kind; this machine's own target is host",
        )
    free = int(report.get("available_bytes") or 0)
    group_bytes = min(GROUP_BYTES, free // GROUP_RAM_SHARE) if free else GROUP_BYTES
    cpus = choose_cpus(facts, list(report.get("allowed_cpus", ())), threads)
    return _Rig(device, mark, threads, cpus, turns, group_bytes)


def device_fingerprint(report: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of the device that a probe report is of."""
    installed: dict[Format, str] = {}
    for fmt, names in ((fmt, facts.runtimes) for fmt, facts in FACTS.items()):
        for name in names:
            if name in report["runtimes"]:
                installed.setdefault(fmt, f"{name} {report['runtimes'][name]['version']}")
    return fingerprint(target_from_probe(report, ""), installed)


def _require_runtimes(rig: _Rig, missing: Sequence[Point]) -> None:
    for fmt in dict.fromkeys(point.format for point in missing):
        if fmt not in rig.fingerprint.runtimes:
            raise StableDeviceError(
                f"{rig.device.name} runs no {fmt}: {' or '.join(FACTS[fmt].runtimes)} is not installed there",
                hint=f"pip install {FACTS[fmt].runtimes[0]} on the device (over SSH, --install does it), "
                f"or leave {fmt} out",
            )


def _is_known(table: MeasuredTable, point: Point, turns: Turns) -> bool:
    entry = table.entries.get(point)
    return point in table.refused or (entry is not None and entry.rounds >= turns.rounds)


def _groups(points: Sequence[Point], most_bytes: int) -> Iterator[list[Point]]:
    """Points of one format that one process can hold, neighbours together."""
    group: list[Point] = []
    size = 0
    for point in points:
        own = point.weights * point.scheme.bits // 8
        full = len(group) == GROUP_FILES or size + own > most_bytes
        if group and (full or group[0].format != point.format):
            yield group
            group, size = [], 0
        group.append(point)
        size += own
    if group:
        yield group


def _blank(folder: Path, fmt: Format) -> Path:
    path = folder / f"blank.{fmt}"
    if not path.is_file():
        backend(fmt).blank(path)
    return path


def _measure(rig: _Rig, group: Sequence[Point], paths: Mapping[Point, Path], blank: Path) -> _Found:
    """One group; where it fails for good, its halves, until the points that fail are alone."""
    try:
        report = _steady(rig, group[0].format, blank, [paths[point] for point in group])
    except StableDeviceError as err:
        if len(group) > 1:
            return _halves(rig, group, paths, blank)
        _run(rig, group[0].format, blank, [])  # if even this fails, the layer is not to blame
        return _Found(refused={group[0]: _one_line(err.message)})
    call, *layers = (_undisturbed(model) for model in report["models"])
    rounds, overhead_s = rig.turns.rounds, float(np.median(call))
    entries = {point: _entry(own, rounds, overhead_s) for point, own in zip(group, layers, strict=True)}
    return _Found(entries, {group[0].format: _entry(call, rounds)})


def _halves(rig: _Rig, group: Sequence[Point], paths: Mapping[Point, Path], blank: Path) -> _Found:
    middle = len(group) // 2
    one, other = (_measure(rig, part, paths, blank) for part in (group[:middle], group[middle:]))
    return _Found(one.entries | other.entries, one.calls | other.calls, one.refused | other.refused)


def _steady(rig: _Rig, fmt: Format, blank: Path, files: Sequence[Path]) -> Mapping[str, Any]:
    """The report of a group; where the clock of the CPU drifted meanwhile, the steadier of two."""
    report = _run(rig, fmt, blank, files)
    if _drift(report) <= DRIFT:
        return report
    return min(report, _run(rig, fmt, blank, files), key=_drift)


def _run(rig: _Rig, fmt: Format, blank: Path, files: Sequence[Path]) -> Mapping[str, Any]:
    job = Job(
        "turns",
        fmt,
        rig.device.push(blank),
        more_models=tuple(rig.device.push(path) for path in files),
        threads=rig.threads,
        cpus=rig.cpus,
        warmup_runs=rig.turns.warmup_runs,
        warmup_s=rig.turns.warmup_s,
        seconds=rig.turns.turn_s,
        rounds=rig.turns.rounds,
        timeout_s=TIMEOUT_S,
    )
    return run_patiently(rig.device, job)


def _drift(report: Mapping[str, Any]) -> float:
    before, after = min(report["clock"]["before_s"]), min(report["clock"]["after_s"])
    return abs(float(after) / float(before) - 1)


def _undisturbed(model: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Seconds per call of the turns in which nothing else had the CPU, or of the third with the most of it.

    Time alone cannot tell: where several programs want the CPU, most turns are disturbed, and the median is as well.
    """
    seconds, cpu = (np.array(model[key], np.float64) for key in ("turns_s", "cpu_s"))
    shares = cpu / seconds
    least = np.sort(shares)[-max(1, len(shares) // FEWEST)]
    return np.asarray(seconds[shares >= min(least, UNDISTURBED)])


def _entry(seconds: npt.NDArray[np.float64], rounds: int, overhead_s: float = 0.0) -> Entry:
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return Entry(max(float(middle) - overhead_s, LEAST_S), float(high - low), rounds)


def _one_line(message: str) -> str:
    """Printable ASCII of a length that a table may hold."""
    return " ".join(message.encode("ascii", "replace").decode().split())[:200] or "it failed"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def points_for(
    shapes: Iterable[Shape],
    formats: Iterable[Format] = FORMATS,
    schemes: Mapping[Format, Sequence[Scheme]] = TABULATED,
    *,
    ranks: Mapping[tuple[int, int], Iterable[int]] | None = None,
) -> list[Point]:
    """What to measure for the layers of a model: each dense and at sparse ranks up to its break-even, in all schemes.

    Where a dense matrix may have a pair beside it, that as well.

    Args:
        shapes: outputs, inputs and rows of every layer.
        formats: to measure in.
        schemes: by format.
        ranks: by outputs and inputs: measure these instead, and nothing beside a dense matrix.
    """
    shapes = dict.fromkeys(shapes)
    points = [
        linear_point(scheme, rows, columns, rank, batch)
        for fmt in formats
        for rows, columns, batch in shapes
        for rank in (None, *(sparse_ranks(rows, columns) if ranks is None else ranks.get((rows, columns), ())))
        for scheme in schemes[fmt]
    ]
    if ranks is not None:
        return points
    both = [one for fmt in formats for one in CORRECTED[fmt] if {one, one.correction} <= {*schemes[fmt]}]
    return points + [
        linear_point_in(scheme, low_rank_correction(rank), (rows, columns), batch)
        for rows, columns, batch in shapes
        for rank in correction_ranks(rows, columns)
        for scheme in both
    ]


def sparse_ranks(rows: int, columns: int) -> list[int]:
    """Multiples of the tile, each twice the one before, and the last that saves multiplications."""
    last = break_even_rank(rows, columns) // RANK_TILE * RANK_TILE
    ranks = []
    rank = RANK_TILE
    while rank < last:
        ranks.append(rank)
        rank *= 2
    return [*ranks, last] if last else []


def standard_points(formats: Iterable[Format]) -> list[Point]:
    """The standard grids in all schemes: what a device is measured at before a model is known."""
    chosen = list(formats)
    found = [point for fmt in chosen for scheme in TABULATED[fmt] for point in grid_points(STANDARD_GRID, scheme)]
    found += [point for fmt in chosen for scheme in CONVOLVED[fmt] for point in STANDARD_CONV_GRID.points(scheme)]
    return sorted(found, key=near)


def near(point: Point) -> tuple[Format, tuple[int, ...], int, int, int]:
    """Ways to write one layer are measured in one process, so that what passes there falls on them alike."""
    return point.format, point.kernel, point.batch, point.out_features, point.in_features
