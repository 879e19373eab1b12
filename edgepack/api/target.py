"""Targets by their names, or as they are."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from edgepack.targets.file import get_target
from edgepack.targets.target import Target


def load_target(name: str | Target, targets_file: str | PathLike[str] | None = None) -> Target:
    """A target that edgepack or your own file lists, or `host`: this machine, looked at now.

    Args:
        name: as `edgepack targets` shows it; a target is returned as it is.
        targets_file: your own `targets.yaml`; None for that of the working folder, if there is one.

    Raises:
        TargetsError: there is no such target, or the file is bad.
    """
    if isinstance(name, Target):
        return name
    return get_target(name, None if targets_file is None else Path(targets_file))
