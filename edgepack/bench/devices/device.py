"""The role of a machine under test: a few calls, each of which runs one of the shipped programs once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from edgepack.errors import LinkError, TransientDeviceError
from edgepack.model.scheme import Format

Mode = Literal["latency", "turns", "cold", "memory", "counters", "outputs", "marks", "sweep"]
EVERY_MODE: frozenset[Mode] = frozenset(get_args(Mode))
"""What a device does that runs the shipped programs."""


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
