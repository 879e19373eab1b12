"""Reports as devices of the shipped targets would send them: quick caches before a slow memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.targets.target import Cluster, Target

KINDS = {"L1d": (1, "data"), "L1i": (1, "instruction"), "L2": (2, "unified"), "L3": (3, "unified")}
FLAGS = {"neon": "asimd", "dotprod": "asimddp", "fp16": "asimdhp", "lse": "atomics", "sse4.2": "sse4_2", "avx2": "avx2"}
CYCLES = (4, 14, 40, 300)


def probe_report(target: Target, *, caches: bool = True, **changes: Any) -> dict[str, Any]:
    """Of the runner's mode `probe` on a device of this kind."""
    cpus, entries, first = [], [], 0
    for cluster in target.clusters:
        numbers = list(range(first, first + cluster.cores))
        khz = (cluster.frequency_mhz or 1000) * 1000
        cpus += [{"cpu": number, "core": cluster.core, "max_khz": khz, "governor": "performance"} for number in numbers]
        for name, (level, kind) in KINDS.items():
            cache = getattr(cluster, name)
            for sharers in [numbers] if cache and cache.shared != "core" else [[one] for one in numbers]:
                if cache:
                    facts = {"size_bytes": cache.size_bytes, "ways": cache.ways, "line_bytes": cache.line_bytes}
                    entries.append({"level": level, "type": kind, "cpus": sharers, **facts})
        first += cluster.cores
    return {
        "schema_version": 1,
        "mode": "probe",
        "machine": target.arch,
        "device_model": target.description,
        "cpu_model": "",
        "features": [FLAGS.get(flag, flag) for flag in target.isa],
        "cpus": cpus,
        "allowed_cpus": list(range(first)),
        "caches": entries if caches else [],
        "ram_bytes": target.ram_bytes - (70 << 20),
        "runtimes": {"onnxruntime": {"version": "1.24", "imports": True, "error": None}},
        **changes,
    }


def load_cycles(sizes: Sequence[int], working_set: int) -> float:
    """Cycles of a load: every cache holds what fits, and of more a share that soon goes to nothing."""
    cycles = float(CYCLES[-1])
    for index in range(len(sizes) - 1, -1, -1):
        over = working_set / sizes[index] - 1
        hits = 1.0 if over <= 0 else max(0.0, 1 - 2.5 * over)
        cycles = hits * CYCLES[index] + (1 - hits) * cycles
    return cycles


def sweep_report(
    cluster: Cluster, cpus: Sequence[int], *, read: float = 4e9, together: float | None = None, **changes: Any
) -> dict[str, Any]:
    """Of `sweep.py` on such a cluster, whose memory gives `read` bytes per second to one core, `together` to all."""
    hz = (cluster.frequency_mhz or 1000) * 1e6
    sizes = [cache.size_bytes for cache in cluster.data_caches]
    sets = [(4 << 10 << octave) * part // 4 for octave in range(15) for part in (4, 5, 6, 7)][:57]
    latency = [
        {"bytes": size, "load_s": [load_cycles(sizes, size) / hz * noise for noise in (1.3, 1, 1.01)]} for size in sets
    ]
    bandwidth = []
    for threads in sorted({1, len(cpus)}):
        memory = read if threads == 1 else together or read
        for size in (16 << 10 << octave for octave in range(13)):
            rate = 4 * memory if size * threads <= max(sizes, default=0) else memory
            bandwidth.append({"bytes": size, "threads": threads, "bytes_per_s": [rate] * 3})
    return {
        "schema_version": 1,
        "mode": "sweep",
        "machine": "any",
        "cpus": list(cpus),
        "threads": len(cpus),
        "quick": False,
        "reader": "loads",
        "code_unavailable": None,
        "load_average": 0.1,
        "bandwidth": bandwidth,
        "latency": latency,
        "huge_bytes": 0,
        "blocks": [{"measures": "latency", "bytes": [1, 2], "clock_hz": [hz, hz], "attempts": 1, "drifted": False}],
        "clock_hz": hz,
        "temperature_c": [None, None],
        "seconds": 9.5,
        **changes,
    }


def drifting(report: Mapping[str, Any], drift: float) -> dict[str, Any]:
    """The same report, over one block of which the clock changed."""
    hz = report["clock_hz"]
    block = {"measures": "latency", "bytes": [1, 2], "clock_hz": [hz, hz / (1 + drift)], "attempts": 3, "drifted": True}
    return {**report, "blocks": [*report["blocks"], block]}
