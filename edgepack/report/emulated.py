"""The rows of an emulated session: counts of one inference, what of them each layer has, and a bound on the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.emulator.counts import Counts, middle
from edgepack.emulator.estimate import TimeBound, time_bound
from edgepack.model.scheme import Format
from edgepack.report.compare import file_facts, file_ranks
from edgepack.report.counted import CountedFile, CountedPart, CountedSession
from edgepack.targets import Target

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


def emulated_rows(
    session: CountedSession, manifest: Mapping[str, Any] | None, target: Target | str
) -> list[EmulatedRow]:
    """Rows of one session, in its order.

    Args:
        session: every variant of one pack on one target.
        manifest: of the pack; what it lacks is None in the rows.
        target: whose constants the time bound takes, or why it is not known.
    """
    medians = {(one.format, one.name): middle(one.rounds) for one in session.variants}
    return [_row(session, one, medians, manifest or {}, target) for one in session.variants]


def _row(
    session: CountedSession,
    one: CountedFile,
    medians: Mapping[tuple[Format, str], Counts],
    manifest: Mapping[str, Any],
    target: Target | str,
) -> EmulatedRow:
    counts = medians[one.format, one.name]
    last = counts.last_level
    bound = target if isinstance(target, str) else time_bound(counts, target, session.threads)
    found = bound if isinstance(bound, TimeBound) else None
    facts = file_facts(manifest, one.name, one.format)
    line_bytes = int(session.emulation.caches[-1].split(":")[2])
    return EmulatedRow(
        model=session.model,
        target=session.target,
        threads=session.threads,
        format=one.format,
        variant=one.name,
        scheme=facts.scheme,
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
        metric_name=facts.metric_name,
        metric=facts.metric,
        drop=facts.drop,
        vs_fp32=_ratio(counts, medians.get((one.format, "dense-fp32")), one.name == "dense-fp32"),
        vs_int8=_ratio(counts, medians.get((one.format, "dense-int8")), one.name == "dense-int8"),
        assumptions=found.assumptions if found else (),
        notes=tuple(_notes(session, one, target)),
        parts=_parts(one.layers, counts, file_ranks(manifest, one.name, one.format)),
    )


def _spread(values: Sequence[float], median: float) -> float:
    return max(abs(value - median) for value in values) / max(abs(median), 1.0)


def _ratio(own: Counts, baseline: Counts | None, itself: bool) -> CountRatio | None:
    if baseline is None or itself:
        return None
    misses = own.misses[own.last_level]
    theirs = max(0.0, baseline.misses[own.last_level])
    return CountRatio(baseline.instructions / own.instructions, theirs / misses if misses >= 1 else None)


def _parts(layers: Sequence[CountedPart], whole: Counts, ranks: Mapping[str, int]) -> tuple[EmulatedPart, ...]:
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


def _notes(session: CountedSession, one: CountedFile, target: Target | str) -> list[str]:
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
        words.append(" ".join([name, _binary(int(size)), f"{ways}-way", *shared]))
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


def _binary(size_bytes: int) -> str:
    for unit, shift in (("M", 20), ("K", 10)):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.3g}{unit}"
    return str(size_bytes)
