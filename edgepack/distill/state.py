"""Where a distillation run is, in memory and on disk."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import DataError, OutputError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import AdamW

VERSION = 2
_HINT = "delete it to begin anew, or give another path"


@dataclass
class State:
    """What changes while a run trains, beside parameters and optimizer.

    Attributes:
        total: optimizer steps of the whole run.
        best: values of the parameters with the smallest held-out loss so far, by name.
        step: the next step.
        slower: factor on all learning rates, halved where training went astray.
        losses: of the steps since the last look.
        elapsed_s: of training, over all sittings.
    """

    total: int
    best: dict[str, Tensor]
    step: int = 0
    slower: float = 1.0
    losses: list[float] = field(default_factory=list)
    history: list[Point] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def best_loss(self) -> float:
        """The smallest held-out loss so far, infinite before the first look."""
        return min((point.held_out for point in self.history if point.held_out == point.held_out), default=float("inf"))

    def note(self, point: Point, parameters: Mapping[str, Parameter]) -> None:
        """Add a look, and keep the parameters if it is the best so far."""
        better = point.held_out < self.best_loss
        self.history.append(point)
        self.losses.clear()
        if better:
            self.best = {name: parameter.detach().clone() for name, parameter in parameters.items()}


def put(values: Mapping[str, Tensor], parameters: Mapping[str, Parameter]) -> None:
    """Give the parameters these values."""
    import torch

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def save(path: Path, key: str, state: State, parameters: Mapping[str, Parameter], optimizer: AdamW) -> None:
    """Write everything that is needed to go on.

    Raises:
        OutputError: the file cannot be written.
    """
    record = {
        "total": state.total,
        "best": dict(state.best),
        "step": state.step,
        "slower": state.slower,
        "history": [asdict(point) for point in state.history],
        "elapsed_s": state.elapsed_s,
        "parameters": {name: parameter.detach() for name, parameter in parameters.items()},
        "optimizer": optimizer.state_dict(),
    }
    _write_checkpoint(path, key, record)


def restore(path: Path, key: str, parameters: Mapping[str, Parameter], optimizer: AdamW) -> State | None:
    """Read it back into parameters and optimizer; None if there is no file.

    Raises:
        DataError: the file is of another run, or damaged.
    """
    record = _read_checkpoint(path, key)
    if record is None:
        return None
    put(record["parameters"], parameters)
    optimizer.load_state_dict(record["optimizer"])
    history = [Point(**point) for point in record["history"]]
    known = {name: record[name] for name in ("total", "best", "step", "slower", "elapsed_s")}
    return State(history=history, **known)


def _write_checkpoint(path: Path, key: str, state: dict[str, Any]) -> None:
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


def _read_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
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
        raise DataError(f"{path}: not a checkpoint of a distillation, or a damaged one", hint=_HINT) from err
    if not isinstance(record, dict) or record.get("version") != VERSION or not isinstance(record.get("state"), dict):
        raise DataError(f"{path}: not a checkpoint of this version of distillation", hint=_HINT)
    if record.get("key") != key:
        raise DataError(f"{path}: a checkpoint of another model, other data or other settings", hint=_HINT)
    state: dict[str, Any] = record["state"]
    return state


@dataclass(frozen=True)
class Point:
    """One look at the held-out samples.

    Attributes:
        step: optimizer steps made before.
        stage: number of the stage, from 0.
        loss: mean training loss since the last look; NaN for the first.
        held_out: the loss on the held-out samples, rounded as the file will be.
    """

    step: int
    stage: int
    loss: float
    held_out: float
