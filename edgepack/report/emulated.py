"""The rows of an emulated session: counts of one inference, what of them each layer has, and a bound on the time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgepack.benchmark.results import EmulatedResult, EmulatedVariant, LayerCounts
from edgepack.emulator.counts import Counts, middle
from edgepack.emulator.estimate import TimeBound, time_bound
from edgepack.model.scheme import Format
from edgepack.pack.facts import PackFacts
from edgepack.report.report import Block, Column, Field, Figure, Line, Table, Unit, hidden, make_table
from edgepack.targets.target import Target
from edgepack.units import binary

RUNTIME = "runtime"
"""The part that is the whole less all others: what the runtime does around and between them."""


@dataclass(frozen=True)
class EmulatedPart:
    """One layer, or what stands between two, of one inference.

    Attributes:
        layer: whether it is a layer of the manifest.
        rank: of a factored layer; None for a dense one and for all else.
        share: of the file's instructions.
    """

    name: str
    layer: bool
    rank: int | None
    instructions: float
    l1d_misses: float
    last_level_misses: float
    share: float


@dataclass(frozen=True)
class CountRatio:
    """A baseline's counts over this file's; above 1 is fewer. None where there is nothing to divide by."""

    instructions: float
    last_level_misses: float | None


@dataclass(frozen=True)
class EmulatedRow:
    """One model × target × format × variant; counts are of one inference. None: not known.

    Attributes:
        variant: "edgepack", "dense-fp32" or "dense-int8".
        last_level: the target's name for the cache behind which only memory is.
        memory_bytes: read from memory, a line for every last-level miss.
        spread_instructions, spread_misses: largest deviation of a round from the median, as a share of it; the
            latter of the last-level misses, of one miss where there are fewer.
        agreement_db: of the emulated answers with this machine's, 200 where they are equal.
        time_low_s, time_high_s: a bound by `assumptions`, no measurement; else `time_unknown` says why there is none.
        parts: in order of execution, the remainder `RUNTIME` last; empty where layers were not counted.
    """

    model: str
    target: str
    threads: int
    format: Format
    variant: str
    scheme: str | None
    size_bytes: int
    instructions: float
    accesses: float
    l1i_misses: float
    l1d_misses: float
    last_level: str
    last_level_misses: float
    memory_bytes: float
    spread_instructions: float
    spread_misses: float
    agreement_db: float | None
    time_low_s: float | None
    time_high_s: float | None
    time_unknown: str | None
    metric_name: str | None
    metric: float | None
    drop: float | None
    vs_fp32: CountRatio | None
    vs_int8: CountRatio | None
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    parts: tuple[EmulatedPart, ...]


def emulated_rows(session: EmulatedResult, facts: PackFacts | None, target: Target | str) -> list[EmulatedRow]:
    """Rows of one session, in its order.

    Args:
        session: every variant of one pack on one target.
        facts: of the pack; what it lacks is None in the rows.
        target: whose constants the time bound takes, or why it is not known.
    """
    medians = {(one.format, one.name): middle(one.rounds) for one in session.variants}
    return [_row(session, one, medians, facts or PackFacts(Path()), target) for one in session.variants]


def _row(
    session: EmulatedResult,
    one: EmulatedVariant,
    medians: Mapping[tuple[Format, str], Counts],
    facts: PackFacts,
    target: Target | str,
) -> EmulatedRow:
    counts = medians[one.format, one.name]
    last = counts.last_level
    bound = target if isinstance(target, str) else time_bound(counts, target, session.threads)
    found = bound if isinstance(bound, TimeBound) else None
    file = facts.file(one.name, one.format)
    line_bytes = int(session.emulation.caches[-1].split(":")[2])
    return EmulatedRow(
        model=session.model,
        target=session.target,
        threads=session.threads,
        format=one.format,
        variant=one.name,
        scheme=file.scheme,
        size_bytes=one.size_bytes,
        instructions=counts.instructions,
        accesses=counts.accesses,
        l1i_misses=counts.misses["L1i"],
        l1d_misses=counts.misses["L1d"],
        last_level=_own_names(list(counts.misses), target)[-1],
        last_level_misses=counts.misses[last],
        memory_bytes=max(0.0, counts.misses[last]) * line_bytes,
        spread_instructions=_spread([r.instructions for r in one.rounds], counts.instructions),
        spread_misses=_spread([r.misses[last] for r in one.rounds], counts.misses[last]),
        agreement_db=one.agreement_db,
        time_low_s=found.low_s if found else None,
        time_high_s=found.high_s if found else None,
        time_unknown=bound if isinstance(bound, str) else None,
        metric_name=facts.metric,
        metric=file.metric,
        drop=file.drop,
        vs_fp32=_ratio(counts, medians.get((one.format, "dense-fp32")), one.name == "dense-fp32"),
        vs_int8=_ratio(counts, medians.get((one.format, "dense-int8")), one.name == "dense-int8"),
        assumptions=found.assumptions if found else (),
        notes=tuple(_notes(session, one, target)),
        parts=_parts(one.layers, counts, file.ranks),
    )


def _spread(values: Sequence[float], median: float) -> float:
    return max(abs(value - median) for value in values) / max(abs(median), 1.0)


def _ratio(own: Counts, baseline: Counts | None, itself: bool) -> CountRatio | None:
    if baseline is None or itself:
        return None
    misses = own.misses[own.last_level]
    theirs = max(0.0, baseline.misses[own.last_level])
    return CountRatio(baseline.instructions / own.instructions, theirs / misses if misses >= 1 else None)


def _parts(layers: Sequence[LayerCounts], whole: Counts, ranks: Mapping[str, int]) -> tuple[EmulatedPart, ...]:
    if not layers:
        return ()
    rest = whole
    for layer in layers:
        rest = rest - layer.counts
    each = [(layer.name, layer.layer, layer.counts) for layer in layers] + [(RUNTIME, False, rest)]
    return tuple(
        EmulatedPart(
            name=name,
            layer=is_layer,
            rank=ranks.get(name) if is_layer else None,
            instructions=counts.instructions,
            l1d_misses=counts.misses["L1d"],
            last_level_misses=counts.misses[whole.last_level],
            share=counts.instructions / whole.instructions,
        )
        for name, is_layer, counts in each
    )


def _notes(session: EmulatedResult, one: EmulatedVariant, target: Target | str) -> list[str]:
    """What a reader must know before trusting the row."""
    emulation = session.emulation
    qemu = emulation.qemu.partition(" (")[0]
    runtimes = ", ".join(f"{name} {version}" for name, version in sorted(emulation.runtimes.items()))
    notes = [
        f"emulated, not measured: counts of one inference by {runtimes} under {qemu} -cpu {emulation.cpu}",
        f"modelled caches: {_caches_in_words(emulation.caches, target)}; LRU, no prefetcher, virtual addresses",
        *emulation.notes,
    ]
    if one.layers_missing:
        notes.append(f"the layers of {one.name} ({one.format}) were not counted: {one.layers_missing}")
    return notes


def _caches_in_words(caches: Sequence[str], target: Target | str) -> str:
    """`L1i 48K 3-way, L1d 32K 2-way, L2 1M 16-way shared`."""
    levels = ["L1i", "L1d", *(f"L{level}" for level in range(2, len(caches)))]
    words = []
    for name, text in zip(_own_names(levels, target), caches, strict=True):
        size, ways, _, *shared = text.partition("=")[2].split(":")
        words.append(" ".join([name, binary(int(size)), f"{ways}-way", *shared]))
    return ", ".join(words)


def _own_names(levels: Sequence[str], target: Target | str) -> list[str]:
    """The target's names for the modelled levels: its third level is the second modelled one if it has no second."""
    if isinstance(target, str):
        return list(levels)
    caches = {
        "L2": target.main_cluster.L2,
        "L3": target.main_cluster.L3,
        "system cache": target.system_cache,
    }
    names = ["L1i", "L1d", *(name for name, cache in caches.items() if cache is not None)]
    return names if len(names) == len(levels) else list(levels)


