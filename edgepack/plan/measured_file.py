"""The JSON files of measured latencies: one per device and number of threads, in the cache folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path

from edgepack.backends.schemes import layer_schemes
from edgepack.errors import InputError
from edgepack.model.point import Point, linear_point_in
from edgepack.model.scheme import FORMATS, Format
from edgepack.model.structure import structure_of
from edgepack.plan.json_file import printable, read_json
from edgepack.plan.measured import Entry, Fingerprint, MeasuredTable
from edgepack.workspace import atomic_path, default_root

SCHEMA_VERSION = 2
MAX_BYTES = 32 << 20
MAX_SIDE = 1 << 22
MAX_SECONDS = 3600.0
MAX_THREADS = 1024
MAX_ROUNDS = 10**6
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


_Row = tuple[Format, str, str, int, int, int | None, int]
"""A point: format, scheme, structure, out, in, rank, batch."""


@dataclass(frozen=True)
class _File:
    """How a table is stored: a point and its entry are one row."""

    schema_version: int
    fingerprint: Fingerprint
    target: str
    threads: int
    measured_at: str
    calls: Mapping[Format, Entry]
    entries: tuple[tuple[Format, str, str, int, int, int | None, int, float, float, int], ...]
    refused: tuple[tuple[Format, str, str, int, int, int | None, int, str], ...]


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
        entries=tuple((*_row(point), one.seconds, one.spread_s, one.rounds) for point, one in both.entries.items()),
        refused=tuple((*_row(point), why) for point, why in both.refused.items()),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(asdict(content), allow_nan=False, separators=(",", ":")) + "\n")
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
        entries={_point(row[:7]): Entry(*row[7:]) for row in file.entries},
        calls=file.calls,
        refused={_point(row[:7]): row[7] for row in file.refused},
    )


def _row(point: Point) -> _Row:
    sides = point.out_features, point.in_features
    return point.format, point.scheme.name, point.structure.name, *sides, point.rank, point.batch


def _point(row: _Row) -> Point:
    fmt, name, structure, rows, columns, rank, batch = row
    return linear_point_in(layer_schemes(fmt)[name], structure_of(structure, rank), (rows, columns), batch)


def _impossible(file: _File) -> Iterator[str]:
    """What the types allow and no table holds."""
    if file.schema_version != SCHEMA_VERSION:
        yield f"schema version {file.schema_version}, expected {SCHEMA_VERSION}"
    mark = file.fingerprint
    reasons = (row[7] for row in file.refused)
    if not all(map(printable, (file.target, mark.arch, *mark.cores, *mark.isa, *mark.runtimes.values(), *reasons))):
        yield "a name or reason that is empty, too long or not printable"
    if not all(printable(text or " ") for text in mark.caches):
        yield "caches that are not printable"
    if not 1 <= file.threads <= MAX_THREADS:
        yield f"{file.threads} threads, expected 1 to {MAX_THREADS}"
    if not _DATE.fullmatch(file.measured_at):
        yield "measured_at is no date in UTC"
    if not {row[0] for row in file.entries} <= set(file.calls) or not set(file.calls) <= set(FORMATS):
        yield "entries and calls are not of the same formats"
    for row in (*(entry[:7] for entry in file.entries), *(refused[:7] for refused in file.refused)):
        if not _possible_point(row):
            yield f"{row[0]} {row[1][:40]!r} {row[2][:40]!r}: a layer that cannot be"
    for entry in (*file.calls.values(), *(Entry(*row[7:]) for row in file.entries)):
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
