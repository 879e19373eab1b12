"""What a sweep says about one cluster, beside what the kernel and the listed target say of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any, Literal

from edgepack.bench.knees import Knee
from edgepack.bench.sweep import Read, Sweep
from edgepack.targets import Bandwidth, Cache, Cluster

LEVELS = ("L1d", "L2", "L3")
LARGEST_L1 = 256 << 10
DRAM_FACTOR = 4
"""A working set that many times the largest cache is read from memory."""


def settled(
    found: Cluster, sweep: Sweep, rises: Sequence[Knee], listed: Cluster | None, alone: bool
) -> tuple[Cluster, list[str]]:
    """One cluster with what was measured in it.

    Args:
        found: with the kernel's caches and frequency.
        sweep: of this cluster.
        rises: the knees of its latency curve.
        listed: the cluster that it is compared with.
        alone: the machine has no other cluster.

    Returns:
        The cluster, and notes on where the kernel and the latency curve disagree.
    """
    cluster, notes = _with_caches(found, sweep, rises, listed, alone)
    sizes = [cache.size_bytes for cache in cluster.data_caches] + [rise.at_bytes for rise in rises]
    last_level = max(sizes, default=0)
    single = [read for read in sweep.reads if read.threads == 1]
    every = [read for read in sweep.reads if read.threads == sweep.threads]
    if single[-1].total_bytes < DRAM_FACTOR * last_level:
        notes.append(
            f"read: the largest working set is {size(single[-1].total_bytes)}, less than {DRAM_FACTOR} × the last-level"
            f" cache of {size(last_level)}: part of it is read from there"
        )
    mhz = round(sweep.clock_hz / 1e6) if sweep.clock_hz else cluster.frequency_mhz
    return replace(
        cluster,
        frequency_mhz=mhz,
        frequency_source="probed" if mhz else "reference",
        read=plateau(single, last_level),
        read_all_cores=plateau(every, last_level) if sweep.threads > 1 else None,
    ), notes


def plateau(reads: Sequence[Read], last_level: int) -> Bandwidth:
    """Bandwidth of the memory: the range over working sets far beyond the caches, or of the largest one.

    Args:
        reads: of one number of threads.
        last_level: bytes of the largest cache.
    """
    far = [read for read in reads if read.total_bytes >= DRAM_FACTOR * last_level] or [reads[-1]]
    rates = [read.typical / 1e9 for read in far]
    return Bandwidth(_rounded(min(rates)), _rounded(max(rates)), source="probed")


def size(size_bytes: int) -> str:
    """`5.5M`: for people."""
    for unit, shift in (("M", 20), ("K", 10)):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.3g}{unit}"
    return f"{size_bytes} B"


def rise_text(rise: Knee) -> str:
    """`at about 5.5M (20 to 140 ns)`."""
    return f"at about {size(rise.at_bytes)} ({rise.before_s * 1e9:.3g} to {rise.after_s * 1e9:.3g} ns)"


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def _with_caches(
    found: Cluster, sweep: Sweep, rises: Sequence[Knee], listed: Cluster | None, alone: bool
) -> tuple[Cluster, list[str]]:
    kernel = {level: getattr(found, level) for level in LEVELS if getattr(found, level) is not None}
    if not sweep.latency:
        return found, []
    if not kernel:
        caches: dict[str, Any] = _from_rises(rises, listed, found.cores, alone)
        why = "the kernel lists no data caches: their sizes are where the latency rises, their ways are unknown"
        return replace(found, **caches), [why] if caches else []
    notes = []
    pairs = _paired([cache.size_bytes for cache in kernel.values()], rises)
    for (level, cache), rise in zip(kernel.items(), pairs, strict=True):
        listing = f"{level}: the kernel lists {size(cache.size_bytes)}"
        if rise is None and sweep.latency[-1].size_bytes >= 2 * cache.size_bytes:
            notes.append(f"{listing}, but latency does not rise near it")
        elif rise is not None and not rise.agrees(cache.size_bytes):
            notes.append(f"{listing}, but latency rises {rise_text(rise)}")
    notes += [
        f"latency also rises {rise_text(one)}, where the kernel lists no cache" for one in rises if one not in pairs
    ]
    return found, notes


def _paired(sizes: Sequence[int], rises: Sequence[Knee]) -> list[Knee | None]:
    """For each cache the rise that it causes. Both go up in order, so the choice is which of the more are left out."""
    pairs = min(len(sizes), len(rises))

    def apart(choice: tuple[tuple[int, ...], tuple[int, ...]]) -> float:
        return sum(abs(math.log(rises[at].at_bytes / sizes[of])) for of, at in zip(*choice, strict=True))

    choices = product(combinations(range(len(sizes)), pairs), combinations(range(len(rises)), pairs))
    chosen = dict(zip(*min(choices, key=apart), strict=True))
    return [rises[chosen[of]] if of in chosen else None for of in range(len(sizes))]


def _from_rises(rises: Sequence[Knee], listed: Cluster | None, cores: int, alone: bool) -> dict[str, Any]:
    """Caches of the rises alone. The listed cluster gives level, sharing and exact size where they agree."""
    caches: dict[str, Cache] = {}
    for index, rise in enumerate(rises):
        free = [level for level in LEVELS if all(LEVELS.index(level) > LEVELS.index(taken) for taken in caches)]
        known = {level: getattr(listed, level) for level in free if listed and getattr(listed, level) is not None}
        agreed = [level for level, cache in known.items() if rise.agrees(cache.size_bytes)]
        if agreed:
            caches[agreed[0]] = replace(known[agreed[0]], ways=None, source="probed")
            continue
        if index == 0 and rise.size_bytes > LARGEST_L1:
            free = free[1:]
        if free:
            last = index == len(rises) - 1
            caches[free[0]] = Cache(rise.size_bytes, _shared(free[0], last, cores, alone), None, source="probed")
    return caches


def _shared(level: str, last: bool, cores: int, alone: bool) -> Literal["core", "cluster", "all"]:
    """Who shares a cache that the kernel does not tell of: as small Arm CPUs have it."""
    if level == "L1d" or cores == 1 or not last:
        return "core"
    return "cluster" if level == "L2" or alone else "all"
