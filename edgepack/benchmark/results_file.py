"""The JSON file of a result: written atomically, read as if a stranger had sent it."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edgepack.benchmark.results import BenchResult, Block, EmulatedResult, EmulatedVariant, Snapshot, VariantResult
from edgepack.emulator.counts import LEVELS, Counts
from edgepack.errors import PackError
from edgepack.pack.folder import RESULTS
from edgepack.validation import printable, read_bounded

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_BYTES = 64 << 20
_AGAIN = "run the bench again"

MAX_VARIANTS = 64
MAX_ROUNDS = 1000
MAX_PARTS = 10_000
MAX_AGREEMENT_DB = 200.0
MAX_SAMPLES = 100_000
MAX_TEXT = 200
MAX_ENTRIES = 64
COLDEST_C, HOTTEST_C = -100.0, 200.0
_HASH = re.compile(r"[0-9a-f]{64}")
_CACHE = re.compile(r"(l1i|l1d|l[2-4])=[1-9]\d{0,11}:[1-9]\d{0,5}:[1-9]\d{0,4}(:shared)?", re.ASCII)
_TARGET = re.compile(r"[\w.+-]{1,100}", re.ASCII)


def save_result(result: BenchResult | EmulatedResult, path: Path) -> None:
    """Writes a result; the file is whole or not there.

    Raises:
        PackError: the folder cannot be written.
    """
    text = json.dumps(asdict(result), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as err:
        raise PackError(
            f"cannot write the results to {path}: {err.strerror}", hint="check the folder's rights and free space"
        ) from err


def load_results(pack_dir: Path) -> list[BenchResult]:
    """The measured results of a pack in the order of their file names; a pack that was never benched has none.

    Raises:
        PackError: one of its results, of either kind, cannot be used.
    """
    return [result for result in _load_all(pack_dir) if isinstance(result, BenchResult)]


def load_emulated(pack_dir: Path) -> list[EmulatedResult]:
    """The emulated results of a pack in the order of their file names.

    Raises:
        PackError: one of its results, of either kind, cannot be used.
    """
    return [result for result in _load_all(pack_dir) if isinstance(result, EmulatedResult)]


def _load_all(pack_dir: Path) -> list[BenchResult | EmulatedResult]:
    return [_load(path) for path in sorted((pack_dir / RESULTS).glob("*.json"))]


def _load(path: Path) -> BenchResult | EmulatedResult:
    from pydantic import ValidationError

    raw = _read(path)
    try:
        result = _schema().validate_json(raw)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where, what = ".".join(map(str, first["loc"][1:])) or "the file", first["msg"]
        if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
            where, what = "kind", "Input should be 'edgepack-bench' or 'edgepack-emulated'"
        raise PackError(f"{path}: not a result of this edgepack: {where}: {what}", hint=_AGAIN) from err
    problem = next(problems(result), None)
    if problem is not None:
        raise PackError(f"{path}: {problem}", hint=f"the file is damaged: {_AGAIN}")
    return result


@cache
def _schema() -> TypeAdapter[BenchResult | EmulatedResult]:
    from pydantic import Field, TypeAdapter

    either: Any = Annotated[BenchResult | EmulatedResult, Field(discriminator="kind")]
    return TypeAdapter(either)


def _read(path: Path) -> bytes:
    try:
        raw = read_bounded(path, MAX_BYTES)
    except OSError as err:
        raise PackError(f"{path}: cannot read the results: {err.strerror}") from err
    if len(raw) > MAX_BYTES:
        raise PackError(f"{path}: results over {MAX_BYTES >> 20} MiB; a session writes a few")
    return raw


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
    if not all(printable((variant.name, variant.file)) for variant in variants):
        yield "a name holds control characters"
    for variant in variants:
        if variant.size_bytes < 0 or not _HASH.fullmatch(variant.sha256):
            yield f"variant {variant.name}: its size or hash is none"


def _problems_of_times(result: BenchResult) -> Iterator[str]:
    conditions = result.conditions
    if conditions.threads < 1:
        yield f"threads is {conditions.threads}; expected at least 1"
    yield from _problems_of_text(result)
    for fmt in sorted({variant.format for variant in result.variants if variant.memory} - set(result.import_only)):
        yield f"no import-only memory for {fmt}"
    for variant in result.variants:
        if not any(not block.rejected for block in variant.warm):
            yield f"variant {variant.name}: no warm latency"
        if variant.agreement_db is not None and abs(variant.agreement_db) > MAX_AGREEMENT_DB:
            yield f"variant {variant.name}: an agreement of {variant.agreement_db:g} dB"
        for block in (*variant.warm, *variant.cold, *variant.sustained):
            yield from (f"variant {variant.name}: round {block.round}: {problem}" for problem in block_problems(block))
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
    if not _temperature(result.start_temperature_c):
        yield f"a temperature of {result.start_temperature_c:g} °C when it started"


def _problems_of_text(result: BenchResult) -> Iterator[str]:
    conditions = result.conditions
    without_values = replace(
        result, variants=tuple(replace(one, warm=(), cold=(), sustained=(), memory=()) for one in result.variants)
    )
    if not printable(without_values):
        yield "a name holds control characters"
    names = [conditions.reached, conditions.cluster or "", *conditions.governors, *conditions.device.runtimes]
    names += [text or "" for tool in conditions.tools.values() for text in (tool.name, tool.version, tool.runtime)]
    if any(len(name) > MAX_TEXT for name in names):
        yield f"a name of over {MAX_TEXT} characters"
    if max(len(result.methods), len(result.not_measured), len(conditions.governors)) > MAX_ENTRIES:
        yield f"over {MAX_ENTRIES} methods or governors"


def block_problems(block: Block) -> Iterator[str]:
    """What is wrong with one process's raw values, in words."""
    clocks = (block.clock_before_s, block.clock_after_s)
    positive = all(min(values, default=1.0) > 0 for values in (block.latency_s, *clocks))
    if not block.latency_s or not positive or block.runs < 1 or len({bool(clock) for clock in clocks}) > 1:
        yield "expected positive times"
    if not 1 <= block.runs_per_sample <= block.runs:
        yield f"{block.runs_per_sample} of {block.runs} runs in one time"
    if max(len(block.latency_s), *map(len, clocks)) > MAX_SAMPLES:
        yield f"over {MAX_SAMPLES} times"
    if not all(map(_temperature, block.temperature_c)):
        yield f"its temperatures are {block.temperature_c}; expected °C"
    if block.others_busy is not None and not 0 <= block.others_busy <= 1:
        yield f"others took a share of {block.others_busy:g}; expected 0 to 1"
    throttle = block.throttle
    if throttle is not None and min(throttle.before, throttle.after) < 0:
        yield "it was throttled a negative number of times"
    if not printable((block.governor or "", throttle.source if throttle else "")):
        yield "a name holds control characters"
    if max(len(block.governor or ""), len(throttle.source if throttle else "")) > MAX_TEXT:
        yield f"a name of over {MAX_TEXT} characters"


def _temperature(value: float | None) -> bool:
    return value is None or COLDEST_C <= value <= HOTTEST_C


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
    if not printable(names):
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
    if any(part.places < 1 for part in variant.layers):
        yield "a layer in no place"
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