def emulated_blocks(rows: Sequence[EmulatedRow]) -> tuple[Block, ...]:
    """All files; for people the layers of each packed file beside the dense int8 file's, for data every part."""
    if not rows:
        return ()
    parts = [(row, part) for row in rows for part in row.parts]
    shown: tuple[Block, ...] = (_files(rows), *_layer_tables(rows))
    return (*shown, make_table(_OF_PART, parts, only="data", name="emulated parts")) if parts else shown


def _files(rows: Sequence[EmulatedRow]) -> Table:
    """Every note stands once; where there are several packs it names the model and the target."""
    levels = list(dict.fromkeys(row.last_level for row in rows))
    return make_table(_fields(levels), rows, notes=tuple(_shown_notes(rows)), lead=3, name="emulated")


def _fields(levels: Sequence[str]) -> tuple[Field[EmulatedRow], ...]:
    last = f"{levels[0]} misses" if len(levels) == 1 else "last-level misses"
    named = Column("last_level_misses", last, "figures", only="people")

    def level(row: EmulatedRow) -> Line:
        return (Figure(row.last_level_misses, "misses"), f" {row.last_level}" if len(levels) > 1 else "")

    return (
        Field(Column("model", "model")),
        Field(hidden("target")),
        Field(hidden("threads", "integer")),
        Field(Column("place", "target", only="people"), _target),
        Field(Column("format", "format")),
        Field(Column("variant", "variant")),
        Field(hidden("scheme")),
        Field(Column("size_bytes", "size", "bytes")),
        Field(Column("instructions", "instr.", "count")),
        Field(hidden("accesses", "count")),
        Field(hidden("l1i_misses", "misses")),
        Field(Column("l1d_misses", "L1d misses", "misses")),
        Field(hidden("last_level")),
        Field(hidden("last_level_misses", "misses")),
        Field(named, level),
        Field(hidden("memory_bytes", "bytes")),
        Field(hidden("spread_instructions", "share")),
        Field(hidden("spread_misses", "share")),
        Field(Column("time", "time bound", "span", parts=("time_low_s", "time_high_s")), _bound),
        Field(hidden("time_unknown")),
        Field(Column("agreement_db", "agrees", "decibels")),
        Field(hidden("metric_name")),
        Field(hidden("metric", "score")),
        Field(hidden("drop", "score")),
        *(
            Field[EmulatedRow](
                Column(key, header, "fewer", parts=(f"{key}_instructions", f"{key}_last_level_misses")),
            )
            for key, header in (("vs_fp32", "vs fp32"), ("vs_int8", "vs int8"))
        ),
        Field(hidden("assumptions", "list")),
        Field(hidden("notes", "list")),
    )


