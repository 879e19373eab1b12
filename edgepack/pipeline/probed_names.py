"""What a probed target and its clusters are called, so that a targets file takes the names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgepack.targets import HOST, Cluster, Target

TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
"""What a targets file takes as a name."""
_RAM_STEP = 64 << 20  # kernels reserve a little more or less at every boot
_NO_NAMES = ("", "default string", "none", "not applicable", "not specified", "system product name")
_NOISE = re.compile(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*|\brev(ision)?\b.*", re.IGNORECASE)


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
