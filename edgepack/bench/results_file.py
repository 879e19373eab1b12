"""The JSON file of a result: written atomically, read as if a stranger had sent it."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from edgepack.bench.results import BenchResult, Block, Snapshot
from edgepack.errors import PackError

MAX_BYTES = 64 << 20
MAX_VARIANTS = 64
# Names end up in tables and terminals: no control characters, and none that turn the writing direction round.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_HASH = re.compile(r"[0-9a-f]{64}")


def save_result(result: BenchResult, path: Path) -> None:
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


def load_result(path: Path) -> BenchResult:
    """Reads a result.

    Raises:
        PackError: missing, over 64 MiB, not JSON, another schema, or with values that cannot be.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as err:
        raise PackError(f"{path}: cannot read the results: {err.strerror}") from err
    if len(raw) > MAX_BYTES:
        raise PackError(f"{path}: results over {MAX_BYTES >> 20} MiB; a session writes a few")
    try:
        result = TypeAdapter(BenchResult).validate_json(raw)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise PackError(
            f"{path}: not a result of this edgepack: {where}: {first['msg']}", hint="run the bench again"
        ) from err
    problem = next(_impossible(result), None)
    if problem is not None:
        raise PackError(f"{path}: {problem}", hint="the file is damaged: run the bench again")
    return result


def load_results(pack_dir: Path) -> list[BenchResult]:
    """All results of a pack in the order of their file names; a pack that was never benched has none.

    Raises:
        PackError: one of them cannot be used.
    """
    return [load_result(path) for path in sorted((pack_dir / "results").glob("*.json"))]


def _impossible(result: BenchResult) -> Iterator[str]:
    """What the types allow and no session writes."""
    conditions = result.conditions
    if not 1 <= len(result.variants) <= MAX_VARIANTS:
        yield f"{len(result.variants)} variants; expected 1 to {MAX_VARIANTS}"
    if conditions.threads < 1:
        yield f"threads is {conditions.threads}; expected at least 1"
    names = [conditions.model, conditions.target, result.created, result.edgepack_version]
    names += [conditions.device.cpu_model, conditions.device.device_model, result.counters_unavailable or ""]
    for variant in result.variants:
        names += [variant.name, variant.file, *(counter.unavailable or "" for counter in variant.counters)]
    if any(_UNPRINTABLE.search(name) for name in names):
        yield "a name holds control characters"
    keys = [(variant.name, variant.format) for variant in result.variants]
    if len(set(keys)) != len(keys):
        yield "two variants have the same name and format"
    for fmt in sorted({variant.format for variant in result.variants} - set(result.import_only)):
        yield f"no import-only memory for {fmt}"
    for variant in result.variants:
        if variant.size_bytes < 0 or not _HASH.fullmatch(variant.sha256):
            yield f"variant {variant.name}: its size or hash is none"
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