def _target(row: EmulatedRow) -> str:
    return row.target + (f" ({row.threads} threads)" if row.threads > 1 else "")


def _bound(row: EmulatedRow) -> tuple[float, float] | None:
    return None if row.time_low_s is None or row.time_high_s is None else (row.time_low_s, row.time_high_s)


def _shown_notes(rows: Sequence[EmulatedRow]) -> list[Line]:
    packs = {(row.model, _target(row)) for row in rows}
    found: dict[Line, None] = {}
    for row in rows:
        name = f"{row.model} for {_target(row)}: " if len(packs) > 1 else ""
        own = [other for other in rows if (other.model, _target(other)) == (row.model, _target(row))]
        for note in (*row.notes, *_bound_notes(row)):
            found[f"{name}{note}"] = None
        found[(name, *_repeated(own))] = None
    return list(found)


def _bound_notes(row: EmulatedRow) -> Iterator[str]:
    if row.time_unknown is not None:
        yield f"no time bound: {row.time_unknown}"
    elif row.assumptions:
        yield f"time bound: arithmetic on the counts, no measurement; {'; '.join(row.assumptions)}"


def _repeated(rows: Sequence[EmulatedRow]) -> tuple[str | Figure, ...]:
    """How well the rounds of a session agree; a few misses more or less are a large share of few."""
    worst = Figure(max(row.spread_instructions for row in rows), "fine share")
    many = [row for row in rows if row.last_level_misses >= 100]
    text = ("between rounds instructions differ by at most ", worst)
    if not many:
        return text
    level = f", {many[0].last_level} misses (where over 100) by at most "
    return (*text, level, Figure(max(row.spread_misses for row in many), "fine share"))


