"""The measuring session: every variant in fresh processes, interleaved A/B/A/B, on one device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgepack import __version__
from edgepack.backends.registry import FACTS, FORMATS
from edgepack.benchmark.conditions import COLD, COUNTERS, MEMORY, SUSTAINED, Asked, lacking, methods, reasons
from edgepack.benchmark.measure import (
    UNKNOWN_PACE_S,
    Expecting,
    Extra,
    Rig,
    cool_down,
    measure_cold,
    measure_counters,
    measure_import,
    measure_memory,
    measure_sustained,
    measure_warm,
    temperature_of,
)
from edgepack.benchmark.results import (
    BenchResult,
    Block,
    Conditions,
    Counter,
    Memory,
    Snapshot,
    VariantResult,
    latencies,
)
from edgepack.benchmark.results_file import problems
from edgepack.benchmark.schedule import FULL, QUICK, Schedule
from edgepack.benchmark.stats import is_narrow
from edgepack.devices.device import EVERY_MODE, Device, probed
from edgepack.devices.facts import DeviceFacts, choose_cpus, cluster_of, facts_from_probe
from edgepack.errors import DataError, ModelError, StableDeviceError, UsageError
from edgepack.model.scheme import Format
from edgepack.targets.target import Target
from edgepack.workspace import Progress, file_digest, silent

THREADS_PER_CPU = 4
"""Of one inference, at most."""


@dataclass(frozen=True)
class Variant:
    """One model file to measure. Names are unique within a format; `dense-fp32` and `dense-int8` are the baselines."""

    name: str
    format: Format
    path: Path


@dataclass(frozen=True)
class Settings:
    """How model files are measured.

    Attributes:
        threads: of the inference.
        quick: shortens everything and says so in the result.
        cold: also measure with empty caches.
        sustained: also measure back to back for the schedule's `sustained_s`.
        cluster: name of the core to stay on, such as "cortex-a55"; by default the fastest.
        schedule: in place of the full or quick one.
    """

    threads: int = 1
    quick: bool = False
    cold: bool = True
    sustained: bool = False
    cluster: str | None = None
    schedule: Schedule | None = None


STANDARD = Settings()


def bench_variants(
    variants: Sequence[Variant],
    *,
    target: Target,
    device: Device,
    settings: Settings = STANDARD,
    progress: Progress | None = None,
    model: str = "model",
    inputs: Path | None = None,
) -> BenchResult:
    """Measures model files against each other: memory and load first, then warm latency in interleaved rounds, then
    cold latency, then counters, then sustained latency. What the device cannot measure is left out, and said.

    Args:
        variants: at least one.
        target: what the models are for; it must have a runtime for every format.
        device: where to measure; the caller closes it. It need not be of the target's kind; the result says whether
            it is.
        settings: what is measured, and for how long.
        progress: told of every finished process.
        model: name of the model, for the result.
        inputs: npz with one array per model input; seeded values otherwise.

    Returns:
        Raw values; statistics come from `edgepack.benchmark.summary`.

    Raises:
        UsageError: no variants, two of one name, a thread count that makes no sense, or no such cluster.
        ModelError: a model file is missing.
        TargetsError: the target has no runtime for a format.
        DeviceError: the device was unreachable, lacks a runtime, or failed.
        DataError: the inputs do not fit a model.
    """
    threads = settings.threads
    _check(variants, target, threads, inputs)
    formats = [fmt for fmt in FORMATS if any(variant.format == fmt for variant in variants)]
    report = probed(device)
    facts = facts_from_probe(report, device.name)
    _require_latency(device)
    if facts.cpus and threads > (most := THREADS_PER_CPU * len(facts.cpus)):
        raise UsageError(
            f"threads is {threads}; expected at most {most} on the {len(facts.cpus)} CPUs of {device.name}",
            hint="more only wait for each other",
        )
    with Expecting(f"probe of {device.name}"):
        for fmt in formats:
            _require_runtime(fmt, device, report, facts, target)
        cpus = choose_cpus(facts, [int(cpu) for cpu in report.get("allowed_cpus", ())], threads, settings.cluster)
        refused = _counters_refused(report)
    schedule = settings.schedule or (QUICK if settings.quick else FULL)
    rig = Rig(
        device=device,
        schedule=schedule,
        threads=threads,
        cpus=cpus,
        inputs=device.push(inputs) if inputs is not None else None,
        extra=Extra(schedule.extra_s),
        evict_bytes=_evict_bytes(facts, target),
        progress=progress or silent,
    )
    rig.told.temperature_c = temperature_of(report)
    missing = lacking(device, cold=settings.cold)
    asked = Asked(
        cold=settings.cold and COLD not in missing,
        sustained=settings.sustained,
        memory=MEMORY not in missing,
        counters=COUNTERS not in missing and refused is None,
    )
    entries = [Entry(variant.format, device.push(variant.path)) for variant in variants]
    steps = Steps(rig.progress, step_count(rig.schedule, len(variants), len(formats), asked))
    import_only = {fmt: measure_imports(rig, fmt, steps) for fmt in formats if asked.memory}
    started_c = measure_all(rig, entries, steps, asked)
    blocks = [block for entry in entries for block in (*entry.warm, *entry.cold, *entry.sustained)]
    if any(block.is_mean for entry in entries for block in entry.sustained):
        missing = (*missing, SUSTAINED)
    why = reasons(missing, rig.told.tools)
    conditions = Conditions(
        model=model,
        target=target.name,
        native=facts.is_target(target),
        device=facts,
        threads=threads,
        cpus=cpus,
        quick=settings.quick,
        schedule=rig.schedule,
        inputs="random" if rig.told.random_inputs else file_digest(inputs) if inputs is not None else "seeded",
        reached=device.name,
        tools=dict(rig.told.tools),
        governors=_governors(blocks),
        cluster=cluster_of(facts, cpus),
    )
    result = BenchResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgepack_version=__version__,
        conditions=conditions,
        import_only=import_only,
        counters_unavailable=why.pop(COUNTERS, refused),
        variants=tuple(
            _result(variant, entry, rig.told.agreement_db.get(entry.path))
            for variant, entry in zip(variants, entries, strict=True)
        ),
        methods=methods(conditions, asked),
        not_measured=why,
        start_temperature_c=started_c,
    )
    return _sound(result, device)


def _governors(blocks: Sequence[Block]) -> tuple[str, ...]:
    return tuple(sorted({name for block in blocks if block.governor for name in block.governor.split(", ")}))


def _sound(result: BenchResult, device: Device) -> BenchResult:
    """The result, if a file of it would be believed."""
    problem = next(problems(result), None)
    if problem is not None:
        raise StableDeviceError(f"{device.name}: its reports cannot be: {problem}", hint="try another device")
    return result


def _result(variant: Variant, raw: Entry, agreement_db: float | None) -> VariantResult:
    return VariantResult(
        name=variant.name,
        format=variant.format,
        file=variant.path.name,
        size_bytes=variant.path.stat().st_size,
        sha256=file_digest(variant.path),
        warm=tuple(raw.warm),
        cold=tuple(raw.cold),
        memory=tuple(raw.memory),
        counters=raw.counters,
        sustained=tuple(raw.sustained),
        agreement_db=agreement_db,
    )


def _check(variants: Sequence[Variant], target: Target, threads: int, inputs: Path | None) -> None:
    if not variants:
        raise UsageError("nothing to bench: no variant was given")
    if not 1 <= threads <= 1024:
        raise UsageError(f"threads is {threads}; expected 1 to 1024")
    keys = [(variant.name, variant.format) for variant in variants]
    if len(set(keys)) < len(keys):
        raise UsageError("two variants have the same name and format")
    for variant in variants:
        target.require_format(variant.format)
        if not variant.path.is_file():
            raise ModelError(f"{variant.name} ({variant.format}): no model file at {variant.path}")
    if inputs is not None and not inputs.is_file():
        raise DataError(f"no example inputs at {inputs}")


def _require_latency(device: Device) -> None:
    if "latency" not in device.modes:
        raise StableDeviceError(
            f"{device.name} measures no latency: found {', '.join(sorted(device.modes)) or 'no modes'}",
            hint="it needs Python, or a tool that times a model",
        )


def _require_runtime(
    fmt: Format, device: Device, report: Mapping[str, Any], facts: DeviceFacts, target: Target
) -> None:
    """The runner takes the first runtime of a format that imports; it must not be one that the target fails on. Where
    tools or a browser stand in for the runner, they stand in the place of runtimes.
    """
    by_tools = device.modes != EVERY_MODE
    serving = (FACTS[fmt].tool, FACTS[fmt].browser_package) if by_tools else FACTS[fmt].runtimes
    for name in serving:
        version = facts.runtimes.get(name)
        if version is None:
            continue
        for bad in target.known_bad:
            if facts.is_target(target) and (bad.runtime, bad.version) == (name, version):
                raise StableDeviceError(
                    f"{name} {version} on {target.name}: {bad.reason}", hint=f"install another version of {name} there"
                )
        return
    errors = [
        f"{name} {found['version']}: {found['error']}"
        for name, found in report["runtimes"].items()
        if name in serving and found.get("error")
    ]
    missing = f"{' or '.join(serving)} is not {'given' if by_tools else 'installed there'}"
    raise StableDeviceError(
        f"the device runs no {fmt}: " + ("; ".join(errors) or missing),
        hint=f"give the path of {serving[0]}, built for the device, or leave {fmt} out"
        if by_tools
        else f"pip install {serving[0]} on the device, or another version of it; over SSH, --install does it",
    )


def _evict_bytes(facts: DeviceFacts, target: Target) -> int | None:
    """4× the target's largest cache where the device hides it: older kernels of many boards list no caches."""
    known = target.last_level_cache_bytes or 0
    return 4 * known if facts.is_target(target) and known > (facts.last_level_cache_bytes or 0) else None


