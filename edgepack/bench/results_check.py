"""What the types of a result allow and no session writes. A result may come from a stranger."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from edgepack.bench.emulated_results import EmulatedResult, EmulatedVariant
from edgepack.bench.results import BenchResult, Block, Snapshot, VariantResult
from edgepack.emulator.counts import LEVELS, Counts

MAX_VARIANTS = 64
MAX_ROUNDS = 1000
MAX_PARTS = 10_000
MAX_AGREEMENT_DB = 200.0
# Names end up in tables and terminals: no control characters, and none that turn the writing direction round.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_HASH = re.compile(r"[0-9a-f]{64}")
_CACHE = re.compile(r"(l1i|l1d|l[2-4])=[1-9]\d{0,11}:[1-9]\d{0,5}:[1-9]\d{0,4}(:shared)?", re.ASCII)
_TARGET = re.compile(r"[\w.+-]{1,100}", re.ASCII)


def problems(result: BenchResult | EmulatedResult) -> Iterator[str]:
    """What is wrong with a result, in words."""
    yield from _problems_of_variants(result.variants)
    if isinstance(result, EmulatedResult):
        yield from _problems_of_counts(result)
    else:
        yield from _problems_of_times(result)


def _problems_of_variants(variants: Sequence[VariantResult] | Sequence[EmulatedVariant]) -> Iterator[str]:
    if not 1 <= len(variants) <= MAX_VARIANTS:
        yield f"{len(variants)} variants; expected 1 to {MAX_VARIANTS}"
    keys = [(variant.name, variant.format) for variant in variants]
    if len(set(keys)) != len(keys):
        yield "two variants have the same name and format"
    if any(_UNPRINTABLE.search(text) for variant in variants for text in (variant.name, variant.file)):
        yield "a name holds control characters"
    for variant in variants:
        if variant.size_bytes < 0 or not _HASH.fullmatch(variant.sha256):
            yield f"variant {variant.name}: its size or hash is none"


def _problems_of_times(result: BenchResult) -> Iterator[str]:
    conditions = result.conditions
    if conditions.threads < 1:
        yield f"threads is {conditions.threads}; expected at least 1"
    names = [conditions.model, conditions.target, result.created, result.edgepack_version]
    names += [conditions.device.cpu_model, conditions.device.device_model, result.counters_unavailable or ""]
    names += [counter.unavailable or "" for variant in result.variants for counter in variant.counters]
    if any(_UNPRINTABLE.search(name) for name in names):
        yield "a name holds control characters"
    for fmt in sorted({variant.format for variant in result.variants} - set(result.import_only)):
        yield f"no import-only memory for {fmt}"
    for variant in result.variants:
        if not any(not block.rejected for block in variant.warm):
            yield f"variant {variant.name}: no warm latency"
        for block in (*variant.warm, *variant.cold):
            if not _possible(block):
                yield f"variant {variant.name}: round {block.round}: expected positive times"
        for memory in variant.memory:
            if not (_counted(memory.loaded) and _counted(memory.ran)):
                yield f"variant {variant.name}: a negative amount of memory"
        for counter in variant.counters:
            if counter.runs < 0 or any(count < 0 for count in counter.counts):
                yield f"variant {variant.name}: counter {counter.name} is negative"
            if counter.counts and counter.runs == 0:
                yield f"variant {variant.name}: counter {counter.name} counted no runs"
    if not all(_counted(snapshot) for snapshots in result.import_only.values() for snapshot in snapshots):
        yield "a negative amount of memory"


def _possible(block: Block) -> bool:
    times = (block.latency_s, block.clock_before_s, block.clock_after_s)
    return block.runs >= 1 and all(len(values) > 0 and min(values) > 0 for values in times)


def _counted(snapshot: Snapshot) -> bool:
    return all(value is None or value >= 0 for value in asdict(snapshot).values())


def _problems_of_counts(result: EmulatedResult) -> Iterator[str]:
    if result.threads < 1:
        yield f"threads is {result.threads}; expected at least 1"
    emulation = result.emulation
    names = [result.model, result.target, result.created, result.edgepack_version, result.inputs]
    names += [emulation.cpu, emulation.qemu, *emulation.notes]
    names += [text for item in emulation.runtimes.items() for text in item]
    for variant in result.variants:
        names += [variant.layers_missing or "", *(part.name for part in variant.layers)]
    if any(_UNPRINTABLE.search(name) for name in names):
        yield "a name holds control characters"
    if not _TARGET.fullmatch(result.target):
        yield "its target's name is none"
    levels = LEVELS[: len(emulation.caches)]
    given = tuple(cache.partition("=")[0] for cache in emulation.caches)
    whole = len(levels) >= 3 and all(_CACHE.fullmatch(cache) for cache in emulation.caches)
    if not whole or given != tuple(level.lower() for level in levels):
        yield "its caches are none: expected l1i, l1d, l2 … as name=bytes:ways:line"
    for variant in result.variants:
        yield from (f"variant {variant.name}: {problem}" for problem in _problems_of_variant(variant, levels))


def _problems_of_variant(variant: EmulatedVariant, levels: tuple[str, ...]) -> Iterator[str]:
    if not 1 <= len(variant.rounds) <= MAX_ROUNDS:
        yield f"{len(variant.rounds)} rounds; expected 1 to {MAX_ROUNDS}"
    if len(variant.layers) > MAX_PARTS:
        yield f"{len(variant.layers)} layers; expected at most {MAX_PARTS}"
    if len({(part.name, part.layer) for part in variant.layers}) != len(variant.layers):
        yield "two layers have the same name"
    if variant.agreement_db is not None and variant.agreement_db > MAX_AGREEMENT_DB:
        yield f"an agreement of {variant.agreement_db:g} dB; expected at most {MAX_AGREEMENT_DB:g}"
    for counts in variant.rounds:
        if counts.instructions <= 0 or counts.accesses < 0 or counts.bytes < 0:
            yield "its counts are not positive"
        # An access or a fetch touches two lines at most. Misses themselves are differences, and may be just below 0.
        if any(abs(misses) > 2 * (counts.instructions + counts.accesses) for misses in counts.misses.values()):
            yield "more misses than its instructions and accesses can have"
    every: list[Counts] = [*variant.rounds, *(part.counts for part in variant.layers)]
    if any(tuple(counts.misses) != levels for counts in every):
        yield f"its misses are not by {', '.join(levels)}"
