"""The tables of emulated sessions as cells for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgepack.report.cells import NONE, Table, count, size, three
from edgepack.report.emulated import RUNTIME, CountRatio, EmulatedPart, EmulatedRow

EXACT_DB = 200.0
SAME = 0.01
"""Counts this close are alike: no more is repeatable."""


@dataclass(frozen=True)
class LayerTable:
    """One file's layers beside the dense int8 file's; `title` names the file."""

    title: str
    table: Table


def emulated_table(rows: Sequence[EmulatedRow]) -> Table:
    """All rows as text. Every note stands once; where there are several packs it names the model and the target."""
    levels = list(dict.fromkeys(row.last_level for row in rows))
    last = f"{levels[0]} misses" if len(levels) == 1 else "last-level misses"
    figures = ("size", "instr.", "L1d misses", last, "time bound", "agrees")
    headers = ("model", "target", "format", "variant", *figures, "vs fp32", "vs int8")
    named = len(levels) > 1
    return Table(headers, tuple(_line(row, named) for row in rows), tuple(_notes(rows)), right=figures)


def _line(row: EmulatedRow, named: bool) -> tuple[str, ...]:
    return (
        row.model,
        _target(row),
        row.format,
        row.variant,
        size(row.size_bytes),
        count(row.instructions),
        misses(row.l1d_misses),
        f"{misses(row.last_level_misses)} {row.last_level}" if named else misses(row.last_level_misses),
        NONE if row.time_low_s is None or row.time_high_s is None else span(row.time_low_s, row.time_high_s),
        NONE if row.agreement_db is None else agreement(row.agreement_db),
        fewer(row.vs_fp32),
        fewer(row.vs_int8),
    )


def _target(row: EmulatedRow) -> str:
    return row.target + (f" ({row.threads} threads)" if row.threads > 1 else "")


def _notes(rows: Sequence[EmulatedRow]) -> list[str]:
    packs = {(row.model, _target(row)) for row in rows}
    found: dict[str, None] = {}
    for row in rows:
        name = f"{row.model} for {_target(row)}: " if len(packs) > 1 else ""
        own = [other for other in rows if (other.model, _target(other)) == (row.model, _target(row))]
        for note in (*row.notes, *_own_notes(row), _repeated(own)):
            found[f"{name}{note}"] = None
    return list(found)


def _own_notes(row: EmulatedRow) -> Iterator[str]:
    if row.time_unknown is not None:
        yield f"no time bound: {row.time_unknown}"
    elif row.assumptions:
        yield f"time bound: arithmetic on the counts, no measurement; {'; '.join(row.assumptions)}"


def _repeated(rows: Sequence[EmulatedRow]) -> str:
    """How well the rounds of a session agree; a few misses more or less are a large share of few."""
    text = f"between rounds instructions differ by at most {max(row.spread_instructions for row in rows):.2%}"
    many = [row for row in rows if row.last_level_misses >= 100]
    if many:
        text += f", {many[0].last_level} misses (where over 100) by at most {max(r.spread_misses for r in many):.2%}"
    return text


def layer_tables(rows: Sequence[EmulatedRow]) -> list[LayerTable]:
    """Per model, target, threads and format the packed file's layers beside the dense int8 file's."""
    sessions: dict[tuple[str, str, str], dict[str, EmulatedRow]] = {}
    for row in rows:
        if row.parts:
            sessions.setdefault((row.model, _target(row), row.format), {})[row.variant] = row
    tables = []
    for names, variants in sessions.items():
        own = variants.get("edgepack") or next(iter(variants.values()))
        dense = variants.get("dense-int8")
        title = f"layers of {', '.join(names)}: {own.variant}"
        tables.append(LayerTable(title, _layers(own, None if dense is own else dense)))
    return tables


def _layers(own: EmulatedRow, dense: EmulatedRow | None) -> Table:
    names = ("instr.", "L1d misses", f"{own.last_level} misses")
    headers = ["layer", "rank", "share"]
    for name in names:
        headers += [name] if dense is None else [name, "dense int8"]
    ours = {(part.name, part.layer): part for part in own.parts}
    theirs = {} if dense is None else {(part.name, part.layer): part for part in dense.parts}
    keys = list(dict.fromkeys([*ours, *theirs]))
    keys.sort(key=lambda key: key == (RUNTIME, False))  # stable: only the remainder moves, to the end
    lines = [_part_line(ours.get(key), theirs.get(key), dense is not None) for key in keys]
    lines.append(_part_line(_whole(own), _whole(dense) if dense else None, dense is not None))
    return Table(tuple(headers), tuple(lines), (), right=tuple(headers[1:]))


def _whole(row: EmulatedRow) -> EmulatedPart:
    return EmulatedPart("whole", False, None, row.instructions, row.l1d_misses, row.last_level_misses, 1.0)


def _part_line(own: EmulatedPart | None, dense: EmulatedPart | None, both: bool) -> tuple[str, ...]:
    one = own or dense
    name = one.name if one is not None else NONE
    rank = ("dense" if own.rank is None else str(own.rank)) if own is not None and own.layer else ""
    cells = [name, rank, NONE if own is None else f"{own.share:.1%}"]
    for ours, theirs in zip(_figures(own), _figures(dense), strict=True):
        cells += [ours, theirs] if both else [ours]
    return tuple(cells)


def _figures(part: EmulatedPart | None) -> tuple[str, str, str]:
    if part is None:
        return NONE, NONE, NONE
    return signed(part.instructions), misses(part.l1d_misses), misses(part.last_level_misses)


def misses(value: float) -> str:
    """A count; below one is noise, and shows as 0."""
    return count(value) if value >= 1 else "0"


def signed(value: float) -> str:
    """A count that may be below zero, as a remainder may."""
    return f"-{count(-value)}" if value <= -0.5 else count(max(value, 0.0))


def span(low: float, high: float) -> str:
    """`6.1–24 µs`: two digits or the whole number, in the unit of the larger."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
    unit, scale = next((pair for pair in units if high >= 0.995 * pair[1]), units[-1])
    first, last = _two(low / scale), _two(high / scale)
    return f"{last} {unit}" if first == last else f"{first}–{last} {unit}"


def _two(value: float) -> str:
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def agreement(value: float) -> str:
    """`84 dB`; "exact" where the answers are equal."""
    return "exact" if value >= EXACT_DB else f"{value:.0f} dB"


def fewer(value: CountRatio | None) -> str:
    """`3.9× fewer instr.`; within one percent "as many instr."."""
    if value is None:
        return NONE
    ratio = value.instructions
    if abs(ratio - 1) <= SAME:
        return "as many instr."
    times, word = (ratio, "fewer") if ratio > 1 else (1 / ratio, "more")
    return f"{three(times) if times < 2 else _two(times)}× {word} instr."
