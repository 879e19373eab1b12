"""The files of the kernel by which a runtime recognises the target's CPU: `proc/cpuinfo` and `sys/devices/system/cpu`.

Both runtimes ask the cpuinfo library which kernels to use. Under emulation it would read this machine's files, which
describe another architecture, and end the process; QEMU reads those under its root folder first, so they go there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgepack.targets.target import Cache, Cluster, Target

_PARTS = {
    "cortex-a53": 0xD03,
    "cortex-a55": 0xD05,
    "cortex-a57": 0xD07,
    "cortex-a72": 0xD08,
    "cortex-a73": 0xD09,
    "cortex-a75": 0xD0A,
    "cortex-a76": 0xD0B,
    "cortex-a78": 0xD41,
    "cortex-x1": 0xD44,
}
"""Arm's part numbers (MIDR_EL1) by core."""

_VARIANTS = {"cortex-a55": 2, "cortex-a75": 3}
"""The major revision (MIDR_EL1's variant) where it matters: cpuinfo believes in dot products from r1 of Cortex-A55 and
r2 of Cortex-A75 on, whatever the features say, and boards have r2 and r3."""

_ALWAYS = ("fp", "asimd", "evtstrm", "crc32", "cpuid")
_FEATURES = {"lse": "atomics", "fp16": "fphp asimdhp", "dotprod": "asimddp", "i8mm": "i8mm", "sve": "sve"}
"""The kernel's names for the target's `isa`."""


def write_facts(target: Target, root: Path) -> None:
    """Writes the files that describe an aarch64 target.

    Args:
        target: with the core of every cluster.
        root: folder that QEMU takes for `/`; `proc` and `sys` are made in it.
    """
    for name, text in cpu_files(target).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def cpu_files(target: Target) -> dict[str, str]:
    """Text by path, relative to the root folder."""
    cpus = list(_cpus(target))
    every = _span(0, target.cores)
    folder = "sys/devices/system/cpu"
    files = {"proc/cpuinfo": "\n".join(_cpuinfo(target, number, cluster) for number, cluster, _ in cpus)}
    files |= {f"{folder}/{name}": every for name in ("possible", "present", "online")}
    files[f"{folder}/kernel_max"] = f"{target.cores - 1}\n"
    for number, cluster, first in cpus:
        own = f"{folder}/cpu{number}"
        siblings = _span(first, cluster.cores)
        files |= {
            f"{own}/topology/physical_package_id": f"{target.clusters.index(cluster)}\n",
            f"{own}/topology/core_id": f"{number - first}\n",
            f"{own}/topology/core_siblings_list": siblings,
            f"{own}/topology/package_cpus_list": siblings,
            f"{own}/topology/thread_siblings_list": f"{number}\n",
        }
        if cluster.frequency_mhz is not None:
            frequency = f"{cluster.frequency_mhz * 1000}\n"
            files |= {f"{own}/cpufreq/cpuinfo_{end}_freq": frequency for end in ("min", "max")}
        sharers = {"core": f"{number}\n", "cluster": siblings, "all": every}
        for index, (level, kind, cache) in enumerate(_caches(cluster)):
            files |= _cache_files(f"{own}/cache/index{index}", level, kind, cache, sharers[cache.shared])
    return files


def _cpus(target: Target) -> Iterator[tuple[int, Cluster, int]]:
    """Number of each CPU, its cluster, and the number of the cluster's first CPU."""
    first = 0
    for cluster in target.clusters:
        for number in range(first, first + cluster.cores):
            yield number, cluster, first
        first += cluster.cores


def _caches(cluster: Cluster) -> Iterator[tuple[int, str, Cache]]:
    levels = (
        (1, "Data", cluster.L1d),
        (1, "Instruction", cluster.L1i),
        (2, "Unified", cluster.L2),
        (3, "Unified", cluster.L3),
    )
    for level, kind, cache in levels:
        if cache is not None:
            yield level, kind, cache


def _cache_files(folder: str, level: int, kind: str, cache: Cache, sharers: str) -> dict[str, str]:
    files = {
        "level": str(level),
        "type": kind,
        "size": f"{cache.size_bytes // 1024}K",
        "coherency_line_size": str(cache.line_bytes),
        "shared_cpu_list": sharers.strip(),
    }
    if cache.ways is not None:
        files["ways_of_associativity"] = str(cache.ways)
        files["number_of_sets"] = str(cache.size_bytes // (cache.ways * cache.line_bytes))
    return {f"{folder}/{name}": f"{text}\n" for name, text in files.items()}


def _cpuinfo(target: Target, number: int, cluster: Cluster) -> str:
    features = [*_ALWAYS, *(_FEATURES[name] for name in target.isa if name in _FEATURES)]
    return (
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {' '.join(features)}\n"
        f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: {_VARIANTS.get(cluster.core, 0):#x}\n"
        f"CPU part\t: 0x{_PARTS.get(cluster.core, 0):03x}\nCPU revision\t: 3\n"
    )


def _span(first: int, count: int) -> str:
    """`0-3` as the kernel writes a list of CPUs."""
    return f"{first}-{first + count - 1}\n" if count > 1 else f"{first}\n"
