"""The cost table of an emulated CPU and its file: counts of one linear layer over shapes, ranks and batches, and of one
convolution over channels, kernels and sizes of images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import as_file, files
from itertools import pairwise, product
from math import isfinite
from pathlib import Path
from typing import Literal, get_args

from edgepack.backends.registry import KnownFormat
from edgepack.backends.schemes import SCHEMES
from edgepack.emulator.plugin import cache_arguments
from edgepack.errors import TargetsError
from edgepack.model.point import Point, conv_point, is_convolution, is_linear, linear_point
from edgepack.model.scheme import Scheme
from edgepack.sealed import sealed_json
from edgepack.targets.target import Target
from edgepack.validation import plain_ascii, read_json
from edgepack.workspace import atomic_path, default_root

SCHEMA_VERSION = 1
Level = Literal["L1i", "L1d", "L2", "L3", "L4"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""Cache levels, named and ordered as in `edgepack.emulator.counts`."""

Axes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Of a grid: knots of outputs and of inputs; of what lies on planes of its own behind the first; of vectors."""

MAX_BYTES = 4 << 20
MAX_COUNT = 10**13
MAX_AXIS = 32
MAX_SIDE = 1 << 20
_CACHE = re.compile(r"l(1i|1d|[234])=([1-9]\d{0,10}):([1-9]\d{0,3}):([1-9]\d{0,3})(:shared)?")
_NAMES = ("l1i", "l1d", "l2", "l3", "l4")


@dataclass(frozen=True)
class Grid:
    """Where a table has counts of linear layers, each axis ascending; `sides` are those of both `out_features` and
    `in_features`."""

    sides: tuple[int, ...]
    ranks: tuple[int, ...]
    batches: tuple[int, ...]

    @property
    def axes(self) -> Axes:
        """Sides, what there is of a layer beside the dense one, and vectors that it multiplies."""
        return self.sides, self.ranks, self.batches

    @property
    def size(self) -> int:
        """Points of one scheme."""
        return len(self.sides) ** 2 * (1 + len(self.ranks)) * len(self.batches)

    def points(self, scheme: Scheme) -> Iterator[Point]:
        """All points of one scheme: out, in, rank (dense first) and batch, the last running fastest."""
        for rows, columns, rank, batch in product(self.sides, self.sides, (None, *self.ranks), self.batches):
            yield linear_point(scheme, rows, columns, rank, batch)


@dataclass(frozen=True)
class ConvGrid:
    """Where a table has counts of convolutions, each axis ascending.

    Attributes:
        channels: that they give, and that they take.
        kernels: sizes of square kernels; there is 1×1 beside these.
        sides: of square images.
    """

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    sides: tuple[int, ...]

    @property
    def axes(self) -> Axes:
        """Channels, places of the kernels beside that of one place, and places of the images."""
        return self.channels, _squares(self.kernels), _squares(self.sides)

    @property
    def size(self) -> int:
        """Points of one scheme."""
        return len(self.channels) ** 2 * (1 + len(self.kernels)) * len(self.sides)

    def points(self, scheme: Scheme) -> Iterator[Point]:
        """All points of one scheme: out, in, kernel (1×1 first) and image, the last running fastest."""
        kernels, places = (1, *self.kernels), _squares(self.sides)
        for rows, columns, kernel, count in product(self.channels, self.channels, kernels, places):
            yield conv_point(scheme, rows, columns, (kernel, kernel), count)


def _squares(sides: Iterable[int]) -> tuple[int, ...]:
    return tuple(side * side for side in sides)


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
class ConvCosts:
    """What an emulated CPU does for one convolution.

    Attributes:
        costs: by format and scheme.
        held_out: by format and scheme; empty where no points were held out.
    """

    grid: ConvGrid
    costs: Mapping[KnownFormat, Mapping[str, SchemeCosts]]
    held_out: Mapping[KnownFormat, Mapping[str, HeldOut]] = field(default_factory=dict)


@dataclass(frozen=True)
class CostTable:
    """What an emulated CPU does for one linear layer, or one convolution.

    Attributes:
        core, isa, caches: of the CPU: the table answers for targets that agree in all three. `caches` are as the
            emulator's plugin takes them: size, ways, line.
        emulator: QEMU's version and CPU model.
        notes: where the emulated CPU is not the target's.
        runtimes: format → name and version of what ran.
        calls: per format, counts of one call of the runtime, which no layer contains.
        costs: by format and scheme.
        held_out: by format and scheme; empty where no points were held out.
        convolutions: the same three of convolutions; None where none were counted.
    """

    core: str
    isa: tuple[str, ...]
    caches: tuple[str, ...]
    emulator: str
    notes: tuple[str, ...]
    runtimes: Mapping[KnownFormat, str]
    grid: Grid
    calls: Mapping[KnownFormat, CallCost]
    costs: Mapping[KnownFormat, Mapping[str, SchemeCosts]]
    held_out: Mapping[KnownFormat, Mapping[str, HeldOut]] = field(default_factory=dict)
    convolutions: ConvCosts | None = None
    schema_version: int = SCHEMA_VERSION

    def of(self, point: Point) -> CostTable | ConvCosts | None:
        """The grid and the counts of layers like this one; None where there are none."""
        if is_convolution(point):
            return self.convolutions
        return self if is_linear(point.ops) and not point.structure.is_correction else None

    @property
    def levels(self) -> tuple[Level, ...]:
        """The CPU's cache levels, the instruction cache first."""
        return LEVELS[: len(self.caches)]

    def cache_geometry(self, level: Level) -> tuple[int, int, int]:
        """Bytes, ways and bytes per line of one of its caches."""
        size, ways, line = self.caches[self.levels.index(level)].partition("=")[2].split(":")[:3]
        return int(size), int(ways), int(line)


