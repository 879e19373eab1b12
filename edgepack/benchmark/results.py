"""Benchmark results, measured or emulated: raw values and the conditions they were taken under.

Statistics are derived when asked for and never stored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from edgepack.backends.registry import KnownFormat
from edgepack.benchmark.schedule import Schedule
from edgepack.devices.facts import DeviceFacts
from edgepack.emulator.counts import Counts
from edgepack.model.scheme import Format
from edgepack.validation import STRICT

LOCAL = "local"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.@+-]+")

# Of the word of a Raspberry Pi's firmware: low voltage, frequency capped, throttled, soft temperature limit.
_NOW, _SINCE_BOOT = 0xF, 0xF0000


@dataclass(frozen=True)
class Load:
    """Seconds of each phase from the start of the process to the first answer; None where nobody could tell."""

    process_s: float | None
    numpy_s: float | None
    runtime_s: float | None
    session_s: float | None
    first_inference_s: float | None


@dataclass(frozen=True)
class Throttle:
    """What the device says of a slowed CPU, before the warm-up and after the timed part.

    Attributes:
        source: "vcgencmd" and "get_throttled" give the word of a Raspberry Pi's firmware, "core_throttle_count" a sum
            of events.
    """

    source: str
    before: int
    after: int

    @property
    def happened(self) -> bool:
        """Whether the CPU was slowed meanwhile. A bit that was set long before and is over says nothing."""
        if self.source == "core_throttle_count":
            return self.after > self.before
        since = self.after & ~self.before & _SINCE_BOOT
        return bool((self.before | self.after) & _NOW or since)


@dataclass(frozen=True)
class Block:
    """One process's raw latencies.

    Attributes:
        latency_s: single inferences in order, every `kept_every`-th of `runs`; or one, the mean of all, where a tool
            gives no more.
        clock_before_s, clock_after_s: the fixed loop of dependent additions, before and after; empty where the tool
            has none.
        runs_per_sample: inferences of which one time is the mean, where a clock is too coarse for one.
        rejected: a block with a steadier clock, or one that was not throttled, took its place.
        evicted_bytes: of the buffer that emptied the caches; None for warm latency.
        temperature_c: before and after.
        governor: of the CPUs that it ran on; None where the kernel has none.
        others_busy: share of all CPUs' time that other programs took.
    """

    round: int
    latency_s: tuple[float, ...]
    kept_every: int
    runs: int
    seconds: float
    clock_before_s: tuple[float, ...]
    clock_after_s: tuple[float, ...]
    load: Load
    runs_per_sample: int = 1
    rejected: bool = False
    evicted_bytes: int | None = None
    temperature_c: tuple[float | None, float | None] = (None, None)
    governor: str | None = None
    throttle: Throttle | None = None
    others_busy: float | None = None

    @property
    def clock_drift(self) -> float | None:
        """Share by which the clock changed over the block; None where nobody looked."""
        if not self.clock_before_s or not self.clock_after_s:
            return None
        return abs(min(self.clock_after_s) / min(self.clock_before_s) - 1.0)

    @property
    def throttled(self) -> bool | None:
        """Whether the CPU was slowed; None where the device does not say."""
        return None if self.throttle is None else self.throttle.happened

    @property
    def is_mean(self) -> bool:
        """Whether its one time is the mean of many inferences."""
        return len(self.latency_s) == 1 and self.runs > 1


def latencies(blocks: Sequence[Block]) -> list[tuple[float, ...]]:
    """Raw seconds per process, without the blocks that a better one replaced."""
    return [block.latency_s for block in blocks if not block.rejected]


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
    """All raw values of one model file.

    Attributes:
        sustained: of one process that ran back to back for long; empty where it was not asked for.
        agreement_db: signal to noise ratio of its answers against this machine's, dB, at most 200; None where they were
            not compared.
    """

    name: str
    format: KnownFormat
    file: str
    size_bytes: int
    sha256: str
    warm: tuple[Block, ...]
    cold: tuple[Block, ...]
    memory: tuple[Memory, ...]
    counters: tuple[Counter, ...]
    sustained: tuple[Block, ...] = ()
    agreement_db: float | None = None


@dataclass(frozen=True)
class Tool:
    """What measured: a program with its version, and the runtime that it ran; None where it does not name one."""

    name: str
    version: str
    runtime: str | None = None

    @property
    def title(self) -> str:
        """`benchmark_model 2.17.0`."""
        return f"{self.name} {self.version}".strip()


RUNNER = Tool("edgepack runner", "1")
BROWSER = "browser"
"""Name of the tool where a browser measured."""


@dataclass(frozen=True)
class Conditions:
    """All that must be alike before two results may be merged.

    Attributes:
        target: name of the target that the models are for.
        native: whether the device is of the target's kind.
        cpus: that it stayed on; empty where it could not be pinned.
        inputs: sha256 of the inputs' file, "seeded", or "random" where a tool makes its own.
        reached: how: "local", "pi@raspberrypi.local" …
        tools: by format; empty in files from before it was noted, and then the runner.
        governors: of the CPUs in use, while it measured; empty where the kernel has none.
        cluster: the core of the CPUs in use, where they are of one kind that has a name.
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
    reached: str = LOCAL
    tools: Mapping[KnownFormat, Tool] = field(default_factory=dict)
    governors: tuple[str, ...] = ()
    cluster: str | None = None

    def tool(self, fmt: Format) -> Tool:
        """What measured the models of a format."""
        return self.tools.get(fmt, RUNNER)


