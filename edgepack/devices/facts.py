"""Facts about the device under test that decide whether two results may be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgepack.errors import StableDeviceError, UsageError
from edgepack.targets.target import HOST, Target
from edgepack.validation import checked, plain_text


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
        StableDeviceError: the report lacks a field, or holds what cannot be.
    """
    from edgepack.targets.probe_report import checked_report

    report = checked_report(report, device)
    try:
        caches = [
            f"L{cache['level']} {cache['type']} {cache['size_bytes']} B {cache['ways']}-way, {len(cache['cpus'])} CPUs"
            for cache in report["caches"]
        ]
        data_sizes = [cache["size_bytes"] for cache in report["caches"] if cache["type"] != "instruction"]
        found = DeviceFacts(
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
            runtimes={name: one["version"] for name, one in report["runtimes"].items() if one["imports"]},
        )
        return checked(found)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise StableDeviceError(
            f"{device}: the probe report is not as expected: {plain_text(repr(err))}",
            hint="push the runner to the device again",
        ) from err


def choose_cpus(
    facts: DeviceFacts, allowed: Sequence[int], threads: int, cluster: str | None = None
) -> tuple[int, ...]:
    """The CPUs to stay on: the fastest `threads` of one cluster, the last of them (the first serve interrupts).

    Args:
        facts: of the device.
        allowed: CPUs that the runner may use there; empty where the machine cannot pin.
        threads: of the inference.
        cluster: name of its core, such as "cortex-a55"; by default the one with the fastest CPU.

    Returns:
        `threads` CPUs; all allowed ones where the fastest cluster has fewer; empty where it cannot pin.

    Raises:
        UsageError: the device has no such cluster, or too few CPUs in it.
    """
    usable = [cpu for cpu in facts.cpus if cpu.cpu in allowed]
    chosen = _fastest(usable) if cluster is None else [cpu for cpu in usable if cpu.core == cluster]
    if cluster is not None and len(chosen) < max(threads, 1):
        raise _no_cluster(cluster, threads, chosen, usable)
    if len(chosen) < threads:
        return tuple(sorted(cpu.cpu for cpu in usable))
    by_speed = sorted(chosen, key=lambda cpu: (cpu.max_khz or 0, cpu.cpu))
    return tuple(sorted(cpu.cpu for cpu in by_speed[-threads:]))


def cluster_of(facts: DeviceFacts, cpus: Sequence[int]) -> str | None:
    """The core that all of these CPUs have; None where they differ, or have no names."""
    cores = {cpu.core for cpu in facts.cpus if cpu.cpu in cpus}
    return next(iter(cores)) or None if len(cores) == 1 else None


def _fastest(cpus: Sequence[Cpu]) -> list[Cpu]:
    """The CPUs of the fastest one's kind: its core's, or those of its speed where cores have no names.

    Cores of one kind may differ a little in speed, as the two pairs of Cortex-A76 in an RK3588 do.
    """
    if not cpus:
        return []
    best = max(cpus, key=lambda cpu: (cpu.max_khz or 0, cpu.cpu))
    return [cpu for cpu in cpus if (cpu.core == best.core if best.core else cpu.max_khz == best.max_khz)]


def _no_cluster(cluster: str, threads: int, chosen: Sequence[Cpu], usable: Sequence[Cpu]) -> UsageError:
    clusters: dict[str, list[str]] = {}
    for cpu in usable:
        if cpu.core:
            clusters.setdefault(cpu.core, []).append(str(cpu.cpu))
    there = "; ".join(f"{core} (CPUs {', '.join(numbers)})" for core, numbers in clusters.items())
    if chosen:
        return UsageError(f"{threads} threads do not fit on {cluster}: found {there}", hint="ask for fewer threads")
    if not usable:
        return UsageError(
            f"no cluster {cluster}: the device cannot pin a program to CPUs", hint="leave the cluster out"
        )
    return UsageError(
        f"no cluster {cluster} on the device: found {there or 'CPUs without names'}",
        hint="name one of these" if there else "leave the cluster out",
    )
