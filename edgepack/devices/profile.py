"""A live device as a target: its probe, a sweep of every cluster, and what differs from the listed target."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

from edgepack.devices.device import Device, Job
from edgepack.devices.sweep import Knee, Read, Sweep, checked_probe, knees, sweep_from_report
from edgepack.devices.target_diff import Difference, counterpart, differences, nearest
from edgepack.errors import StableDeviceError, UsageError
from edgepack.targets.file import load_targets, merge, shipped_entries
from edgepack.targets.probe import target_from_probe
from edgepack.targets.target import HOST, Bandwidth, Cache, Cluster, Target
from edgepack.workspace import Progress, silent

SWEEP_TIMEOUT_S = 300.0
BUSY = 0.5
"""A load average from which on other programs disturb what is measured."""

LEVELS = ("L1d", "L2", "L3")
LARGEST_L1 = 256 << 10
DRAM_FACTOR = 4
"""A working set that many times the largest cache is read from memory."""

TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
"""What a targets file takes as a name."""
_RAM_STEP = 64 << 20  # kernels reserve a little more or less at every boot
_NO_NAMES = ("", "default string", "none", "not applicable", "not specified", "system product name")
_NOISE = re.compile(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*|\brev(ision)?\b.*", re.IGNORECASE)


@dataclass(frozen=True)
class Swept:
    """One cluster as measured: its name in the target, and where its latency rises."""

    cluster: str
    sweep: Sweep
    knees: tuple[Knee, ...]


@dataclass(frozen=True)
class Probed:
    """A device as a target.

    Attributes:
        target: every measured fact with `source: probed`.
        shipped: the listed target that it is compared with; None where none is like it.
        guessed: `shipped` was not named but found by its likeness.
        swept: what was measured; a cluster that could not be measured is missing.
        notes: what a person should know about the figures.
    """

    target: Target
    shipped: Target | None
    guessed: bool
    swept: tuple[Swept, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """All of it as plain data, for reports and machines."""
        return {
            "target": asdict(self.target),
            "shipped": self.shipped.name if self.shipped else None,
            "guessed": self.guessed,
            "differences": [asdict(difference) for difference in self.differences],
            "notes": list(self.notes),
            "swept": [asdict(one) for one in self.swept],
        }


def probe_target(
    device: Device,
    name: str | None = None,
    shipped: Target | None = None,
    progress: Progress = silent,
    *,
    listed: Iterable[Target] = (),
) -> Probed:
    """Measures a device and makes a target of it; about ten seconds a cluster.

    Args:
        device: with a Python, so that the shipped programs run.
        name: of the target; by default made of what the device calls itself.
        shipped: the listed target to compare with.
        progress: told of every step.
        listed: where `shipped` is None, the one of these that the device most likely is.

    Raises:
        UsageError: a targets file does not take the name.
        TransientDeviceError: see `Device.run`.
        StableDeviceError: likewise, or a report is not as expected.
    """
    if "sweep" not in device.modes:
        raise StableDeviceError(
            f"{device.name} cannot be probed: it runs no Python", hint="write its entry by hand, from its data sheet"
        )
    if name is not None and (name == HOST or not TARGET_NAME.fullmatch(name)):
        raise UsageError(f'"{name}" is no name for a target', hint="letters, digits and . + _ -, at most 64, not host")
    progress("probe")
    report = checked_probe(device.probe(), device.name)
    found = with_names(target_from_probe(report, name or own_name(report)), report)
    names = f"{report['device_model']} {report['cpu_model']}"
    compared = shipped or nearest(found, (one for one in listed if one.name != HOST), names)
    if compared is not None:
        found = as_listed(found, compared, names)
    target, swept, notes = _swept(device, found, report, compared, progress)
    return Probed(
        target=target,
        shipped=compared,
        guessed=shipped is None and compared is not None,
        swept=tuple(swept),
        differences=differences(target, compared) if compared is not None else (),
        notes=tuple(dict.fromkeys(notes)),
    )


def listed_targets(path: Path | None) -> dict[str, Target]:
    """The targets to compare a device with: the shipped ones, with a user's file over them only where it is named.

    The `targets.yaml` of the working folder is left alone: `edgepack targets probe > targets.yaml` has just emptied it.

    Raises:
        TargetsError: the file is missing or malformed.
    """
    if path is not None:
        return load_targets(path)
    return merge(shipped_entries(), {})[0]


def cluster_cpus(report: Mapping[str, Any]) -> list[list[int]]:
    """The CPUs of each cluster, in the order of `target_from_probe`: the fastest first."""
    groups: dict[tuple[str, int | None], list[int]] = {}
    for cpu in report["cpus"]:
        groups.setdefault((cpu["core"], cpu["max_khz"]), []).append(cpu["cpu"])
    return [cpus for _, cpus in sorted(groups.items(), key=lambda item: -(item[0][1] or 0))]


def _swept(
    device: Device, found: Target, report: Mapping[str, Any], compared: Target | None, progress: Progress
) -> tuple[Target, list[Swept], list[str]]:
    """The target with the facts of a sweep in each of its clusters."""
    groups, allowed = cluster_cpus(report), report["allowed_cpus"]
    clusters, swept, notes = [], [], []
    for index, (cluster, group) in enumerate(zip(found.clusters, groups, strict=True)):
        cpus = [cpu for cpu in group if cpu in allowed] if allowed else group
        other = counterpart(cluster, index, compared) if compared is not None else None
        if other is not None and other.core == cluster.core:
            cluster = replace(cluster, ipc=other.ipc)  # of the core's kind, which no sweep can see
        if cpus:
            progress(f"sweep of {cluster.name}", index, len(groups))
            # A machine that cannot pin has one group of all its CPUs, or none that it could keep to.
            sweep = _steady(device, len(cpus), tuple(cpus) if allowed else ())
            rises = knees(sweep.latency)
            cluster, parted = settled(cluster, sweep, rises, other, len(groups) == 1)
            swept.append(Swept(cluster.name, sweep, rises))
            notes += [f"{cluster.name}: {note}" for note in [*parted, *_doubts(sweep)]]
        else:
            notes.append(f"{cluster.name}: not measured: its CPUs {group} are closed to this user (allowed: {allowed})")
        clusters.append(cluster)
    progress("sweep", len(groups), len(groups))
    return replace(found, clusters=tuple(clusters)), swept, notes


def _steady(device: Device, threads: int, cpus: tuple[int, ...]) -> Sweep:
    """A sweep over which the clock held still; where it did not, the better of two."""
    job = Job("sweep", threads=threads, cpus=cpus, timeout_s=SWEEP_TIMEOUT_S)
    sweep = sweep_from_report(device.run(job), device.name)
    if sweep.drift:
        sweep = min(sweep, sweep_from_report(device.run(job), device.name), key=lambda one: one.drift)
    return sweep


def _doubts(sweep: Sweep) -> list[str]:
    """Why the figures of a sweep may be less than they should be."""
    notes = []
    if sweep.drift:
        notes.append(
            f"the clock changed by {sweep.drift:.0%} while it was measured, twice: too warm, or a governor other than "
            "performance; the figures may be low"
        )
    if sweep.code_unavailable:
        notes.append(
            f"{sweep.code_unavailable}: the clock and the latency of the caches are not measured, and the C library's "
            "memchr reads"
        )
    if sweep.load_average is not None and sweep.load_average >= BUSY:
        notes.append(f"other programs were running (load average {sweep.load_average:.2g}): the figures may be low")
    return notes


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


def device_name(report: Mapping[str, Any]) -> str:
    """What the device calls itself, else its CPU; makers leave `To be filled by O.E.M.` behind."""
    model = str(report["device_model"])
    if model.lower() in _NO_NAMES or "o.e.m." in model.lower():
        model = str(report["cpu_model"])
    return model or str(report["machine"])


def own_name(report: Mapping[str, Any]) -> str:
    """A target's name for a device: `raspberry-pi-4-model-b`."""
    name = _word(device_name(report))
    return f"{name}-device" if name == HOST else name


