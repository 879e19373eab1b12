"""Runs of guests under QEMU with the plugin, and the counters that they leave."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.runtimes.emulator.cache_model import NAMES, Geometry

FIELDS = ("instructions", "accesses", "bytes", *NAMES)
RPI4 = (Geometry(49152, 3, 64), Geometry(32768, 2, 64), Geometry(1048576, 16, 64, shared=True))
TIMEOUT_S = 120


@dataclass(frozen=True)
class Line:
    """A line of counters."""

    mark: str
    thread: int
    totals: tuple[int, ...]

    def __getitem__(self, name: str) -> int:
        return self.totals[FIELDS.index(name)]


def read_lines(path: Path) -> list[Line]:
    rows = [line.split() for line in path.read_text().splitlines()]
    assert all(len(row) == 2 + len(FIELDS) for row in rows)
    return [Line(row[0], int(row[1]), tuple(map(int, row[2:]))) for row in rows]


def intervals(lines: Sequence[Line]) -> list[dict[str, int]]:
    """What was counted from each line to the next."""
    return [{name: after[name] - before[name] for name in FIELDS} for before, after in pairwise(lines)]


def cache_arguments(geometries: Sequence[Geometry]) -> list[str]:
    return [f"{name}={geometry}" for name, geometry in zip(NAMES, geometries, strict=False)]


@dataclass(frozen=True)
class Emulator:
    qemu: str
    plugin: Path

    def command(self, guest: Sequence[str | Path], *arguments: str) -> list[str]:
        return [self.qemu, "-plugin", ",".join([str(self.plugin), *arguments]), *map(str, guest)]

    def start(self, guest: Sequence[str | Path], *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run with exactly these arguments to the plugin."""
        command = self.command(guest, *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)

    def count(
        self,
        guest: Sequence[str | Path],
        folder: Path,
        *arguments: str,
        caches: Sequence[Geometry] = RPI4,
        code: int = 0,
    ) -> list[Line]:
        """Run and read the counters; the guest has to end with this code."""
        out = folder / "counts.txt"
        done = self.start(guest, f"out={out}", *cache_arguments(caches), *arguments)
        assert done.returncode == code, done.stderr
        return read_lines(out)
