"""Counts of one-layer files on an emulated target: many in one process, each kept in the cache once it is there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgepack.bench.devices.device import Job
from edgepack.bench.devices.emulated import EmulatedDevice
from edgepack.blank import write_blank
from edgepack.emulator.counts import Counts, middle, per_inference
from edgepack.errors import TransientDeviceError
from edgepack.model.scheme import Format
from edgepack.pipeline import layer_files
from edgepack.plan.table import Point
from edgepack.targets import Target
from edgepack.workspace import Cache, Progress, atomic_path, digest, file_digest, shipped, silent, tool_versions

VERSION = 1
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

    def __init__(self, target: Target, cache: Cache) -> None:
        self.device = EmulatedDevice(target)
        self.runtimes: dict[Format, str] = {}
        self._cache = cache
        cluster = target.main_cluster
        # The plugin's sources, and the versions of the runtimes that it runs.
        folder = shipped("runtimes/emulator/cachesim.c").parent
        sources = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
        guest = [cluster.core, sorted(target.isa), self.device.cpu, self.device.caches, self.device.qemu_version]
        self._key = digest(VERSION, RUNS, ROUNDS, WARMUP_RUNS, sources, guest, tool_versions())

    def count(self, points: Iterable[Point], progress: Progress = silent) -> dict[Point, Counts]:
        """Counts of one inference of the layer itself: those of the call of the runtime are taken off.

        Raises:
            ModelError: a file cannot be written.
            DeviceError: the emulated process failed.
            OutputError: the cache folder cannot be written.
        """
        points = list(points)
        found = {point: known for point in points if (known := self._known(point)) is not None}
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
        path = self._path(f"call {fmt}")
        if not path.is_file():
            self._run(fmt, ())
        record = json.loads(path.read_text())
        self.runtimes[fmt] = record["runtime"]
        return Counts(**record["counts"])

    def close(self) -> None:
        """Removes the device's temporary files."""
        self.device.close()

    def _count_group(self, fmt: Format, group: Sequence[Point], paths: Mapping[Point, Path]) -> dict[Point, Counts]:
        rounds = dict(zip(group, self._run(fmt, [paths[point] for point in group]), strict=True))
        unsettled = [point for point in group if not _settled(*_closest(rounds[point]))]
        if unsettled:
            again = self._run(fmt, [paths[point] for point in unsettled])
            rounds |= {point: (*rounds[point], *more) for point, more in zip(unsettled, again, strict=True)}
        call = self.call(fmt)
        found = {point: middle(_closest(rounds[point])) - call for point in group}
        for point, one in found.items():
            with atomic_path(self._path(point)) as out:
                out.write_text(json.dumps(asdict(one)))
        return found

    def _run(self, fmt: Format, files: Sequence[Path]) -> list[tuple[Counts, ...]]:
        """Raw counts of the files, each round apart; the blank model before them is kept in the cache, if it is new."""
        with tempfile.TemporaryDirectory(prefix="edgepack-counts-") as folder:
            blank = Path(folder) / f"blank.{fmt}"
            write_blank(blank, fmt)
            more = tuple(self.device.push(path) for path in files)
            job = Job(
                *("marks", fmt, str(blank)),
                more_models=more,
                warmup_runs=WARMUP_RUNS,
                runs=RUNS,
                rounds=ROUNDS,
                timeout_s=TIMEOUT_S,
            )
            report, found = _counted(self.device, job)
        path = self._path(f"call {fmt}")
        if not path.is_file():
            call = asdict(middle(_closest(per_inference(found, 0))))
            runtime = f"{report['runtime']['name']} {report['runtime']['version']}"
            with atomic_path(path) as out:
                out.write_text(json.dumps({"runtime": runtime, "counts": call}))
        return [tuple(per_inference(found, index)) for index in range(1, len(files) + 1)]

    def _known(self, point: Point) -> Counts | None:
        path = self._path(point)
        if self._cache.fresh or not path.is_file():
            return None
        try:
            return Counts(**json.loads(path.read_text()))
        except (ValueError, TypeError):  # damaged: it counts as absent, and is written again
            return None

    def _path(self, what: Point | str) -> Path:
        named = what if isinstance(what, str) else asdict(what)
        return self._cache.path("counts", digest(self._key, named), ".json")


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
