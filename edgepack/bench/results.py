"""Benchmark results: raw values and the conditions they were taken under.

Statistics are derived when asked for and never stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from edgepack.bench.facts import DeviceFacts
from edgepack.bench.schedule import Schedule
from edgepack.errors import PackError
from edgepack.types import Format


@dataclass(frozen=True)
class Load:
    """Seconds of each phase from the start of the process to the first answer; None where nobody could tell."""

    process_s: float | None
    numpy_s: float
    runtime_s: float
    session_s: float
    first_inference_s: float


@dataclass(frozen=True)
class Block:
    """One process's raw latencies.

    Attributes:
        latency_s: single inferences in order, every `kept_every`-th of `runs`.
        clock_before_s, clock_after_s: the fixed loop of dependent additions, before and after.
        rejected: a block with a steadier clock took its place.
        evicted_bytes: of the buffer that emptied the caches; None for warm latency.
    """

    round: int
    latency_s: tuple[float, ...]
    kept_every: int
    runs: int
    seconds: float
    clock_before_s: tuple[float, ...]
    clock_after_s: tuple[float, ...]
    load: Load
    rejected: bool = False
    evicted_bytes: int | None = None

    @property
    def clock_drift(self) -> float:
        """Share by which the clock changed over the block."""
        return abs(min(self.clock_after_s) / min(self.clock_before_s) - 1.0)


@dataclass(frozen=True)
class Snapshot:
    """What a process held at one moment; None where the kernel does not say."""

    rss_bytes: int | None
    pss_bytes: int | None
    anon_bytes: int | None
    file_bytes: int | None
    peak_bytes: int | None
    swap_bytes: int | None
    major_faults: int | None


@dataclass(frozen=True)
class Memory:
    """One process: after the load and after inference."""

    loaded: Snapshot
    ran: Snapshot


@dataclass(frozen=True)
class Counter:
    """One CPU event: five raw counts of `runs` inferences, or why there are none.

    Attributes:
        stream_count, stream_bytes: the same event while a buffer of known size was read once.
    """

    name: str
    runs: int = 0
    counts: tuple[int, ...] = ()
    stream_count: int | None = None
    stream_bytes: int | None = None
    unavailable: str | None = None


@dataclass(frozen=True)
class VariantResult:
    """All raw values of one model file."""

    name: str
    format: Format
    file: str
    size_bytes: int
    sha256: str
    warm: tuple[Block, ...]
    cold: tuple[Block, ...]
    memory: tuple[Memory, ...]
    counters: tuple[Counter, ...]


@dataclass(frozen=True)
class Conditions:
    """All that must be alike before two results may be merged.

    Attributes:
        target: name of the target that the models are for.
        native: whether the device is of the target's kind.
        inputs: sha256 of the inputs' file, or "seeded".
    """

    model: str
    target: str
    native: bool
    device: DeviceFacts
    threads: int
    cpus: tuple[int, ...]
    quick: bool
    schedule: Schedule
    inputs: str


@dataclass(frozen=True)
class BenchResult:
    """One session: every variant measured interleaved, on one device, under one set of conditions.

    Attributes:
        created: UTC, ISO 8601.
        import_only: what a process holds with only the runtime imported, per format.
        counters_unavailable: why no counter could be read, None where some could.
    """

    # Read by pydantic when a file is loaded; the classes inside inherit it.
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
        "str_max_length": 1000,
    }

    created: str
    edgepack_version: str
    conditions: Conditions
    import_only: Mapping[Format, tuple[Snapshot, ...]]
    counters_unavailable: str | None
    variants: tuple[VariantResult, ...]
    schema_version: Literal[1] = 1
    kind: Literal["edgepack-bench"] = "edgepack-bench"

    @property
    def file_name(self) -> str:
        """`<target>.<device>.<threads>t.<quick|full>.json`."""
        conditions = self.conditions
        length = "quick" if conditions.quick else "full"
        return f"{conditions.target}.{conditions.device.fingerprint[:8]}.{conditions.threads}t.{length}.json"


def merge_results(results: Sequence[BenchResult]) -> BenchResult:
    """One result with the raw values of several sessions taken under the same conditions.

    Args:
        results: at least one.

    Raises:
        PackError: the conditions or the model files differ; the message names what does.
    """
    first = results[0]
    for other in results[1:]:
        differing = different_conditions(first, other)
        if differing:
            raise PackError(
                f"two results cannot be merged, they differ in {', '.join(differing)}",
                hint="compare them as separate rows, or measure again under the same conditions",
            )
    return replace(
        first,
        created=max(result.created for result in results),
        import_only={
            fmt: tuple(snapshot for result in results for snapshot in result.import_only[fmt])
            for fmt in first.import_only
        },
        variants=tuple(
            replace(
                variant,
                warm=tuple(block for result in results for block in result.variants[index].warm),
                cold=tuple(block for result in results for block in result.variants[index].cold),
                memory=tuple(memory for result in results for memory in result.variants[index].memory),
            )
            for index, variant in enumerate(first.variants)
        ),
    )


def different_conditions(one: BenchResult, other: BenchResult) -> list[str]:
    """Names of all conditions in which two results differ: `threads`, `device.kernel`, `model.onnx` …"""
    names = [
        field.name
        for field in fields(Conditions)
        if field.name != "device" and getattr(one.conditions, field.name) != getattr(other.conditions, field.name)
    ]
    names += [
        f"device.{field.name}"
        for field in fields(DeviceFacts)
        if getattr(one.conditions.device, field.name) != getattr(other.conditions.device, field.name)
    ]
    if set(one.import_only) != set(other.import_only):
        names.append("import_only")
    files = {(v.name, v.format): v.sha256 for v in one.variants}
    others = {(v.name, v.format): v.sha256 for v in other.variants}
    if list(files) != list(others):
        return [*names, "variants"]
    return names + [f"{name} ({fmt})" for (name, fmt), digest in files.items() if others[name, fmt] != digest]
