"""Where a device is not what the shipped targets say, and which of them it is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edgepack.targets.target import Bandwidth, Cache, Cluster, Target

FREQUENCY_TOLERANCE = 0.05
BANDWIDTH_TOLERANCE = 0.15
RAM_TOLERANCE = 0.25
"""A kernel reports less than the board has: the GPU and the kernel itself keep some."""
_LEVELS = ("L1d", "L1i", "L2", "L3")


@dataclass(frozen=True)
class Difference:
    """One fact that differs enough to matter.

    Attributes:
        key: its path in a targets file.
        shipped, found: as a person reads them.
    """

    key: str
    shipped: str
    found: str

    def __str__(self) -> str:
        return f"{self.key}: {self.shipped}, found {self.found}"


def differences(found: Target, shipped: Target) -> tuple[Difference, ...]:
    """What matters of the differences between a probed target and a listed one.

    The tolerances are 5 % for a frequency and 15 % outside the listed range for a bandwidth; none for sizes and ways of
    caches, architecture, cores, and instruction sets that are missing. What was not found out is no difference.
    """
    return tuple(_differences(found, shipped))


def counterpart(cluster: Cluster, index: int, shipped: Target) -> Cluster | None:
    """The shipped cluster of the same core, else the one at the same place."""
    same = [other for other in shipped.clusters if other.core == cluster.core]
    if same:
        return same[0]
    return shipped.clusters[index] if index < len(shipped.clusters) else None


def nearest(found: Target, listed: Iterable[Target], names: str = "") -> Target | None:
    """The listed target that a device most likely is; None where none has its architecture and main core.

    Args:
        found: as probed.
        listed: targets to choose from.
        names: what the device calls itself and its CPU; it stands in for the core where a core has no name (x86).
    """
    words = _words(f"{found.description} {names}")
    main = found.main_cluster
    same = [
        target
        for target in listed
        if target.arch == found.arch and (target.main_cluster.core == main.core or target.name.lower() in words)
    ]

    def distance(target: Target) -> tuple[float, ...]:
        low, high = target.ram_bytes, target.ram_max_bytes or target.ram_bytes
        ram = math.log(min(max(found.ram_bytes, low * (1 - RAM_TOLERANCE)), high) / found.ram_bytes)
        ours, theirs = main.frequency_mhz, target.main_cluster.frequency_mhz
        clock = abs(math.log(ours / theirs)) if ours and theirs else 0.0
        cores = abs(math.log(found.cores / target.cores))
        return -len(words & _words(target.description)), abs(ram) + clock + cores

    return min(same, key=distance, default=None)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9][a-z0-9+.-]*", text.lower()))


def _differences(found: Target, shipped: Target) -> Iterator[Difference]:
    if found.arch != shipped.arch:
        yield Difference("arch", shipped.arch, found.arch)
    missing = [flag for flag in shipped.isa if flag not in found.isa]
    if missing and found.isa:
        yield Difference("isa", " ".join(shipped.isa), f"no {', '.join(missing)}")
    low, high = shipped.ram_bytes, shipped.ram_max_bytes or shipped.ram_bytes
    if not low * (1 - RAM_TOLERANCE) <= found.ram_bytes <= high * 1.05:
        listed = _size(low) if low == high else f"{_size(low)} to {_size(high)}"
        yield Difference("ram_bytes", listed, _size(found.ram_bytes))
    for index, cluster in enumerate(found.clusters):
        other = counterpart(cluster, index, shipped)
        if other is None:
            yield Difference(f"clusters.{cluster.name}", "no such cluster", f"{cluster.cores}× {cluster.core}")
        else:
            yield from _of_cluster(f"clusters.{other.name}", cluster, other)
    for other in shipped.clusters[len(found.clusters) :]:
        if other.core not in {cluster.core for cluster in found.clusters}:
            yield Difference(f"clusters.{other.name}", f"{other.cores}× {other.core}", "none")


def _of_cluster(key: str, found: Cluster, shipped: Cluster) -> Iterator[Difference]:
    if found.core != shipped.core:
        yield Difference(f"{key}.core", shipped.core, found.core)
    if found.cores != shipped.cores:
        yield Difference(f"{key}.cores", str(shipped.cores), str(found.cores))
    ours, theirs = found.frequency_mhz, shipped.frequency_mhz
    if ours and theirs and abs(ours / theirs - 1) > FREQUENCY_TOLERANCE:
        yield Difference(f"{key}.frequency_mhz", str(theirs), str(ours))
    for level in _LEVELS:
        yield from _of_cache(f"{key}.{level}", getattr(found, level), getattr(shipped, level), bool(found.data_caches))
    for name in ("read", "read_all_cores"):
        yield from _of_bandwidth(f"{key}.{name}", getattr(found, name), getattr(shipped, name))


def _of_cache(key: str, found: Cache | None, shipped: Cache | None, known: bool) -> Iterator[Difference]:
    """`known`: the device told of its data caches, so that one it did not tell of is not there."""
    if found is None:
        if shipped is not None and known and not key.endswith("L1i"):
            yield Difference(key, _cache(shipped), "none")
    elif shipped is None:
        if not key.endswith("L1i"):
            yield Difference(key, "none", _cache(found))
    elif found.size_bytes != shipped.size_bytes or (found.ways and shipped.ways and found.ways != shipped.ways):
        yield Difference(key, _cache(shipped), _cache(found))


def _of_bandwidth(key: str, found: Bandwidth | None, shipped: Bandwidth | None) -> Iterator[Difference]:
    if found is None or shipped is None:
        return
    slow = found.high_gb_s < shipped.low_gb_s * (1 - BANDWIDTH_TOLERANCE)
    if slow or found.low_gb_s > shipped.high_gb_s * (1 + BANDWIDTH_TOLERANCE):
        yield Difference(key, _range(shipped), _range(found))


def _cache(cache: Cache) -> str:
    return _size(cache.size_bytes) + (f" {cache.ways}-way" if cache.ways else "")


def _range(read: Bandwidth) -> str:
    low, high = f"{read.low_gb_s:g}", f"{read.high_gb_s:g}"
    return (low if low == high else f"{low} to {high}") + " GB/s"


def _size(size_bytes: int) -> str:
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.3g}{unit}"
    return str(size_bytes)
