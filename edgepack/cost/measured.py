"""Latencies of layers measured on one device, what stands between the measured points, and their files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise, product
from math import isfinite, isqrt, prod, sqrt
from pathlib import Path

from edgepack.backends.registry import FORMATS, KnownFormat
from edgepack.backends.schemes import layer_schemes
from edgepack.cost.emulated import ConvGrid, Grid
from edgepack.cost.model import LatencyEstimate
from edgepack.errors import InputError
from edgepack.model.point import Point, conv_point, is_convolution, is_linear, linear_point, linear_point_in
from edgepack.model.scheme import Format, Scheme
from edgepack.model.structure import structure_of
from edgepack.sealed import sealed_json
from edgepack.targets.target import Cluster, Target
from edgepack.validation import plain_ascii, read_json
from edgepack.workspace import atomic_path, default_root, digest

STANDARD_GRID = Grid(sides=(32, 128, 512, 2048), ranks=(8, 32, 128, 512), batches=(1, 4, 32))
"""Where a device is measured for layers of models yet unknown."""
STANDARD_CONV_GRID = ConvGrid(channels=(8, 32, 128), kernels=(3, 5), sides=(7, 14, 28, 56))
"""The same for convolutions."""

GRID_ERROR = 0.25
"""Usual error between the points of the standard grid, as a share: caches and tiles end between them. Medians of 24
random layers per scheme on an x86 host with AVX2: ONNX Runtime 0.14 to 0.22, LiteRT 0.10 to 0.35."""

SCHEMA_VERSION = 2
MAX_BYTES = 32 << 20
MAX_SIDE = 1 << 22
MAX_SECONDS = 3600.0
MAX_THREADS = 1024
MAX_ROUNDS = 10**6
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


_Row = tuple[KnownFormat, str, str, int, int, int | None, int]
"""A linear layer: format, scheme, structure, out, in, rank, batch."""
_ConvRow = tuple[KnownFormat, str, int, int, tuple[int, ...], int]
"""A convolution: format, scheme, channels that it gives and takes, kernel, places."""


@dataclass(frozen=True)
class Fingerprint:
    """What decides how fast a layer is on a device, and nothing else: not its kernel, not its memory's size.

    Attributes:
        cores: kind, number and top frequency of each cluster, the fastest first.
        isa: the features that choose kernels, sorted.
        caches: of each cluster: size and ways of every level that is known.
        runtimes: format → name and version.
    """

    arch: str
    cores: tuple[str, ...]
    isa: tuple[str, ...]
    caches: tuple[str, ...]
    runtimes: Mapping[KnownFormat, str]

    @property
    def digest(self) -> str:
        """16 hex digits."""
        return digest(asdict(self))[:16]


def fingerprint(probed: Target, runtimes: Mapping[Format, str]) -> Fingerprint:
    """The fingerprint of a probed device (`edgepack.targets.probe.target_from_probe`)."""
    return Fingerprint(
        arch=probed.arch,
        cores=tuple(
            f"{c.cores}x {_ascii(c.core)}{f' {c.frequency_mhz} MHz' if c.frequency_mhz else ''}"
            for c in probed.clusters
        ),
        isa=tuple(sorted(probed.isa)),
        caches=tuple(_caches(cluster) for cluster in probed.clusters),
        runtimes=dict(runtimes),
    )


def _ascii(name: str) -> str:
    """A CPU's name as its maker gives it, without the signs that not every terminal shows."""
    return name.encode("ascii", "replace").decode()[:100]


def _caches(cluster: Cluster) -> str:
    levels = (("L1d", cluster.L1d), ("L1i", cluster.L1i), ("L2", cluster.L2), ("L3", cluster.L3))
    return " ".join(f"{name}={cache.size_bytes}:{cache.ways or '?'}" for name, cache in levels if cache is not None)


