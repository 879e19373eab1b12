"""Facts about the device under test that decide whether two results may be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgepack.errors import StableDeviceError
from edgepack.targets import HOST, Target


@dataclass(frozen=True)
class Cpu:
    """One online CPU: its core's name, top frequency (kHz) and governor as far as the kernel tells."""

    cpu: int
    core: str
    max_khz: int | None
    governor: str | None


@dataclass(frozen=True)
class DeviceFacts:
    """The lasting part of a probe report: what the machine is and what runs on it.

    Attributes:
        caches: "L2 unified 1048576 B 16-way, 4 CPUs" …, sorted.
        ram_bytes: rounded to 64 MiB, for kernels reserve a little more or less at every boot.
        runtimes: version by name of the runtimes that import.
    """

    machine: str
    device_model: str
    cpu_model: str
    features: tuple[str, ...]
    cpus: tuple[Cpu, ...]
    caches: tuple[str, ...]
    last_level_cache_bytes: int | None
    ram_bytes: int
    kernel: str
    libc: str
    python: str
    runtimes: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """64 hex digits of the hardware: the same machine has the same under any software."""
        hardware = asdict(self)
        for software in ("kernel", "libc", "python", "runtimes"):
            del hardware[software]
        hardware["cpus"] = [(cpu.cpu, cpu.core, cpu.max_khz) for cpu in self.cpus]
        return hashlib.sha256(json.dumps(hardware, sort_keys=True).encode()).hexdigest()

    @property
    def title(self) -> str:
        """One line for a table: the device's name, else its CPU's."""
        cores = f"{len(self.cpus)}×" if self.cpus else ""
        core = self.cpu_model or next((cpu.core for cpu in self.cpus if cpu.core), "") or self.machine
        return self.device_model if self.device_model and not self.cpu_model else f"{cores}{core}"

    def is_target(self, target: Target) -> bool:
        """Whether this device is of the target's kind: the same architecture and the target's main core."""
        if target.name == HOST:
            return True
        core = target.main_cluster.core
        names = f"{self.cpu_model} {self.device_model}".lower()
        return self.machine == target.arch and (core in {cpu.core for cpu in self.cpus} or target.name in names)


def facts_from_probe(report: Mapping[str, Any], device: str) -> DeviceFacts:
    """The lasting facts of a probe report.

    Args:
        report: of the runner's mode `probe`.
        device: its name, for messages.

    Raises:
        StableDeviceError: the report lacks a field.
    """
    try:
        caches = [
            f"L{cache['level']} {cache['type']} {cache['size_bytes']} B {cache['ways']}-way, {len(cache['cpus'])} CPUs"
            for cache in report["caches"]
        ]
        data_sizes = [cache["size_bytes"] for cache in report["caches"] if cache["type"] != "instruction"]
        return DeviceFacts(
            machine=report["machine"],
            device_model=report["device_model"],
            cpu_model=report["cpu_model"],
            features=tuple(report["features"]),
            cpus=tuple(Cpu(cpu["cpu"], cpu["core"], cpu["max_khz"], cpu["governor"]) for cpu in report["cpus"]),
            caches=tuple(sorted(caches)),
            last_level_cache_bytes=max(data_sizes, default=None),
            ram_bytes=round(report["ram_bytes"] / (64 << 20)) * (64 << 20),
            kernel=report["kernel"],
            libc=report["libc"],
            python=report["python"],
            runtimes={name: found["version"] for name, found in report["runtimes"].items() if found["imports"]},
        )
    except (KeyError, TypeError) as err:
        raise StableDeviceError(
            f"{device}: the probe report is not as expected: {err!r}", hint="push the runner to the device again"
        ) from err


def choose_cpus(facts: DeviceFacts, allowed: list[int], threads: int) -> tuple[int, ...]:
    """The CPUs to stay on: the last `threads` of the fastest cluster (the first serve the kernel's interrupts).

    Args:
        facts: of the device.
        allowed: CPUs that the runner may use there; empty where the machine cannot pin.
        threads: of the inference.

    Returns:
        `threads` CPUs; all allowed ones where the fastest cluster has fewer; empty where it cannot pin.
    """
    speeds = {cpu.cpu: cpu.max_khz or 0 for cpu in facts.cpus if cpu.cpu in allowed}
    fastest = [cpu for cpu in speeds if speeds[cpu] == max(speeds.values())]
    chosen = fastest[-threads:] if len(fastest) >= threads else sorted(speeds)
    return tuple(chosen)
