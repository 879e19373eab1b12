"""The cache model again, as plainly as can be: what the plugin's counters are held against."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

NAMES = ("l1i", "l1d", "l2", "l3", "l4")


@dataclass(frozen=True)
class Geometry:
    size: int
    ways: int
    line: int
    shared: bool = False

    @property
    def sets(self) -> int:
        return self.size // (self.ways * self.line)

    def __str__(self) -> str:
        return f"{self.size}:{self.ways}:{self.line}" + (":shared" if self.shared else "")


class Level:
    """One cache: a dictionary of line numbers per set, the least recently used first."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.sets: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(geometry.sets)]

    def touch(self, address: int) -> bool:
        line = address // self.geometry.line
        lines = self.sets[line % self.geometry.sets]
        hit = line in lines
        lines[line] = None
        lines.move_to_end(line)
        if len(lines) > self.geometry.ways:
            lines.popitem(last=False)
        return hit


@dataclass
class Totals:
    instructions: int = 0
    accesses: int = 0
    bytes: int = 0
    misses: list[int] = field(default_factory=lambda: [0] * len(NAMES))

    def line(self) -> tuple[int, ...]:
        return (self.instructions, self.accesses, self.bytes, *self.misses)


class Hierarchy:
    """All caches of all threads; `geometries` are of l1i, l1d and the unified levels."""

    def __init__(self, geometries: Sequence[Geometry]) -> None:
        self.geometries = geometries
        self.common = [Level(geometry) for geometry in geometries]
        self.private: dict[int, list[Level]] = defaultdict(lambda: [Level(geometry) for geometry in geometries])
        self.totals = Totals()

    def feed(self, trace: Iterable[str]) -> None:
        """Lines of the plugin's trace."""
        for record in trace:
            thread, kind, address, size, *instructions = record.split()
            if kind == "i":
                self.totals.instructions += int(instructions[0])
            else:
                self.totals.accesses += 1
                self.totals.bytes += int(size)
            self._span(int(thread), 0 if kind == "i" else 1, int(address, 16), int(size))

    def _span(self, thread: int, first: int, address: int, size: int) -> None:
        line = self.geometries[first].line
        for number in range(address // line, (address + size - 1) // line + 1):
            self._fetch(thread, first, number * line)

    def _fetch(self, thread: int, first: int, address: int) -> None:
        for index in (first, *range(2, len(self.geometries))):
            level = self.common[index] if self.geometries[index].shared else self.private[thread][index]
            if level.touch(address):
                return
            self.totals.misses[index] += 1