_Part = tuple[EmulatedRow, EmulatedPart]


def _of_row(key: str) -> Field[_Part]:
    return Field(hidden(key), lambda part: getattr(part[0], key))


def _of_part(key: str, unit: Unit = "raw") -> Field[_Part]:
    return Field(hidden(key, unit), lambda part: getattr(part[1], key))


_OF_PART: tuple[Field[_Part], ...] = (
    *map(_of_row, ("model", "target", "threads", "format", "variant", "last_level")),
    *map(_of_part, ("name", "layer")),
    _of_part("rank", "integer"),
    _of_part("instructions", "count"),
    _of_part("l1d_misses", "misses"),
    _of_part("last_level_misses", "misses"),
    _of_part("share", "share"),
)


def _layer_tables(rows: Sequence[EmulatedRow]) -> Iterator[Table]:
    """Per model, target, threads and format the packed file's layers beside the dense int8 file's."""
    sessions: dict[tuple[str, str, str], dict[str, EmulatedRow]] = {}
    for row in rows:
        if row.parts:
            sessions.setdefault((row.model, _target(row), row.format), {})[row.variant] = row
    for names, variants in sessions.items():
        own = variants.get("edgepack") or next(iter(variants.values()))
        dense = variants.get("dense-int8")
        title = f"layers of {', '.join(names)}: {own.variant}"
        yield _layers(own, None if dense is own else dense, title)


_Pair = tuple[EmulatedPart | None, EmulatedPart | None]
"""A part of the packed file and of the dense int8 file; None where a file has no such part."""


def _layers(own: EmulatedRow, dense: EmulatedRow | None, title: str) -> Table:
    figures: tuple[tuple[str, str, Unit], ...] = (
        ("instructions", "instr.", "signed count"),
        ("l1d_misses", "L1d misses", "misses"),
        ("last_level_misses", f"{own.last_level} misses", "misses"),
    )
    shown: list[Field[_Pair]] = [
        Field(Column("name", "layer"), lambda pair: next(part.name for part in pair if part is not None)),
        Field(Column("rank", "rank", "integer", missing=""), lambda pair: _rank(pair[0])),
        Field(Column("share", "share", "share"), lambda pair: None if pair[0] is None else pair[0].share),
    ]
    for key, header, unit in figures:
        shown.append(_figure(0, key, header, unit))
        if dense is not None:
            shown.append(_figure(1, key, "dense int8", unit))
    ours = {(part.name, part.layer): part for part in own.parts}
    theirs = {} if dense is None else {(part.name, part.layer): part for part in dense.parts}
    keys = list(dict.fromkeys([*ours, *theirs]))
    keys.sort(key=lambda key: key == (RUNTIME, False))  # stable: only the remainder moves, to the end
    pairs: list[_Pair] = [(ours.get(key), theirs.get(key)) for key in keys]
    pairs.append((_whole(own), None if dense is None else _whole(dense)))
    return make_table(shown, pairs, title=title, only="people")


def _figure(side: Literal[0, 1], key: str, header: str, unit: Unit) -> Field[_Pair]:
    return Field(Column(key, header, unit), lambda pair: None if pair[side] is None else getattr(pair[side], key))


def _rank(part: EmulatedPart | None) -> int | str | None:
    if part is None or not part.layer:
        return None
    return "dense" if part.rank is None else part.rank


def _whole(row: EmulatedRow) -> EmulatedPart:
    return EmulatedPart("whole", False, None, row.instructions, row.l1d_misses, row.last_level_misses, 1.0)
