"""The JSON file of a cost table: written atomically, read as if a stranger had sent it; which table fits a target."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.resources import as_file, files
from itertools import pairwise
from math import isfinite
from pathlib import Path

from edgepack.backends.schemes import SCHEMES
from edgepack.emulator.plugin import cache_arguments
from edgepack.errors import TargetsError
from edgepack.plan.json_file import printable, read_json
from edgepack.plan.table import SCHEMA_VERSION, CostTable, Deviation, HeldOut, SchemeCosts
from edgepack.targets import Target
from edgepack.workspace import atomic_path, default_root

MAX_BYTES = 4 << 20
MAX_COUNT = 10**13
MAX_AXIS = 32
MAX_SIDE = 1 << 20
_CACHE = re.compile(r"l(1i|1d|[234])=([1-9]\d{0,10}):([1-9]\d{0,3}):([1-9]\d{0,3})(:shared)?")
_NAMES = ("l1i", "l1d", "l2", "l3", "l4")


def save_table(table: CostTable, path: Path) -> None:
    """Writes a table; the file is whole or not there.

    Raises:
        OutputError: the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(asdict(table), allow_nan=False, separators=(",", ":")) + "\n")


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
        with as_file(files("edgepack.plan").joinpath("tables")) as shipped:
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
    if not all(map(printable, texts)):
        yield "a name or note that is empty, too long or not printable"
    if not 3 <= len(table.caches) <= len(_NAMES):
        yield f"{len(table.caches)} caches, expected 3 to {len(_NAMES)}"
    for name, argument in zip(_NAMES, table.caches, strict=False):
        found = _CACHE.fullmatch(argument)
        if found is None or f"l{found[1]}" != name:
            yield f"{argument[:40]!r} is no {name} cache, expected {name}=size:ways:line"
    yield from _impossible_grid(table)
    if set(table.costs) != set(table.calls) or set(table.costs) != set(table.runtimes):
        yield "costs, calls and runtimes are not of the same formats"
    for fmt, schemes in table.costs.items():
        known_names = {scheme.name for scheme in SCHEMES[fmt]}
        if not schemes or not set(schemes) <= known_names:
            yield f"{fmt}: the schemes are {sorted(schemes)[:5]}, expected some of {', '.join(sorted(known_names))}"
        for scheme, costs in schemes.items():
            yield from _impossible_costs(table, f"{fmt} {scheme[:40]}", costs)
        if fmt in table.calls:
            call = table.calls[fmt]
            if set(call.misses) != set(table.levels) or not _counts((call.instructions, *call.misses.values())):
                yield f"{fmt}: counts of the call that cannot be"
    for fmt, errors in table.held_out.items():
        for scheme, held in errors.items():
            known = scheme in table.costs.get(fmt, {})
            if not known or not set(held.misses) <= set(table.levels) or not _possible(held):
                yield f"{fmt} {scheme[:40]}: an interpolation error that cannot be"


def _impossible_grid(table: CostTable) -> Iterator[str]:
    grid = table.grid
    for name, axis, least in (("sides", grid.sides, 2), ("ranks", grid.ranks, 1), ("batches", grid.batches, 1)):
        ascending = all(a < b for a, b in pairwise(axis))
        if not (least <= len(axis) <= MAX_AXIS and ascending and all(1 <= value <= MAX_SIDE for value in axis)):
            yield f"grid.{name}: expected {least} to {MAX_AXIS} ascending numbers of 1 to {MAX_SIDE}"


def _impossible_costs(table: CostTable, name: str, costs: SchemeCosts) -> Iterator[str]:
    if set(costs.misses) != set(table.levels):
        yield f"{name}: misses of {sorted(costs.misses)}, expected {', '.join(table.levels)}"
    for counts in (costs.instructions, *costs.misses.values()):
        if len(counts) != table.grid.size or not _counts(counts):
            yield f"{name}: expected {table.grid.size} counts of 0 to {MAX_COUNT:.0e}"


def _counts(counts: Iterable[int]) -> bool:
    return all(0 <= count <= MAX_COUNT for count in counts)


def _possible(held: HeldOut) -> bool:
    found = [held.instructions, held.between_batches, *held.misses.values()]
    deviations: list[Deviation] = [one for one in found if one is not None]
    return all(
        1 <= one.points <= 10**6 and all(isfinite(share) and share >= 0 for share in (one.median, one.p90))
        for one in deviations
    )
