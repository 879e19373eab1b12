"""Targets by their names, or as they are."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from edgepack.errors import UsageError
from edgepack.targets.file import get_target
from edgepack.targets.target import Target


def load_target(name: str | Target, targets_file: str | PathLike[str] | None = None) -> Target:
    """A target that edgepack or your own file lists, or `host`: this machine, looked at now.

    Args:
        name: as `edgepack targets` shows it; a target is returned as it is.
        targets_file: your own `targets.yaml`; None for that of the working folder, if there is one.

    Raises:
        UsageError: the name has a comma in it.
        TargetsError: there is no such target, or the file is bad.
    """
    if isinstance(name, Target):
        return name
    if "," in name:
        listed = [one.strip() for one in name.split(",")]
        raise UsageError(f"{name}: found several targets in one name", hint=f"give a list of them: {listed}")
    return get_target(name, None if targets_file is None else Path(targets_file))


def load_targets(
    names: Sequence[str] | Sequence[Target] | Sequence[str | Target],
    targets_file: str | PathLike[str] | None = None,
) -> list[Target]:
    """The same for several.

    Raises:
        UsageError: there is none, or one stands there twice.
        TargetsError: see `load_target`.
    """
    found = [load_target(name, targets_file) for name in names]
    if not found:
        raise UsageError("found an empty list of targets", hint="give at least one")
    called = [target.name for target in found]
    if (twice := next((name for name in called if called.count(name) > 1), None)) is not None:
        raise UsageError(f"{twice} is named twice", hint="a target has one pack")
    return found