def save_table(table: CostTable, path: Path) -> None:
    """Writes a table; the file is whole or not there.

    Raises:
        OutputError: the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(sealed_json(json.dumps(asdict(table), allow_nan=False, separators=(",", ":"))))


def load_table(path: Path) -> CostTable:
    """Reads a table.

    Raises:
        InputError: missing, too large, not JSON, another schema, or with values that cannot be.
    """
    return read_json(path, CostTable, "cost table", MAX_BYTES, _impossible)


def own_folder() -> Path:
    """Where tables filled on this machine are."""
    return default_root() / "tables"


def table_for(target: Target, folders: Iterable[Path] | None = None) -> CostTable | None:
    """The table of the target's core, instruction set and caches, None where there is none.

    Args:
        target: matched by what it is, not by its name: with caches of its own it gets no table of other caches.
        folders: to look in, in this order; by default the user's own tables, then the shipped ones.

    Raises:
        InputError: a table there is damaged.
    """
    try:
        identity = table_identity(target)
    except TargetsError:
        return None
    name = table_name(target)
    if folders is None:
        with as_file(files("edgepack.cost").joinpath("tables")) as shipped:
            return _first(identity, [own_folder() / name, shipped / name])
    return _first(identity, [folder / name for folder in folders])


def table_name(target: Target) -> str:
    """Name of the file that holds the table of a target.

    Raises:
        TargetsError: see `table_identity`.
    """
    core, isa, caches = table_identity(target)
    sizes = [int(argument.partition("=")[2].partition(":")[0]) // 1024 for argument in caches]
    return ".".join([core, "-".join(isa) or "plain", *(f"{size}K" for size in sizes)]) + ".json"


def table_identity(target: Target) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Core, instruction set (sorted) and caches: what decides which counts are the target's.

    Raises:
        TargetsError: a cache is not known.
    """
    return target.main_cluster.core, tuple(sorted(target.isa)), cache_arguments(target)


