"""The role of a machine under test: a few calls, each of which runs one of the shipped programs once."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from edgepack.backends.registry import FACTS
from edgepack.errors import DataError, DeviceError, LinkError, StableDeviceError, TransientDeviceError
from edgepack.model.scheme import Format
from edgepack.validation import plain_text

Mode = Literal["latency", "turns", "cold", "memory", "counters", "outputs", "marks", "sweep"]
EVERY_MODE: frozenset[Mode] = frozenset(get_args(Mode))
"""What a device does that runs the shipped programs."""

SCHEMA_VERSION = 1
# Somebody outside ended the process; all other signals come from what the process did.
_KILLED_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
_HINTS = {
    "SIGILL": "the runtime uses instructions that this CPU lacks: it is unsupported here; try another version of it",
    "SIGKILL": "often the kernel ended it for want of memory; see `dmesg`",
}


@dataclass(frozen=True)
class Job:
    """One invocation of a program; see runtimes/CONTRACT.md. Paths are the device's own, as `Device.push` gave them.

    Attributes:
        mode: what to measure; `sweep` measures the machine and needs no model.
        format: of the model, and so the runtime; None in mode `sweep`.
        model: None measures the import alone (mode `memory`).
        inputs: npz on the device; None takes seeded values.
        outputs: npz to write on the device (mode `outputs`).
        cpus: CPUs to stay on; empty leaves it to the kernel.
        evict_bytes: of the buffer that empties the caches (mode `cold`); None leaves it to the runner.
        runs, seconds: both are reached before timing ends; of each turn (mode `turns`).
        more_models: in the same process (modes `turns` and `marks`).
        chain: the models are the segments of one, in order (mode `marks`).
        rounds: how often each model takes its turn (mode `turns`) or a count is repeated (mode `marks`).
        timeout_s: after which the whole process group is killed.
    """

    mode: Mode
    format: Format | None = None
    model: str | None = None
    inputs: str | None = None
    outputs: str | None = None
    threads: int = 1
    cpus: tuple[int, ...] = ()
    warmup_runs: int = 5
    warmup_s: float = 0.0
    runs: int = 1
    seconds: float = 0.0
    evict_bytes: int | None = None
    more_models: tuple[str, ...] = ()
    chain: bool = False
    rounds: int = 3
    timeout_s: float = 120.0

    @property
    def program(self) -> str:
        """The file in runtimes/ that does it."""
        return "sweep.py" if self.mode == "sweep" else "runner.py"

    @property
    def title(self) -> str:
        """For messages: `latency of model.onnx`."""
        if self.mode == "sweep":
            return "sweep"
        return f"{self.mode} of " + (Path(self.model).name if self.model else f"the {self.format} runtime alone")

    def arguments(self) -> list[str]:
        """The program's arguments, each one element."""
        if self.mode == "sweep":
            pinned = ["--cpus", ",".join(map(str, self.cpus))] if self.cpus else []
            return ["--threads", str(self.threads), *pinned]
        arguments = [self.mode, "--format", str(self.format), "--threads", str(self.threads)]
        arguments += ["--import-only"] if self.model is None else ["--model", self.model]
        for option, path in (("--inputs", self.inputs), ("--outputs", self.outputs)):
            arguments += [option, path] if path is not None else []
        if self.cpus:
            arguments += ["--cpus", ",".join(map(str, self.cpus))]
        if self.evict_bytes is not None:
            arguments += ["--evict-bytes", str(self.evict_bytes)]
        if self.mode in ("turns", "marks"):
            arguments += ["--rounds", str(self.rounds)] + ["--chain"] * self.chain
            arguments += ["--more-models", *self.more_models] if self.more_models else []
        arguments += ["--warmup-runs", str(self.warmup_runs), "--warmup-seconds", str(self.warmup_s)]
        return [*arguments, "--runs", str(self.runs), "--seconds", str(self.seconds)]