def with_names(target: Target, report: Mapping[str, Any]) -> Target:
    """The target with a description of its own, cores as words, cluster names that differ, and a round RAM."""
    clusters: list[Cluster] = []
    for cluster in target.clusters:
        core = _word(cluster.core)
        name = short = core.removeprefix("cortex-")
        taken = {other.name for other in clusters}
        for number in range(2, len(target.clusters) + 2):
            if name in taken:
                name = f"{short[:60]}-{number}"
        clusters.append(replace(cluster, name=name, core=core))
    ram = max(round(target.ram_bytes / _RAM_STEP), 1) * _RAM_STEP
    return replace(target, description=device_name(report), clusters=tuple(clusters), ram_bytes=ram)


def as_listed(found: Target, listed: Target, names: str) -> Target:
    """The found target with the listed one's names where both mean the same cluster.

    Args:
        found: of `with_names`.
        listed: the target that the device is thought to be.
        names: what the device and its CPU call themselves: an x86 core has no name but there.
    """
    clusters: list[Cluster] = []
    for index, cluster in enumerate(found.clusters):
        other = next((one for one in listed.clusters if one.core == cluster.core), None)
        by_name = listed.arch == found.arch and listed.name.lower() in names.lower().split()
        if other is None and by_name and index < len(listed.clusters):
            other = listed.clusters[index]
        taken = {one.name for one in clusters}
        if other is not None and other.name not in taken:
            cluster = replace(cluster, name=other.name, core=other.core)
        clusters.append(cluster)
    unique = len({cluster.name for cluster in clusters}) == len(clusters)
    return replace(found, clusters=tuple(clusters)) if unique else found


def _word(text: str) -> str:
    """Letters, digits and dashes of a text, as a targets file wants its names."""
    word = re.sub(r"[^a-z0-9._+]+", "-", _NOISE.sub(" ", text.lower()).strip()).strip("-._+")
    return word[:60].rstrip("-._+") or "unknown"