@dataclass(frozen=True)
class BenchResult:
    """One session: every variant measured interleaved, on one device, under one set of conditions.

    Attributes:
        created: UTC, ISO 8601.
        import_only: what a process holds with only the runtime imported, per format.
        counters_unavailable: why no counter could be read, None where some could.
        methods: how each figure was got, a sentence by figure.
        not_measured: why a figure that was asked for is missing, by figure.
        start_temperature_c: when the first warm block was about to start.
    """

    # Read by pydantic when a file is loaded; the classes inside inherit it.
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    created: str
    edgepack_version: str
    conditions: Conditions
    import_only: Mapping[KnownFormat, tuple[Snapshot, ...]]
    counters_unavailable: str | None
    variants: tuple[VariantResult, ...]
    methods: Mapping[str, str] = field(default_factory=dict)
    not_measured: Mapping[str, str] = field(default_factory=dict)
    start_temperature_c: float | None = None
    schema_version: Literal[1] = 1
    kind: Literal["edgepack-bench"] = "edgepack-bench"

    @property
    def file_name(self) -> str:
        """`<target>.<device>.<threads>t.<quick|full>.json`.

        A device behind a wire adds its name, a cluster its own where there are several.
        """
        conditions = self.conditions
        parts = [conditions.target, conditions.device.fingerprint[:8]]
        if conditions.reached != LOCAL:
            parts.append(_slug(conditions.reached))
        if conditions.cluster is not None and len({cpu.core for cpu in conditions.device.cpus}) > 1:
            parts.append(_slug(conditions.cluster))
        return ".".join([*parts, f"{conditions.threads}t", "quick" if conditions.quick else "full", "json"])


def _slug(name: str) -> str:
    """A name as part of a file's; what had to be changed is told apart by a hash."""
    slug = _NOT_IN_NAMES.sub("-", name).strip("-.")[:60]
    return slug if slug == name else f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("-")


@dataclass(frozen=True)
class LayerCounts:
    """What one layer, or the part between two, contributes to an inference.

    Attributes:
        layer: whether it is a layer of the manifest.
        places: segments that were counted one by one, and added up; each has an error of its own.
    """

    name: str
    layer: bool
    counts: Counts
    places: int = 1


@dataclass(frozen=True)
class EmulatedVariant:
    """One model file.

    Attributes:
        rounds: counts of one inference, once per round.
        layers: in order of execution; empty where the model could not be taken apart, and `layers_missing` says why.
        agreement_db: signal to noise ratio of its answers against this machine's, dB, at most 200; None where the
            inputs were seeded.
    """

    name: str
    format: KnownFormat
    file: str
    size_bytes: int
    sha256: str
    rounds: tuple[Counts, ...]
    layers: tuple[LayerCounts, ...] = ()
    layers_missing: str | None = None
    agreement_db: float | None = None


@dataclass(frozen=True)
class Emulation:
    """With what was counted.

    Attributes:
        caches: the plugin's arguments: "l1d=32768:2:64" …
        cpu: QEMU's CPU model.
        runtimes: version by name.
        notes: where the emulated CPU is not the target's.
    """

    caches: tuple[str, ...]
    cpu: str
    qemu: str
    runtimes: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class EmulatedResult:
    """One emulated session: every variant of a pack on one target."""

    # Read by pydantic when a file is loaded; the classes inside inherit it.
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
        "str_max_length": 1000,
    }

    created: str
    edgepack_version: str
    model: str
    target: str
    threads: int
    inputs: str
    emulation: Emulation
    variants: tuple[EmulatedVariant, ...]
    schema_version: Literal[1] = 1
    kind: Literal["edgepack-emulated"] = "edgepack-emulated"

    @property
    def file_name(self) -> str:
        """`<target>.emulated.<threads>t.json`."""
        return f"{self.target}.emulated.{self.threads}t.json"