def _counters_refused(report: Mapping[str, Any]) -> str | None:
    found = report.get("counters") or {}
    return None if found.get("available") else str(found.get("reason") or "the device does not say why")


@dataclass
class Entry:
    """One model file, its path on the device, and its raw values as they come in."""

    format: Format
    path: str
    warm: list[Block] = field(default_factory=list)
    cold: list[Block] = field(default_factory=list)
    sustained: list[Block] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    counters: tuple[Counter, ...] = ()
    pace_s: float = UNKNOWN_PACE_S


class Steps:
    """Counts finished processes for the progress callback."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def more(self, count: int) -> None:
        """As many processes are to come beside those that were known."""
        self._total += count

    def finished(self, what: str) -> None:
        """One more process has ended."""
        self._done += 1
        self._progress(f"bench: {what}", self._done, self._total)


def step_count(plan: Schedule, variants: int, formats: int, asked: Asked) -> int:
    """Processes of a session, those apart that are measured again or added."""
    memory = plan.memory_processes if asked.memory else 0
    each = memory + plan.processes + (plan.cold_processes if asked.cold else 0) + asked.counters + asked.sustained
    return memory * formats + each * variants


def measure_imports(rig: Rig, fmt: Format, steps: Steps) -> tuple[Snapshot, ...]:
    """What processes hold that only import the runtime of a format."""
    snapshots = []
    for _ in range(rig.schedule.memory_processes):
        snapshots.append(measure_import(rig, fmt))
        steps.finished("memory")
    return tuple(snapshots)


def warm_rounds(rig: Rig, entries: Sequence[Entry]) -> Iterator[int]:
    """Numbers of the rounds in which every variant has a process; later ones only while an interval is wide."""
    plan = rig.schedule
    yield from range(plan.processes)
    for number in range(plan.processes, plan.processes + plan.extra_processes):
        if rig.extra.spent or all(is_narrow(latencies(entry.warm), plan.narrow) for entry in entries):
            return
        yield number


def measure_all(rig: Rig, entries: Sequence[Entry], steps: Steps, asked: Asked) -> float | None:
    """Memory comes first: it loads every model once, so that a bad one stops the session before minutes are spent.
    Sustained latency comes last, for it leaves the device hot. Gives the temperature at the first warm block.
    """
    plan = rig.schedule
    for _ in range(plan.memory_processes if asked.memory else 0):
        for entry in entries:
            memory, entry.pace_s = measure_memory(rig, entry.format, entry.path)
            entry.memory.append(memory)
            steps.finished("memory")
    started_c = rig.told.temperature_c
    if started_c is not None:
        started_c = cool_down(rig, entries[0].format, started_c)
    for round_ in warm_rounds(rig, entries):
        is_extra = round_ >= plan.processes
        if is_extra:
            steps.more(len(entries))
        with rig.extra.taken() if is_extra else nullcontext():
            for entry in entries:
                entry.warm += measure_warm(rig, entry.format, entry.path, round_, entry.pace_s)
                steps.finished("warm latency")
    for round_ in range(plan.cold_processes if asked.cold else 0):
        for entry in entries:
            entry.cold += measure_cold(rig, entry.format, entry.path, round_, entry.pace_s)
            steps.finished("cold latency")
    for entry in entries if asked.counters else ():
        entry.counters = measure_counters(rig, entry.format, entry.path, entry.pace_s)
        steps.finished("counters")
    for entry in entries if asked.sustained else ():
        entry.sustained.append(measure_sustained(rig, entry.format, entry.path, entry.pace_s))
        steps.finished("sustained latency")
    return started_c
