"""A live device as a target: its probe, a sweep of every cluster, and what differs from the listed target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgepack.bench.devices.device import Device, Job
from edgepack.bench.knees import Knee, knees
from edgepack.bench.sweep import Sweep, checked_probe, sweep_from_report
from edgepack.errors import StableDeviceError, UsageError
from edgepack.host import target_from_probe
from edgepack.pipeline.differing import Difference, counterpart, differences, nearest
from edgepack.pipeline.probed_names import TARGET_NAME, as_listed, own_name, with_names
from edgepack.pipeline.settling import settled
from edgepack.targets import HOST, Target, load_targets
from edgepack.targets_file import merge, shipped_entries
from edgepack.workspace import Progress, silent

SWEEP_TIMEOUT_S = 300.0
BUSY = 0.5
"""A load average from which on other programs disturb what is measured."""


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
