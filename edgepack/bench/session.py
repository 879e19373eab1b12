"""The measuring session: every variant in fresh processes, interleaved A/B/A/B, on one device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgepack import __version__
from edgepack.bench.devices.device import Device
from edgepack.bench.facts import DeviceFacts, choose_cpus, facts_from_probe
from edgepack.bench.measure import (
    Rig,
    measure_cold,
    measure_counters,
    measure_import,
    measure_memory,
    measure_warm,
)
from edgepack.bench.results import BenchResult, Block, Conditions, Counter, Memory, Snapshot, VariantResult
from edgepack.bench.schedule import FULL, QUICK, Schedule
from edgepack.errors import DataError, ModelError, StableDeviceError, UsageError
from edgepack.progress import Progress, silent
from edgepack.targets import Target
from edgepack.types import FORMATS, Format

_SERVES: Mapping[Format, tuple[str, ...]] = {"onnx": ("onnxruntime",), "tflite": ("ai-edge-litert", "tflite-runtime")}


@dataclass(frozen=True)
class Variant:
    """One model file to measure. Names are unique within a format; `dense-fp32` and `dense-int8` are the baselines."""

    name: str
    format: Format
    path: Path


@dataclass
class _Raw:
    """Raw values of one variant while they come in."""

    warm: list[Block]
    cold: list[Block]
    memory: list[Memory]
    counters: tuple[Counter, ...] = ()
    pace_s: float = 0.0


def bench_variants(
    variants: Sequence[Variant],
    *,
    target: Target,
    device: Device,
    threads: int = 1,
    quick: bool = False,
    cold: bool = True,
    progress: Progress | None = None,
    model: str = "model",
    inputs: Path | None = None,
    schedule: Schedule | None = None,
) -> BenchResult:
    """Measures model files against each other: memory and load first, then warm latency in interleaved rounds, then
    cold latency, then counters.

    Args:
        variants: at least one.
        target: what the models are for; it must have a runtime for every format.
        device: where to measure; the caller closes it. It need not be of the target's kind; the result says whether
            it is.
        threads: of the inference.
        quick: shortens everything and says so in the result.
        cold: also measure with empty caches.
        progress: told of every finished process.
        model: name of the model, for the result.
        inputs: npz with one array per model input; seeded values otherwise.
        schedule: in place of the full or quick one.

    Returns:
        Raw values; statistics come from `edgepack.bench.summary`.

    Raises:
        UsageError: no variants, two of one name, or a thread count that makes no sense.
        ModelError: a model file is missing.
        TargetsError: the target has no runtime for a format.
        DeviceError: the device was unreachable, lacks a runtime, or failed.
        DataError: the inputs do not fit a model.
    """
    _check(variants, target, threads, inputs)
    report = device.probe()
    facts = facts_from_probe(report, device.name)
    formats = [fmt for fmt in FORMATS if any(variant.format == fmt for variant in variants)]
    for fmt in formats:
        _require_runtime(fmt, report, facts, target)
    plan = schedule or (QUICK if quick else FULL)
    cpus = choose_cpus(facts, list(report.get("allowed_cpus", ())), threads)
    inputs_there = device.push(inputs) if inputs is not None else None
    rig = Rig(device, plan, threads, cpus, inputs_there, _evict_bytes(facts, target))
    paths = [device.push(variant.path) for variant in variants]
    missing_counters = _missing_counters(report)
    steps = _Steps(progress or silent, _step_count(plan, variants, formats, cold, missing_counters))
    import_only = {fmt: _imports(rig, fmt, steps) for fmt in formats}
    raws = _measure_all(rig, variants, paths, steps, cold=cold, counters=missing_counters is None)
    conditions = Conditions(
        model=model,
        target=target.name,
        native=facts.is_target(target),
        device=facts,
        threads=threads,
        cpus=cpus,
        quick=quick,
        schedule=plan,
        inputs=_sha256(inputs) if inputs is not None else "seeded",
    )
    return BenchResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgepack_version=__version__,
        conditions=conditions,
        import_only=import_only,
        counters_unavailable=missing_counters,
        variants=tuple(_result(variant, raw) for variant, raw in zip(variants, raws, strict=True)),
    )


class _Steps:
    """Counts finished processes for the progress callback."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def finished(self, what: str) -> None:
        self._done += 1
        self._progress(f"bench: {what}", self._done, self._total)


def _step_count(
    plan: Schedule, variants: Sequence[Variant], formats: Sequence[Format], cold: bool, missing_counters: str | None
) -> int:
    each = plan.memory_processes + plan.processes + (plan.cold_processes if cold else 0) + (missing_counters is None)
    return plan.memory_processes * len(formats) + each * len(variants)


def _imports(rig: Rig, fmt: Format, steps: _Steps) -> tuple[Snapshot, ...]:
    snapshots = []
    for _ in range(rig.schedule.memory_processes):
        snapshots.append(measure_import(rig, fmt))
        steps.finished("memory")
    return tuple(snapshots)


def _measure_all(
    rig: Rig, variants: Sequence[Variant], paths: Sequence[str], steps: _Steps, *, cold: bool, counters: bool
) -> list[_Raw]:
    """Memory comes first: it loads every model once, so that a bad one stops the session before minutes are spent."""
    plan = rig.schedule
    raws = [_Raw([], [], []) for _ in variants]
    jobs = list(zip(variants, paths, raws, strict=True))
    for _ in range(plan.memory_processes):
        for variant, path, raw in jobs:
            memory, raw.pace_s = measure_memory(rig, variant.format, path)
            raw.memory.append(memory)
            steps.finished("memory")
    for round_ in range(plan.processes):
        for variant, path, raw in jobs:
            raw.warm += measure_warm(rig, variant.format, path, round_, raw.pace_s)
            steps.finished("warm latency")
    for round_ in range(plan.cold_processes if cold else 0):
        for variant, path, raw in jobs:
            raw.cold += measure_cold(rig, variant.format, path, round_, raw.pace_s)
            steps.finished("cold latency")
    for variant, path, raw in jobs if counters else ():
        raw.counters = measure_counters(rig, variant.format, path, raw.pace_s)
        steps.finished("counters")
    return raws


def _result(variant: Variant, raw: _Raw) -> VariantResult:
    return VariantResult(
        name=variant.name,
        format=variant.format,
        file=variant.path.name,
        size_bytes=variant.path.stat().st_size,
        sha256=_sha256(variant.path),
        warm=tuple(raw.warm),
        cold=tuple(raw.cold),
        memory=tuple(raw.memory),
        counters=raw.counters,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _require_runtime(fmt: Format, report: Mapping[str, Any], facts: DeviceFacts, target: Target) -> None:
    """The runner takes the first runtime of a format that imports; it must not be one that the target fails on."""
    for name in _SERVES[fmt]:
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
        if name in _SERVES[fmt] and found["error"]
    ]
    raise StableDeviceError(
        f"the device runs no {fmt}: " + ("; ".join(errors) or f"{' or '.join(_SERVES[fmt])} is not installed there"),
        hint=f"pip install {_SERVES[fmt][0]} on the device, or another version of it",
    )


def _evict_bytes(facts: DeviceFacts, target: Target) -> int | None:
    """4× the target's largest cache where the device hides it: older kernels of many boards list no caches."""
    known = target.last_level_cache_bytes or 0
    return 4 * known if facts.is_target(target) and known > (facts.last_level_cache_bytes or 0) else None


def _missing_counters(report: Mapping[str, Any]) -> str | None:
    found = report.get("counters") or {}
    return None if found.get("available") else str(found.get("reason") or "the device does not say why")
