"""The cost table of an emulated CPU, as data: counts of one linear layer over a grid of shapes, ranks and batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, get_args

from edgepack.model.point import Point, linear_point
from edgepack.model.scheme import Format, Scheme

SCHEMA_VERSION = 1
Level = Literal["L1i", "L1d", "L2", "L3", "L4"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""Cache levels, named and ordered as in `edgepack.emulator.counts`."""


@dataclass(frozen=True)
class Grid:
    """Where a table has counts, each axis ascending; `sides` are those of both `out_features` and `in_features`."""

    sides: tuple[int, ...]
    ranks: tuple[int, ...]
    batches: tuple[int, ...]

    @property
    def size(self) -> int:
        """Points of one scheme."""
        return len(self.sides) ** 2 * (1 + len(self.ranks)) * len(self.batches)

    def points(self, scheme: Scheme) -> Iterator[Point]:
        """All points of one scheme: out, in, rank (dense first) and batch, the last running fastest."""
        for rows, columns, rank, batch in product(self.sides, self.sides, (None, *self.ranks), self.batches):
            yield linear_point(scheme, rows, columns, rank, batch)


@dataclass(frozen=True)
class SchemeCosts:
    """Counts of one scheme in the order of `Grid.points`, those of the call of the runtime taken off."""

    instructions: tuple[int, ...]
    misses: Mapping[Level, tuple[int, ...]]


@dataclass(frozen=True)
class CallCost:
    """Counts of one inference of a model with next to nothing to compute."""

    instructions: int
    misses: Mapping[Level, int]


@dataclass(frozen=True)
class Deviation:
    """|interpolated − counted| over the held-out points, as a share of the counted value.

    Attributes:
        points: how many were compared.
    """

    points: int
    median: float
    p90: float


@dataclass(frozen=True)
class HeldOut:
    """How well a scheme is interpolated between the points of its grid.

    Attributes:
        instructions: of layers at the grid's batches.
        between_batches: the same at batches between them, where counts go up in steps and not along a line, for kernels
            take rows by tiles. None where no such layer was held out.
        misses: by level, over the points that miss there at all to speak of; None where none
            does.
    """

    instructions: Deviation
    between_batches: Deviation | None
    misses: Mapping[Level, Deviation | None]


@dataclass(frozen=True)
class CostTable:
    """What an emulated CPU does for one linear layer.

    Attributes:
        core, isa, caches: of the CPU: the table answers for targets that agree in all three. `caches` are as the
            emulator's plugin takes them: size, ways, line.
        emulator: QEMU's version and CPU model.
        notes: where the emulated CPU is not the target's.
        runtimes: format → name and version of what ran.
        calls: per format, counts of one call of the runtime, which no layer contains.
        costs: by format and scheme.
        held_out: by format and scheme; empty where no points were held out.
    """

    core: str
    isa: tuple[str, ...]
    caches: tuple[str, ...]
    emulator: str
    notes: tuple[str, ...]
    runtimes: Mapping[Format, str]
    grid: Grid
    calls: Mapping[Format, CallCost]
    costs: Mapping[Format, Mapping[str, SchemeCosts]]
    held_out: Mapping[Format, Mapping[str, HeldOut]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def levels(self) -> tuple[Level, ...]:
        """The CPU's cache levels, the instruction cache first."""
        return LEVELS[: len(self.caches)]

    def cache_geometry(self, level: Level) -> tuple[int, int, int]:
        """Bytes, ways and bytes per line of one of its caches."""
        size, ways, line = self.caches[self.levels.index(level)].partition("=")[2].split(":")[:3]
        return int(size), int(ways), int(line)
