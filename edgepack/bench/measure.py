"""Single measurements: one job on the device, its report as one dataclass of raw values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgepack.bench.devices.device import Device, Job
from edgepack.bench.results import Block, Counter, Load, Memory, Snapshot
from edgepack.bench.schedule import Schedule
from edgepack.errors import StableDeviceError, TransientDeviceError
from edgepack.types import Format

LOAD_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Rig:
    """What every measurement of a session shares.

    Attributes:
        inputs: path on the device.
        evict_bytes: where the target's caches are known to be larger than the device says; None otherwise.
    """

    device: Device
    schedule: Schedule
    threads: int
    cpus: tuple[int, ...]
    inputs: str | None
    evict_bytes: int | None = None

    def job(self, fmt: Format, model: str | None) -> Job:
        """A job with the session's settings, to be completed by the measurement."""
        return Job(
            "memory",
            fmt,
            model,
            self.inputs,
            threads=self.threads,
            cpus=self.cpus,
            evict_bytes=self.evict_bytes,
        )


def run_patiently(device: Device, job: Job) -> Mapping[str, Any]:
    """Runs a job, and once more where the first failure may mend itself."""
    try:
        return device.run(job)
    except TransientDeviceError:
        return device.run(job)


def measure_import(rig: Rig, fmt: Format) -> Snapshot:
    """What a process holds with only the runtime of a format imported."""
    job = replace(rig.job(fmt, None), inputs=None, timeout_s=LOAD_TIMEOUT_S)
    report = run_patiently(rig.device, job)
    with _Expecting(rig, job):
        return Snapshot(**report["imported"])


def measure_memory(rig: Rig, fmt: Format, model: str) -> tuple[Memory, float]:
    """What a process holds with the model loaded and run, and the seconds of its first inference."""
    job = replace(rig.job(fmt, model), timeout_s=LOAD_TIMEOUT_S)
    report = run_patiently(rig.device, job)
    with _Expecting(rig, job):
        memory = Memory(Snapshot(**report["loaded"]), Snapshot(**report["ran"]))
        return memory, float(report["load"]["first_inference_s"])


def measure_warm(rig: Rig, fmt: Format, model: str, round_: int, pace_s: float) -> list[Block]:
    """Warm latency in a fresh process; again, a bounded number of times, while the clock drifts.

    Args:
        rig: of the session.
        fmt: of the model.
        model: path on the device.
        round_: of the session.
        pace_s: seconds of one inference, roughly; sets the timeout.

    Returns:
        Every block measured; all but one are marked as rejected. If none was steady the steadiest stands.
    """
    plan = rig.schedule
    job = replace(
        rig.job(fmt, model),
        mode="latency",
        warmup_runs=plan.warmup_runs,
        warmup_s=plan.warmup_s,
        runs=plan.runs,
        seconds=plan.seconds,
        timeout_s=60 + 5 * (plan.warmup_s + plan.seconds) + 5 * pace_s * (plan.warmup_runs + plan.runs),
    )
    return _steady(rig, job, round_)


def measure_cold(rig: Rig, fmt: Format, model: str, round_: int, pace_s: float) -> list[Block]:
    """Cold latency in a fresh process; arguments and result as of `measure_warm`."""
    runs = rig.schedule.cold_runs
    # Emptying the caches reads a large buffer: up to a second a run on a slow board.
    job = replace(
        rig.job(fmt, model), mode="cold", warmup_runs=1, runs=runs, timeout_s=120 + (runs + 1) * (5 * pace_s + 1)
    )
    return _steady(rig, job, round_)


def _steady(rig: Rig, job: Job, round_: int) -> list[Block]:
    blocks: list[Block] = []
    for _ in range(1 + rig.schedule.retries):
        report = run_patiently(rig.device, job)
        with _Expecting(rig, job):
            blocks.append(_block(report, round_))
        if blocks[-1].clock_drift <= rig.schedule.drift_limit:
            break
    steadiest = min(range(len(blocks)), key=lambda index: blocks[index].clock_drift)
    return [replace(block, rejected=index != steadiest) for index, block in enumerate(blocks)]


def _block(report: Mapping[str, Any], round_: int) -> Block:
    return Block(
        round=round_,
        latency_s=tuple(report["latency_s"]),
        kept_every=report["kept_every"],
        runs=report["runs"],
        seconds=report["seconds"],
        clock_before_s=tuple(report["clock"]["before_s"]),
        clock_after_s=tuple(report["clock"]["after_s"]),
        load=Load(**report["load"]),
        evicted_bytes=report.get("evicted_bytes"),
    )


def measure_counters(rig: Rig, fmt: Format, model: str, pace_s: float) -> tuple[Counter, ...]:
    """CPU events per inference, each in passes of its own; one that the kernel refuses says why."""
    runs = rig.schedule.counter_runs
    job = replace(rig.job(fmt, model), mode="counters", runs=runs, timeout_s=120 + 100 * pace_s * runs)
    report = run_patiently(rig.device, job)
    with _Expecting(rig, job):
        return tuple(_counter(name, found) for name, found in report["counters"].items())


def _counter(name: str, found: Mapping[str, Any]) -> Counter:
    if "unavailable" in found:
        return Counter(name, unavailable=found["unavailable"])
    stream = found["stream"]
    return Counter(name, found["runs"], tuple(found["counts"]), stream["count"], stream["bytes"])


class _Expecting:
    """Turns a report that lacks a field, or holds a wrong one, into an error that names the job."""

    def __init__(self, rig: Rig, job: Job) -> None:
        self._what = f"{job.mode} of {job.model or job.format} on {rig.device.name}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: object) -> None:
        if isinstance(err, (KeyError, TypeError, ValueError, ZeroDivisionError)):
            raise StableDeviceError(
                f"{self._what}: the report is not as expected: {err!r}", hint="push the runner to the device again"
            ) from err
