"""Counts of one-layer files on an emulated target: many in one process, each kept in the cache once it is there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgepack.backends.registry import backend
from edgepack.bench.devices.device import Job
from edgepack.bench.devices.emulated import EmulatedDevice
from edgepack.emulator.counts import Counts, middle, per_inference
from edgepack.errors import TransientDeviceError
from edgepack.model.point import Point
from edgepack.model.scheme import Format
from edgepack.pipeline import layer_files
from edgepack.targets import Target
from edgepack.workspace import TOOLS, Keyed, Step, Workspace, file_digest, record_store, shipped

RUNS, ROUNDS, WARMUP_RUNS = 1, 3, 1
SETTLED_SHARE, SETTLED_INSTRUCTIONS = 0.01, 500
"""How far the two rounds that agree best may lie apart; beyond both, the file is counted once more."""
GROUP_FILES, GROUP_BYTES = 120, 128 << 20
"""Of models in one process: it holds them all, some of them twice while a runtime packs their weights."""
TIMEOUT_S = 3600.0


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
        cluster = target.main_cluster
        # The plugin's sources, and the versions of the runtimes that it runs.
        folder = shipped("runtimes/emulator/cachesim.c").parent
        sources = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
        guest = [cluster.core, sorted(target.isa), self.device.cpu, self.device.caches, self.device.qemu_version]
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
