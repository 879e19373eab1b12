"""A recovery run on disk: tensors and plain values only, read without unpickling anything else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from edgepack.errors import DataError, OutputError

VERSION = 1
_HINT = "delete it to begin anew, or give another path"


def save(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write a state in one step: whoever reads the file sees the old one or the new one, whole.

    Args:
        path: its folder exists.
        key: what the state belongs to.
        state: tensors and plain values in dicts and lists.

    Raises:
        OutputError: the file cannot be written.
    """
    import torch

    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        torch.save({"version": VERSION, "key": key, "state": state}, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as err:  # torch says RuntimeError for a folder that does not exist
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: the checkpoint cannot be written: {err}", hint="give a path that can be") from err


def load(path: Path, key: str) -> dict[str, Any] | None:
    """The state at `path`, None if there is no file.

    Raises:
        DataError: the file is no checkpoint, or one of another model, other data or other settings.
    """
    import torch

    if not path.exists():
        return None
    try:
        record = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as err:
        raise DataError(f"{path}: not a checkpoint of a recovery, or a damaged one", hint=_HINT) from err
    if not isinstance(record, dict) or record.get("version") != VERSION or not isinstance(record.get("state"), dict):
        raise DataError(f"{path}: not a checkpoint of this version of recovery", hint=_HINT)
    if record.get("key") != key:
        raise DataError(f"{path}: a checkpoint of another model, other data or other settings", hint=_HINT)
    state: dict[str, Any] = record["state"]
    return state
