"""What every measurement of a session shares, and what the reports say of how they came about."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgepack.bench.checked import checked
from edgepack.bench.devices.device import Device, Job, run_patiently
from edgepack.bench.results import RUNNER, Tool
from edgepack.bench.schedule import Schedule
from edgepack.errors import StableDeviceError
from edgepack.model.scheme import Format
from edgepack.workspace import Progress, silent

LOAD_TIMEOUT_S = 600.0
POLL_S = 10.0
"""Between two looks at the temperature: the look itself takes a second of one core."""


@dataclass
class Told:
    """What the reports say of themselves.

    Attributes:
        tools: what measured the models of a format.
        random_inputs: a tool made its own inputs.
        temperature_c: the last that was seen.
    """

    tools: dict[Format, Tool] = field(default_factory=dict)
    random_inputs: bool = False
    temperature_c: float | None = None


@dataclass(frozen=True)
class Rig:
    """What every measurement of a session shares.

    Attributes:
        inputs: path on the device.
        evict_bytes: where the target's caches are known to be larger than the device says; None otherwise.
        progress: told of pauses.
    """

    device: Device
    schedule: Schedule
    threads: int
    cpus: tuple[int, ...]
    inputs: str | None
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
        """Runs a job, and once more where the first failure may mend itself."""
        return run_patiently(self.device, job)

    def note(self, fmt: Format, report: Mapping[str, Any]) -> None:
        """Keeps what a report of a model says of its tool and its inputs.

        Raises:
            KeyError, TypeError, ValueError: it is not as expected.
        """
        tool, runtime = report.get("tool"), report.get("runtime")
        name, version = (RUNNER.name, RUNNER.version) if tool is None else (tool["name"], tool["version"])
        ran = None if runtime is None else f"{runtime['name']} {runtime['version'] or 'unknown'}"
        self.told.tools[fmt] = checked(Tool(name, version or "", ran))
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
        if isinstance(err, (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError)):
            raise StableDeviceError(
                f"{self._what}: the report is not as expected: {err!r}", hint="push the runner to the device again"
            ) from err