class Device(Protocol):
    """A machine that can run the shipped programs, or tools that do some of their work."""

    @property
    def name(self) -> str:
        """For messages: `local`, `pi@raspberrypi.local` …"""

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes of a job that it can run."""

    @property
    def resumed(self) -> int:
        """Jobs whose reports an earlier session that was cut had left there."""

    def probe(self) -> Mapping[str, Any]:
        """The runner's probe report.

        Raises:
            DeviceError: the device was unreachable or the probe failed.
        """

    def push(self, path: Path) -> str:
        """Brings a file to the device and gives its path there."""

    def run(self, job: Job) -> Mapping[str, Any]:
        """Runs one job in a fresh process and gives its report.

        Raises:
            TransientDeviceError: another try may work: a timeout, a killed process.
            StableDeviceError: it will fail again: no runtime, an illegal instruction, a report that is not one.
            DataError: the inputs do not fit the model.
        """

    def close(self) -> None:
        """Removes what `push` left behind; who made the device calls it."""


def probed(device: Device) -> dict[str, Any]:
    """The probe report of a device, with nothing in it but what its types say.

    Raises:
        DeviceError: see `Device.probe`; the report is not as expected.
    """
    from edgepack.targets.probe_report import checked_report

    return checked_report(device.probe(), device.name)


def run_patiently(device: Device, job: Job) -> Mapping[str, Any]:
    """Runs a job, and once more where the first failure may mend itself; a lost link was waited for already.

    Raises:
        DeviceError, DataError: see `Device.run`.
    """
    try:
        return device.run(job)
    except LinkError:
        raise
    except TransientDeviceError:
        return device.run(job)


def read_reply(what: str, returncode: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    """The report of a finished runner.

    Args:
        what: the run, for messages: `latency of model.onnx on local`.
        returncode: negative where a signal ended the process.
        stdout: the report, one JSON object.
        stderr: its last lines go into the message.

    Raises:
        TransientDeviceError: the process was killed from outside.
        StableDeviceError: it crashed, failed, or gave no valid report.
        DataError: the inputs do not fit the model.
    """
    tail = last_lines(stderr)
    if returncode < 0:
        raise _died(what, -returncode, tail)
    try:
        report = json.loads(stdout)
    except (ValueError, RecursionError) as err:
        found = stdout[:80].decode(errors="replace")
        raise StableDeviceError(
            f"{what}: exit code {returncode} and no JSON report on stdout: found {found!r}{tail}",
            hint="something on the device prints to stdout, or its Python is too old (3.9 is needed)",
        ) from err
    if not isinstance(report, dict) or report.get("schema_version") != SCHEMA_VERSION:
        version = report.get("schema_version") if isinstance(report, dict) else None
        raise StableDeviceError(
            f"{what}: the report has schema_version {version!r}, expected {SCHEMA_VERSION}",
            hint="the runner on the device is of another edgepack version: push it again",
        )
    error = report.get("error")
    if error is not None:
        raise _failed(what, error, tail)
    if returncode != 0:
        raise StableDeviceError(f"{what}: exit code {returncode} in spite of a whole report{tail}")
    return report


def last_lines(stderr: bytes, count: int = 3) -> str:
    """The last lines of stderr as the end of a message, empty where there are none."""
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return "; last lines on stderr: " + " | ".join(plain_text(line, 300) for line in lines[-count:]) if lines else ""


def _died(what: str, number: int, tail: str) -> DeviceError:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    kind = TransientDeviceError if name in _KILLED_FROM_OUTSIDE else StableDeviceError
    return kind(f"{what}: the process died of {name}{tail}", hint=_HINTS.get(name))


def _failed(what: str, error: Any, tail: str) -> DeviceError | DataError:
    kind = error.get("kind") if isinstance(error, dict) else None
    message = plain_text(str(error.get("message"))) if isinstance(error, dict) else repr(error)[:300]
    if kind == "inputs":
        return DataError(f"{what}: {message}", hint="check the names, shapes and dtypes of the example inputs")
    if kind == "runtime-missing":
        known = " or ".join(facts.runtimes[0] for facts in FACTS.values())
        return StableDeviceError(f"{what}: {message}", hint=f"install it in the device's Python: pip install {known}")
    if message.startswith("ModuleNotFoundError: No module named "):
        module = re.search(r"'([A-Za-z0-9_.]{1,100})'", message)  # what is no name must not stand in a command
        hint = "install it in the device's Python" + (f": pip install {module[1]}" if module else "")
        return StableDeviceError(f"{what}: {message}", hint=hint)
    kind = plain_text(str(kind), 300)
    return StableDeviceError(f"{what}: {message} ({kind}){tail if kind == 'failed' else ''}")
