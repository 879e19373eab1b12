"""A target from a live device: what the runner's probe reports, as a `Target`. `host` is this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from edgepack.backends.registry import FACTS
from edgepack.errors import StableDeviceError
from edgepack.model.scheme import Format
from edgepack.targets.target import HOST, Cache, Cluster, Target
from edgepack.validation import plain_text
from edgepack.workspace import shipped

# Of the hundred flags a CPU lists, those that decide which kernel runs: the kernel's name → ours.
_ISA = {
    "asimd": "neon",
    "neon": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "sve": "sve",
    "atomics": "lse",
    "sse4_2": "sse4.2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512-vnni",
    "avx_vnni": "avx-vnni",
    "amx_int8": "amx-int8",
}
_LEVELS = {(1, "data"): "L1d", (1, "instruction"): "L1i", (2, "unified"): "L2", (3, "unified"): "L3"}


@cache
def probe_host() -> Target:
    """This machine as a target: about 0.1 s the first time, remembered after.

    Raises:
        StableDeviceError: the probe does not run here.
    """
    command = [sys.executable, str(shipped("runtimes/runner.py")), "probe", "--no-imports"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
        return target_from_probe(json.loads(done.stdout), HOST)
    except (OSError, subprocess.SubprocessError, ValueError, RecursionError) as err:
        raise StableDeviceError(
            f"cannot probe this machine: {plain_text(str(err))}", hint=f"run it by hand: {' '.join(command)}"
        ) from err


def target_from_probe(report: Mapping[str, Any], name: str) -> Target:
    """A target of the facts in a probe report (runtimes/CONTRACT.md); what it does not know stays None.

    Args:
        report: of the runner's mode `probe`.
        name: for the target.

    Raises:
        StableDeviceError: the report lacks something, holds what cannot be, or names no CPU.
    """
    from edgepack.targets.probe_report import checked_report

    report = checked_report(report, name)
    if not report["cpus"]:
        raise StableDeviceError(f"{name}: the probe report names no CPU", hint="push the runner to the device again")
    runtimes = report["runtimes"]
    usable: dict[Format, str] = {}
    for fmt, facts in FACTS.items():
        found = (one for one in facts.runtimes if one in runtimes and runtimes[one]["imports"] is not False)
        if (runtime := next(found, None)) is not None:
            usable[fmt] = runtime
    missing = [fmt for fmt in FACTS if fmt not in usable]
    return Target(
        name=name,
        description=report["device_model"] or report["cpu_model"] or report["machine"],
        arch=report["machine"],
        isa=tuple(dict.fromkeys(ours for flag, ours in _ISA.items() if flag in report["features"])),
        clusters=_clusters(report),
        ram_bytes=report["ram_bytes"],
        runtimes=usable,
        no_runtime_reason=f"no runtime for {', '.join(missing)} is installed" if missing else None,
    )


def _clusters(report: Mapping[str, Any]) -> tuple[Cluster, ...]:
    """CPUs of one core and one top frequency form a cluster; the fastest comes first."""
    groups: dict[tuple[str, int | None], list[int]] = {}
    for cpu in report["cpus"]:
        groups.setdefault((cpu["core"], cpu["max_khz"]), []).append(cpu["cpu"])
    clusters = []
    for (core, max_khz), cpus in sorted(groups.items(), key=lambda item: -(item[0][1] or 0)):
        name = core or report["cpu_model"] or report["machine"]
        caches = _caches(report, cpus)
        frequency = max_khz // 1000 if max_khz else None
        clusters.append(Cluster(name, name, len(cpus), frequency, frequency_source="probed", **caches))
    return tuple(clusters)


def _caches(report: Mapping[str, Any], cpus: list[int]) -> dict[str, Any]:
    caches: dict[str, Any] = {}
    for entry in report["caches"]:
        level = _LEVELS.get((entry["level"], entry["type"]))
        sharers = entry["cpus"]
        if level is None or level in caches or (sharers and cpus[0] not in sharers):
            continue
        caches[level] = Cache(
            entry["size_bytes"],
            _shared(level, sharers, cpus, len(report["cpus"])),
            entry["ways"],
            entry["line_bytes"] or 64,
            source="probed",
        )
    return caches


def _shared(level: str, sharers: list[int], cpus: list[int], all_cpus: int) -> Literal["core", "cluster", "all"]:
    """Who shares a cache. getconf names no sharers: the low levels are then taken as private."""
    if level in ("L1d", "L1i") or (len(sharers) <= 1 and level != "L3"):
        return "core"
    return "cluster" if set(sharers) <= set(cpus) and len(cpus) < all_cpus else "all"