@dataclass(frozen=True)
class Entry:
    """One layer, or one call of the runtime.

    Attributes:
        seconds: median over the rounds in which nothing else had the CPU, the call of the runtime taken off.
        spread_s: interquartile range over these.
        rounds: how many were measured in all.
    """

    seconds: float
    spread_s: float
    rounds: int

    @property
    def spread_share(self) -> float:
        """The spread as a share of the median."""
        return self.spread_s / self.seconds

    @property
    def error_share(self) -> float:
        """Standard error of the median as a share of it: 1.25 IQR / (1.35 √n) (McGill, Tukey and Larsen, 1978)."""
        return 1.25 / 1.35 * self.spread_share / sqrt(self.rounds)


@dataclass(frozen=True)
class MeasuredTable:
    """Latencies of one device.

    The caches are warm: a layer finds its weights in the level that they fit in, as it does in a model that fits there
    as a whole.

    Attributes:
        target: what the device was measured as.
        threads: of the inference.
        measured_at: when the last entry was added, ISO 8601 in UTC.
        entries: by point.
        calls: per format, one call of the runtime on a model with next to nothing to compute, which no entry contains.
        refused: points that the device's runtime cannot run, and why.
    """

    fingerprint: Fingerprint
    target: str
    threads: int
    measured_at: str
    entries: Mapping[Point, Entry] = field(default_factory=dict)
    calls: Mapping[Format, Entry] = field(default_factory=dict)
    refused: Mapping[Point, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """See `CostSource`."""
        return f"measured on {self.fingerprint.cores[0] if self.fingerprint.cores else self.fingerprint.arch}"

    def estimates(self, points: Sequence[Point]) -> list[LatencyEstimate | None]:
        """See `CostSource`: exact, else between two measured ranks of the same layer, else on the standard grid."""
        return [self._estimate(point) for point in points]

    def knows(self, scheme: Scheme) -> bool:
        """See `CostSource`."""
        return scheme in self._schemes

    def call_s(self, fmt: Format) -> float:
        """See `CostSource`; 0 where the format was not measured."""
        return self.calls[fmt].seconds if fmt in self.calls else 0.0

    def _estimate(self, point: Point) -> LatencyEstimate | None:
        entry = self.entries.get(point)
        if entry is not None:
            return LatencyEstimate(entry.seconds, self.name, entry.error_share)
        if point in self.refused or not (is_convolution(point) or is_linear(point.ops)):
            return None
        return self._between_ranks(point) or self._on_grid(point)

    @cached_property
    def _schemes(self) -> frozenset[Scheme]:
        return frozenset(point.scheme for points in (self.entries, self.refused) for point in points)

    @cached_property
    def _ranks(self) -> Mapping[tuple[Scheme, str, int, int, int], list[tuple[int, Entry]]]:
        """Measured ranks of every layer, ascending."""
        ranks: dict[tuple[Scheme, str, int, int, int], list[tuple[int, Entry]]] = {}
        for point, entry in self.entries.items():
            if point.rank is not None:
                ranks.setdefault(_layer(point), []).append((point.rank, entry))
        return {layer: sorted(found, key=lambda one: one[0]) for layer, found in ranks.items()}

    def _between_ranks(self, point: Point) -> LatencyEstimate | None:
        """Linear in the rank: both thin matrices are. A kernel's tile costs the same half empty as full."""
        known = self._ranks.get(_layer(point))
        if point.rank is None or known is None:
            return None
        smallest, entry = known[0]
        if point.rank < smallest:
            return LatencyEstimate(entry.seconds, self.name, entry.error_share, extrapolated=True)
        for (low, less), (high, more) in pairwise(known):
            if low < point.rank < high:
                share = (point.rank - low) / (high - low)
                seconds = less.seconds + share * (more.seconds - less.seconds)
                return LatencyEstimate(seconds, self.name, max(less.error_share, more.error_share))
        return None

    def _on_grid(self, point: Point) -> LatencyEstimate | None:
        """Linear in each of out, in, rank and batch where the standard grid encloses the point and was measured; of a
        convolution in channels, places of its kernel and of its image, and beyond that grid as well."""
        seconds, error = 0.0, GRID_ERROR
        is_conv = is_convolution(point)
        corners = conv_corners(STANDARD_CONV_GRID, point) if is_conv else grid_corners(STANDARD_GRID, point)
        for weight, corner in corners:
            entry = self.entries.get(corner)
            if entry is None:
                return None
            seconds += weight * entry.seconds
            error = max(error, entry.error_share)
        beyond = any(weight < 0 for weight, _ in corners)
        return LatencyEstimate(seconds, self.name, error, beyond) if corners and seconds > 0 else None


def _layer(point: Point) -> tuple[Scheme, str, int, int, int]:
    return point.scheme, point.structure.name, point.out_features, point.in_features, point.batch


def grid_corners(grid: Grid, point: Point) -> list[tuple[float, Point]]:
    """(weight, point of the grid) of the cell around a point; empty where the grid does not enclose it."""
    if point.structure.is_correction:
        return []
    rank: list[tuple[float, int | None]] = [(1.0, None)]
    if point.rank is not None:
        rank = [(weight, knot) for weight, knot in _neighbours(grid.ranks, max(point.rank, grid.ranks[0]))]
    sides = (_neighbours(grid.sides, point.out_features), _neighbours(grid.sides, point.in_features))
    return [
        (a * b * c * d, linear_point(point.scheme, rows, columns, knot, batch))
        for (a, rows), (b, columns), (c, knot), (d, batch) in product(
            *sides, rank, _neighbours(grid.batches, point.batch)
        )
    ]


def conv_corners(grid: ConvGrid, point: Point) -> list[tuple[float, Point]]:
    """(weight, point of the grid) of the cell around a convolution, or of the one nearest to it. Kernels of one place
    are on a plane by themselves; a tile costs the same half empty as full."""
    channels, kernels, places = grid.axes
    taken = prod(point.kernel)
    sizes = [(1.0, 1)] if taken == 1 else [(weight, isqrt(knot)) for weight, knot in _nearest(kernels, taken)]
    sides = (_nearest(channels, max(side, channels[0])) for side in (point.out_features, point.in_features))
    return [
        (a * b * c * d, conv_point(point.scheme, rows, columns, (size, size), count))
        for (a, rows), (b, columns), (c, size), (d, count) in product(*sides, sizes, _nearest(places, point.batch))
    ]


def _nearest(axis: Sequence[int], value: int) -> list[tuple[float, int]]:
    """(weight, knot) of the knots around a value; outside of the axis of the two nearest to it."""
    if value in axis:
        return [(1.0, value)]
    low, high = next((pair for pair in pairwise(axis) if value < pair[1]), axis[-2:])
    share = (value - low) / (high - low)
    return [(1.0 - share, low), (share, high)]


def _neighbours(axis: Sequence[int], value: int) -> list[tuple[float, int]]:
    """(weight, knot) of the knots around a value; empty outside of the axis."""
    if value in axis:
        return [(1.0, value)]
    for low, high in pairwise(axis):
        if low < value < high:
            share = (value - low) / (high - low)
            return [(1.0 - share, low), (share, high)]
    return []


def grid_points(grid: Grid, scheme: Scheme) -> Iterator[Point]:
    """The points of a grid that stand at the corner of a cell in which some rank saves multiplications."""
    following = dict(pairwise((0, *grid.ranks)))
    before = {high: low for low, high in following.items()}
    larger = dict(pairwise(grid.sides))
    for point in grid.points(scheme):
        if point.rank is None:
            yield point
            continue
        rows, columns = (larger.get(side, side) for side in (point.out_features, point.in_features))
        if before[point.rank] * (rows + columns) < rows * columns:
            yield point


@dataclass(frozen=True)
class _File:
    """How a table is stored: a point and its entry are one row."""

    schema_version: int
    fingerprint: Fingerprint
    target: str
    threads: int
    measured_at: str
    calls: Mapping[KnownFormat, Entry]
    entries: tuple[tuple[KnownFormat, str, str, int, int, int | None, int, float, float, int], ...]
    refused: tuple[tuple[KnownFormat, str, str, int, int, int | None, int, str], ...]
    convolutions: tuple[tuple[KnownFormat, str, int, int, tuple[int, ...], int, float, float, int], ...] = ()
    refused_convolutions: tuple[tuple[KnownFormat, str, int, int, tuple[int, ...], int, str], ...] = ()


def measured_folder(target: str, root: Path | None = None) -> Path:
    """Where the tables of a target are; `root` is the cache folder, by default the user's."""
    return (root or default_root()) / "measured" / target


def measured_path(target: str, fingerprint: Fingerprint, threads: int, root: Path | None = None) -> Path:
    """The file of one device."""
    return measured_folder(target, root) / f"{fingerprint.digest}.threads{threads}.json"


def merged(old: MeasuredTable | None, new: MeasuredTable) -> MeasuredTable:
    """Both tables of one device; where both have an entry, the one of more rounds, of equals the new one."""
    if old is None:
        return new
    entries = dict(old.entries)
    for point, entry in new.entries.items():
        if point not in entries or entries[point].rounds <= entry.rounds:
            entries[point] = entry
    refused = {point: why for point, why in {**old.refused, **new.refused}.items() if point not in entries}
    return replace(new, entries=entries, refused=refused, calls={**old.calls, **new.calls})


def save_measured(table: MeasuredTable, root: Path | None = None) -> MeasuredTable:
    """Adds a table to the file of its device, which is whole or not there, and gives what it now holds.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = measured_path(table.target, table.fingerprint, table.threads, root)
    both = merged(known_measured(table.target, table.fingerprint, table.threads, root), table)
    content = _File(
        schema_version=SCHEMA_VERSION,
        fingerprint=both.fingerprint,
        target=both.target,
        threads=both.threads,
        measured_at=both.measured_at,
        calls=both.calls,
        entries=tuple(
            (*_row(point), one.seconds, one.spread_s, one.rounds)
            for point, one in both.entries.items()
            if not is_convolution(point)
        ),
        refused=tuple((*_row(point), why) for point, why in both.refused.items() if not is_convolution(point)),
        convolutions=tuple(
            (*_conv_row(point), one.seconds, one.spread_s, one.rounds)
            for point, one in both.entries.items()
            if is_convolution(point)
        ),
        refused_convolutions=tuple(
            (*_conv_row(point), why) for point, why in both.refused.items() if is_convolution(point)
        ),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(sealed_json(json.dumps(asdict(content), allow_nan=False, separators=(",", ":"))))
    return both


def known_measured(
    target: str, fingerprint: Fingerprint, threads: int, root: Path | None = None
) -> MeasuredTable | None:
    """What has been measured on a device; a damaged file counts as absent, for it can be measured again."""
    path = measured_path(target, fingerprint, threads, root)
    if not path.is_file():
        return None
    try:
        table = load_measured(path)
    except InputError:
        return None
    return table if (table.fingerprint, table.threads) == (fingerprint, threads) else None


def tables_of(target: str, threads: int, root: Path | None = None) -> list[MeasuredTable]:
    """Every table of a target, the latest first. A damaged one is passed over.

    Attributes of the devices may differ: other boards of the same kind, other versions of a runtime.
    """
    found = []
    for path in sorted(measured_folder(target, root).glob(f"*.threads{threads}.json")):
        try:
            table = load_measured(path)
        except InputError:
            continue
        if table.threads == threads and path.name.startswith(table.fingerprint.digest):
            found.append(table)
    return sorted(found, key=lambda table: table.measured_at, reverse=True)


def load_measured(path: Path) -> MeasuredTable:
    """Reads a table.

    Raises:
        InputError: missing, too large, not JSON, another schema, or with values that cannot be.
    """
    file = read_json(path, _File, "table of measured latencies", MAX_BYTES, _impossible)
    return MeasuredTable(
        fingerprint=file.fingerprint,
        target=file.target,
        threads=file.threads,
        measured_at=file.measured_at,
        entries={_point(row[:7]): Entry(*row[7:]) for row in file.entries}
        | {_conv_point(row[:6]): Entry(*row[6:]) for row in file.convolutions},
        calls=file.calls,
        refused={_point(row[:7]): row[7] for row in file.refused}
        | {_conv_point(row[:6]): row[6] for row in file.refused_convolutions},
    )


def _row(point: Point) -> _Row:
    sides = point.out_features, point.in_features
    return point.format, point.scheme.name, point.structure.name, *sides, point.rank, point.batch


def _point(row: _Row) -> Point:
    fmt, name, structure, rows, columns, rank, batch = row
    return linear_point_in(layer_schemes(fmt)[name], structure_of(structure, rank), (rows, columns), batch)


def _conv_row(point: Point) -> _ConvRow:
    return point.format, point.scheme.name, point.out_features, point.in_features, point.kernel, point.batch


def _conv_point(row: _ConvRow) -> Point:
    fmt, name, rows, columns, kernel, places = row
    return conv_point(layer_schemes(fmt)[name], rows, columns, kernel, places)


def _impossible(file: _File) -> Iterator[str]:
    """What the types allow and no table holds."""
    if file.schema_version != SCHEMA_VERSION:
        yield f"schema version {file.schema_version}, expected {SCHEMA_VERSION}"
    mark = file.fingerprint
    reasons = [*(row[7] for row in file.refused), *(row[6] for row in file.refused_convolutions)]
    if not all(map(plain_ascii, (file.target, mark.arch, *mark.cores, *mark.isa, *mark.runtimes.values(), *reasons))):
        yield "a name or reason that is empty, too long or not printable"
    if not all(plain_ascii(text or " ") for text in mark.caches):
        yield "caches that are not printable"
    if not 1 <= file.threads <= MAX_THREADS:
        yield f"{file.threads} threads, expected 1 to {MAX_THREADS}"
    if not _DATE.fullmatch(file.measured_at):
        yield "measured_at is no date in UTC"
    if not {row[0] for row in (*file.entries, *file.convolutions)} <= set(file.calls) or not set(file.calls) <= set(
        FORMATS
    ):
        yield "entries and calls are not of the same formats"
    for row in (*(entry[:7] for entry in file.entries), *(refused[:7] for refused in file.refused)):
        if not _possible_point(row):
            yield f"{row[0]} {row[1][:40]!r} {row[2][:40]!r}: a layer that cannot be"
    for conv in (*(entry[:6] for entry in file.convolutions), *(refused[:6] for refused in file.refused_convolutions)):
        if not _possible_convolution(conv):
            yield f"{conv[0]} {conv[1][:40]!r}: a convolution that cannot be"
    measured = (*(Entry(*row[7:]) for row in file.entries), *(Entry(*row[6:]) for row in file.convolutions))
    for entry in (*file.calls.values(), *measured):
        sane = isfinite(entry.seconds) and 0 < entry.seconds <= MAX_SECONDS
        steady = isfinite(entry.spread_s) and 0 <= entry.spread_s <= MAX_SECONDS
        if not (sane and steady and 1 <= entry.rounds <= MAX_ROUNDS):
            yield "a latency that cannot be"


def _possible_point(row: _Row) -> bool:
    fmt, name, structure, rows, columns, rank, batch = row
    scheme = layer_schemes(fmt).get(name)
    if scheme is None or not all(1 <= side <= MAX_SIDE for side in (rows, columns, batch, 1 if rank is None else rank)):
        return False
    try:
        found = structure_of(structure, rank)
    except ValueError:
        return False
    return not found.is_constexpr and (scheme.correction is not None or not found.is_correction)


def _possible_convolution(row: _ConvRow) -> bool:
    fmt, name, rows, columns, kernel, places = row
    sides = (rows, columns, places, *kernel)
    return name in layer_schemes(fmt) and len(kernel) in (1, 2) and all(1 <= side <= MAX_SIDE for side in sides)