def _first(identity: tuple[str, tuple[str, ...], tuple[str, ...]], paths: Iterable[Path]) -> CostTable | None:
    for path in paths:
        if path.is_file():
            table = load_table(path)
            if (table.core, table.isa, table.caches) == identity:
                return table
    return None


def _impossible(table: CostTable) -> Iterator[str]:
    """What the types allow and no table holds."""
    if table.schema_version != SCHEMA_VERSION:
        yield f"schema version {table.schema_version}, expected {SCHEMA_VERSION}"
    texts = (table.core, table.emulator, *table.isa, *table.notes, *table.runtimes.values())
    if not all(map(plain_ascii, texts)):
        yield "a name or note that is empty, too long or not printable"
    if not 3 <= len(table.caches) <= len(_NAMES):
        yield f"{len(table.caches)} caches, expected 3 to {len(_NAMES)}"
    for name, argument in zip(_NAMES, table.caches, strict=False):
        found = _CACHE.fullmatch(argument)
        if found is None or f"l{found[1]}" != name:
            yield f"{argument[:40]!r} is no {name} cache, expected {name}=size:ways:line"
    if set(table.costs) != set(table.calls) or set(table.costs) != set(table.runtimes):
        yield "costs, calls and runtimes are not of the same formats"
    for fmt, call in table.calls.items():
        if set(call.misses) != set(table.levels) or not _counts((call.instructions, *call.misses.values())):
            yield f"{fmt}: counts of the call that cannot be"
    for part in (table, table.convolutions):
        if part is not None:
            yield from _impossible_grid(part.grid)
            yield from _impossible_costs(table, part)


def _impossible_grid(grid: Grid | ConvGrid) -> Iterator[str]:
    for number, (name, axis) in enumerate(asdict(grid).items()):
        least = 1 if number else 2
        ascending = all(a < b for a, b in pairwise(axis))
        if not (least <= len(axis) <= MAX_AXIS and ascending and all(1 <= value <= MAX_SIDE for value in axis)):
            yield f"grid.{name}: expected {least} to {MAX_AXIS} ascending numbers of 1 to {MAX_SIDE}"


def _impossible_costs(table: CostTable, part: CostTable | ConvCosts) -> Iterator[str]:
    if not set(part.costs) <= set(table.calls):
        yield f"costs of {sorted(part.costs)[:5]}, calls of {sorted(table.calls)}"
    for fmt, schemes in part.costs.items():
        known_names = {scheme.name for scheme in SCHEMES[fmt]}
        if not schemes or not set(schemes) <= known_names:
            yield f"{fmt}: the schemes are {sorted(schemes)[:5]}, expected some of {', '.join(sorted(known_names))}"
        for scheme, costs in schemes.items():
            if set(costs.misses) != set(table.levels):
                yield f"{fmt} {scheme[:40]}: misses of {sorted(costs.misses)}, expected {', '.join(table.levels)}"
            for counts in (costs.instructions, *costs.misses.values()):
                if len(counts) != part.grid.size or not _counts(counts):
                    yield f"{fmt} {scheme[:40]}: expected {part.grid.size} counts of 0 to {MAX_COUNT:.0e}"
    for fmt, errors in part.held_out.items():
        for scheme, held in errors.items():
            known = scheme in part.costs.get(fmt, {})
            if not known or not set(held.misses) <= set(table.levels) or not _possible(held):
                yield f"{fmt} {scheme[:40]}: an interpolation error that cannot be"


def _counts(counts: Iterable[int]) -> bool:
    return all(0 <= count <= MAX_COUNT for count in counts)


def _possible(held: HeldOut) -> bool:
    found = [held.instructions, held.between_batches, *held.misses.values()]
    deviations: list[Deviation] = [one for one in found if one is not None]
    return all(
        1 <= one.points <= 10**6 and all(isfinite(share) and share >= 0 for share in (one.median, one.p90))
        for one in deviations
    )
