"""The role of a machine under test: a few calls, each of which runs the shipped runner once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from edgepack.types import Format

Mode = Literal["latency", "turns", "cold", "memory", "counters", "outputs", "marks"]


@dataclass(frozen=True)
class Job:
    """One invocation of the runner; see runtimes/CONTRACT.md. Paths are the device's own, as `Device.push` gave them.

    Attributes:
        mode: what to measure.
        format: of the model, and so the runtime.
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
    format: Format
    model: str | None
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

    def arguments(self) -> list[str]:
        """The runner's arguments, each one element."""
        arguments = [self.mode, "--format", self.format, "--threads", str(self.threads)]
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
    """A machine that can run the runner."""

    @property
    def name(self) -> str:
        """For messages: `local`, `pi@raspberrypi.local` …"""

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
