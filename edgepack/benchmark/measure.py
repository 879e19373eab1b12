"""Single measurements: one job on the device, its report as one dataclass of raw values."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from edgepack.benchmark.results import RUNNER, Block, Counter, Load, Memory, Snapshot, Throttle, Tool
from edgepack.benchmark.results_file import block_problems
from edgepack.benchmark.schedule import Schedule
from edgepack.devices.device import Device, Job, run_patiently
from edgepack.errors import StableDeviceError
from edgepack.model.scheme import Format
from edgepack.validation import checked, plain_text
from edgepack.workspace import Progress, silent

UNKNOWN_PACE_S = 1.0
"""Of an inference on a device that does not say: timeouts follow from it, and may be too long."""

LOAD_TIMEOUT_S = 600.0
LONGEST_S = 4 * 3600.0
"""No process takes longer, whatever a device says of its pace: one that never answers holds a session no longer."""
POLL_S = 10.0
"""Between two looks at the temperature: the look itself takes a second of one core."""


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
        with rig.extra.taken() if blocks else nullcontext():
            report = rig.run(job)
        with rig.expecting(job):
            rig.note(job, report)
            blocks.append(_block(report, round_))
        if _is_good(blocks[-1], rig.schedule) or len(blocks) > rig.schedule.retries:
            break
        if blocks[-1].throttled:
            cool_down(rig, fmt, None)
        elif rig.extra.spent:
            break
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
        runs_per_sample=report.get("runs_per_sample", 1),
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


@dataclass
class Told:
    """What the reports say of themselves.

    Attributes:
        tools: what measured the models of a format.
        random_inputs: a tool made its own inputs.
        temperature_c: the last that was seen.
        agreement_db: of a model's answers with this machine's, by its path on the device, where they were compared.
    """

    tools: dict[Format, Tool] = field(default_factory=dict)
    random_inputs: bool = False
    temperature_c: float | None = None
    agreement_db: dict[str, float] = field(default_factory=dict)


@dataclass
class Extra:
    """Time for what a session does beyond its plan.

    Attributes:
        left_s: below 0 where the last that was done took longer.
    """

    left_s: float

    @property
    def spent(self) -> bool:
        """Whether none is left."""
        return self.left_s <= 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """What the block takes is taken from it."""
        start = time.monotonic()
        yield
        self.left_s -= time.monotonic() - start


@dataclass(frozen=True)
class Rig:
    """What every measurement of a session shares.

    Attributes:
        inputs: path on the device.
        evict_bytes: where the target's caches are known to be larger than the device says; None otherwise.
        progress: told of pauses.
        extra: time for what the schedule does not plan.
    """

    device: Device
    schedule: Schedule
    threads: int
    cpus: tuple[int, ...]
    inputs: str | None
    extra: Extra
    evict_bytes: int | None = None
    progress: Progress = silent
    told: Told = field(default_factory=Told)

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

    def expecting(self, job: Job) -> Expecting:
        """For the lines that read a job's report."""
        return Expecting(f"{job.mode} of {job.model or job.format} on {self.device.name}")

    def run(self, job: Job) -> Mapping[str, Any]:
        """Runs a job, and once more where the first failure may mend itself. How long it may take follows from what the
        device said, so it is bounded here."""
        return run_patiently(self.device, replace(job, timeout_s=min(job.timeout_s, LONGEST_S)))

    def note(self, job: Job, report: Mapping[str, Any]) -> None:
        """Keeps what a report of a model says of its tool and its inputs.

        Raises:
            KeyError, TypeError, ValueError: it is not as expected.
        """
        tool, runtime = report.get("tool"), report.get("runtime")
        name, version = (RUNNER.name, RUNNER.version) if tool is None else (tool["name"], tool["version"])
        ran = None if runtime is None else f"{runtime['name']} {runtime['version'] or 'unknown'}"
        if job.format is None or job.model is None:
            raise ValueError("it is of no model")
        if "agreement_db" in report:
            self.told.agreement_db[job.model] = float(report["agreement_db"])
        self.told.tools[job.format] = checked(Tool(name, version or "", ran))
        self.told.random_inputs |= report.get("inputs") == "random"


def cool_down(rig: Rig, fmt: Format, temperature_c: float | None) -> float | None:
    """Waits until the device is cool enough, at most the schedule's `cool_down_s`.

    Args:
        rig: of the session.
        fmt: whose runtime may be started to ask for the temperature.
        temperature_c: if it is known; None waits before it looks.

    Returns:
        The temperature last seen, None where the device has none: then the whole time was waited.
    """
    plan = rig.schedule
    waited = 0.0
    while waited < plan.cool_down_s and (temperature_c is None or temperature_c > plan.start_below_c):
        seen = "" if temperature_c is None else f" from {temperature_c:.0f} °C"
        rig.progress(f"bench: cool down{seen}", round(waited), round(plan.cool_down_s))
        pause = min(POLL_S, plan.cool_down_s - waited)
        time.sleep(pause)
        waited += pause
        temperature_c = temperature_now(rig, fmt)
    return temperature_c


def temperature_now(rig: Rig, fmt: Format) -> float | None:
    """The device's hottest thermal zone, °C; None where it says nothing that is one.

    A process that only imports the runtime is the cheapest that tells; a device without this mode is probed.
    """
    if "memory" in rig.device.modes:
        return temperature_of(rig.run(replace(rig.job(fmt, None), inputs=None, timeout_s=LOAD_TIMEOUT_S)))
    return temperature_of(rig.device.probe())


def temperature_of(report: Mapping[str, Any]) -> float | None:
    """What a report of the mode `memory`, or of a probe, says of the temperature."""
    value = report.get("temperature_c")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


class Expecting:
    """Turns a report that lacks a field, or holds a wrong one, into an error that names what was done."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: object) -> None:
        if isinstance(err, (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)):
            raise StableDeviceError(
                f"{self._what}: the report is not as expected: {plain_text(repr(err))}",
                hint="push the runner to the device again",
            ) from err
