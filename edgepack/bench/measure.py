"""Single measurements: one job on the device, its report as one dataclass of raw values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgepack.bench.checked import checked
from edgepack.bench.devices.device import Job
from edgepack.bench.results import Block, Counter, Load, Memory, Snapshot, Throttle
from edgepack.bench.results_check import block_problems
from edgepack.bench.rig import LOAD_TIMEOUT_S, Rig, cool_down, temperature_of
from edgepack.bench.schedule import Schedule
from edgepack.model.scheme import Format

UNKNOWN_PACE_S = 1.0
"""Of an inference on a device that does not say: timeouts follow from it, and may be too long."""


def measure_import(rig: Rig, fmt: Format) -> Snapshot:
    """What a process holds with only the runtime of a format imported; measured once more where it swapped."""
    job = replace(rig.job(fmt, None), inputs=None, timeout_s=LOAD_TIMEOUT_S)
    imported = _import(rig, job)
    return _import(rig, job) if imported.swap_bytes else imported


def _import(rig: Rig, job: Job) -> Snapshot:
    report = rig.run(job)
    with rig.expecting(job):
        return checked(Snapshot(**report["imported"]))


def measure_memory(rig: Rig, fmt: Format, model: str) -> tuple[Memory, float]:
    """What a process holds with the model loaded and run, and the seconds of its first inference; measured once more
    where it swapped.
    """
    job = replace(rig.job(fmt, model), timeout_s=LOAD_TIMEOUT_S)
    memory, pace_s = _memory(rig, job)
    return _memory(rig, job) if memory.loaded.swap_bytes or memory.ran.swap_bytes else (memory, pace_s)


def _memory(rig: Rig, job: Job) -> tuple[Memory, float]:
    report = rig.run(job)
    with rig.expecting(job):
        rig.told.temperature_c = temperature_of(report) or rig.told.temperature_c
        memory = checked(Memory(Snapshot(**report["loaded"]), Snapshot(**report["ran"])))
        pace_s = float(report["load"]["first_inference_s"] or UNKNOWN_PACE_S)
        if not 0 < pace_s < LOAD_TIMEOUT_S:
            raise ValueError(f"its first inference took {pace_s:g} s")
        return memory, pace_s


def measure_warm(rig: Rig, fmt: Format, model: str, round_: int, pace_s: float) -> list[Block]:
    """Warm latency in a fresh process; again, a bounded number of times, while the clock drifts or is throttled.

    Args:
        rig: of the session.
        fmt: of the model.
        model: path on the device.
        round_: of the session.
        pace_s: seconds of one inference, roughly; sets the timeout.

    Returns:
        Every block measured; all but one are marked as rejected. If none was good the best stands: one that was not
        throttled, and the steadiest of these.
    """
    job = _warm_job(rig, fmt, model, pace_s, rig.schedule.runs, rig.schedule.seconds)
    return _steady(rig, job, fmt, round_)


def _warm_job(rig: Rig, fmt: Format, model: str, pace_s: float, runs: int, seconds: float) -> Job:
    plan = rig.schedule
    return replace(
        rig.job(fmt, model),
        mode="latency",
        warmup_runs=plan.warmup_runs,
        warmup_s=plan.warmup_s,
        runs=runs,
        seconds=seconds,
        timeout_s=60 + 5 * (plan.warmup_s + seconds) + 5 * pace_s * (plan.warmup_runs + runs),
    )


def measure_cold(rig: Rig, fmt: Format, model: str, round_: int, pace_s: float) -> list[Block]:
    """Cold latency in a fresh process; arguments and result as of `measure_warm`."""
    runs = rig.schedule.cold_runs
    # Emptying the caches reads a large buffer: up to a second a run on a slow board.
    job = replace(
        rig.job(fmt, model), mode="cold", warmup_runs=1, runs=runs, timeout_s=120 + (runs + 1) * (5 * pace_s + 1)
    )
    return _steady(rig, job, fmt, round_)


def measure_sustained(rig: Rig, fmt: Format, model: str, pace_s: float) -> Block:
    """Warm latency of one process that runs back to back for long. What slows it down is what is looked for: it is not
    measured again. Arguments as of `measure_warm`.
    """
    job = _warm_job(rig, fmt, model, pace_s, 1, rig.schedule.sustained_s)
    report = rig.run(job)
    with rig.expecting(job):
        return _block(report, 0)


def _steady(rig: Rig, job: Job, fmt: Format, round_: int) -> list[Block]:
    blocks: list[Block] = []
    while True:
        report = rig.run(job)
        with rig.expecting(job):
            rig.note(fmt, report)
            blocks.append(_block(report, round_))
        if _is_good(blocks[-1], rig.schedule) or len(blocks) > rig.schedule.retries:
            break
        if blocks[-1].throttled:
            cool_down(rig, fmt, None)
    best = min(range(len(blocks)), key=lambda index: (bool(blocks[index].throttled), blocks[index].clock_drift or 0.0))
    return [replace(block, rejected=index != best) for index, block in enumerate(blocks)]


def _is_good(block: Block, plan: Schedule) -> bool:
    return not block.throttled and (block.clock_drift or 0.0) <= plan.drift_limit


def _block(report: Mapping[str, Any], round_: int) -> Block:
    """Raw values of one process; a native tool has no clock loop, and may not know of the rest."""
    clock, throttle = report.get("clock"), report.get("throttle")
    before, after = report.get("temperature_c") or (None, None)
    block = Block(
        round=round_,
        latency_s=tuple(report["latency_s"]),
        kept_every=report["kept_every"],
        runs=report["runs"],
        seconds=report["seconds"],
        clock_before_s=tuple(clock["before_s"]) if clock is not None else (),
        clock_after_s=tuple(clock["after_s"]) if clock is not None else (),
        load=Load(**report["load"]),
        evicted_bytes=report.get("evicted_bytes"),
        temperature_c=(before, after),
        governor=report.get("governor"),
        throttle=Throttle(**throttle) if throttle is not None else None,
        others_busy=report.get("others_busy"),
    )
    problem = next(block_problems(checked(block)), None)
    if problem is not None:
        raise ValueError(problem)
    return block


def measure_counters(rig: Rig, fmt: Format, model: str, pace_s: float) -> tuple[Counter, ...]:
    """CPU events per inference, each in passes of its own; one that the kernel refuses says why."""
    runs = rig.schedule.counter_runs
    job = replace(rig.job(fmt, model), mode="counters", runs=runs, timeout_s=120 + 100 * pace_s * runs)
    report = rig.run(job)
    with rig.expecting(job):
        return tuple(checked(_counter(name, found)) for name, found in report["counters"].items())


def _counter(name: str, found: Mapping[str, Any]) -> Counter:
    if "unavailable" in found:
        return Counter(name, unavailable=found["unavailable"])
    stream = found["stream"]
    return Counter(name, found["runs"], tuple(found["counts"]), stream["count"], stream["bytes"])
