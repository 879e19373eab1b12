"""`--distill`: the factors of a plan trained against the original model's answers, once per set of ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.data import Samples
from edgepack.distill.budget import Budget
from edgepack.distill.distil import Training
from edgepack.distill.fake import Rounding
from edgepack.distill.layers import distill_factors
from edgepack.errors import ModelError, UsageError
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.serialize import packed_part, unpacked_part
from edgepack.model.types import Array
from edgepack.pipeline.programs import with_program
from edgepack.workspace import Keyed, Progress, Step, Workspace, arrays_store

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_SAID = "said"


@dataclass(frozen=True)
class Outcome:
    """What one training came to.

    Attributes:
        factors: by layer name.
        steps: optimizer steps that were made.
        samples: that were trained on, each once in an epoch.
        held_out: loss on held-out calibration samples, before and after.
        missing: layers that the torch program does not have; their factors are as they were.
        kept: whether the file has these factors; not where it is no better with them.
    """

    factors: Mapping[str, Replacement]
    steps: int
    samples: int
    held_out: tuple[float, float]
    missing: tuple[str, ...]
    kept: bool = True

    @property
    def gained(self) -> bool:
        """Whether the held-out loss is smaller than it was."""
        return self.held_out[1] < self.held_out[0]


@dataclass(frozen=True)
class Distillation:
    """Trains factors, and keeps what it came to in the cache; what was interrupted goes on where it was.

    Attributes:
        classes: whether the model's first output is scores of classes, one of which counts.
        key: digest of the model and the data.
    """

    opened: Model
    calibration: Samples
    classes: bool
    budget: Budget
    key: str
    workspace: Workspace
    _last: dict[str, Outcome] = field(default_factory=dict, repr=False, compare=False)

    def of(self, factors: Mapping[str, Replacement], roundings: Mapping[str, Rounding]) -> Outcome:
        """Better factors of the same ranks.

        Args:
            factors: at least one, to begin with.
            roundings: by layer name, how the file will round them; training does so as well.

        Raises:
            ModelError: there is no torch program, or it cannot be trained.
            DataError: too few calibration samples.
        """
        begin = {name: packed_part(pair) for name, pair in factors.items()}
        settings = [self.key, self.classes, repr(self.budget), self.workspace.seed, repr(sorted(roundings.items()))]
        task = Keyed([*settings, begin], lambda: self._task(factors, roundings, key))
        key = self.workspace.key(DISTILLED, task)
        if key not in self._last:
            self._last[key] = self.workspace.cached(DISTILLED, task)
            self._checkpoint(key).unlink(missing_ok=True)
        return self._last[key]

    def _task(self, factors: Mapping[str, Replacement], roundings: Mapping[str, Rounding], key: str) -> _Task:
        checkpoint = self._checkpoint(key)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if self.workspace.cache.fresh:
            checkpoint.unlink(missing_ok=True)
        training = Training(self.classes, self.budget, self.workspace.seed, checkpoint=checkpoint)
        return _Task(
            self._program,
            self.opened.layers,
            factors,
            self.calibration.arrays,
            roundings,
            training,
            self.workspace.progress,
        )

    def _checkpoint(self, key: str) -> Path:
        return self.workspace.cache.path("distilling", key, ".pt")

    @cached_property
    def _program(self) -> ExportedProgram:
        try:
            source = with_program(self.opened, self.calibration, self.workspace)
        except ModelError as err:
            raise ModelError(
                f"--distill trains in torch: {err.message}", hint="leave --distill out, or give the torch model"
            ) from err
        if source.program is None:
            raise ValueError("there is no torch program")
        from edgepack.sources.torch import load_pt2

        return load_pt2(source.program)


@dataclass(frozen=True)
class _Task:
    """Factors to be trained; see `distill_factors`."""

    program: ExportedProgram
    layers: tuple[Layer, ...]
    factors: Mapping[str, Replacement]
    inputs: Mapping[str, Array]
    roundings: Mapping[str, Rounding]
    training: Training
    progress: Progress


def _trained(task: _Task) -> Outcome:
    found = distill_factors(
        task.program,
        task.layers,
        task.factors,
        task.inputs,
        task.roundings,
        training=task.training,
        progress=task.progress,
    )
    looks = [point.held_out for point in found.history]
    best = min((loss for loss in looks if math.isfinite(loss)), default=looks[0])
    return Outcome(found.factors, found.history[-1].step, found.samples, (looks[0], best), found.missing)


def _packed(outcome: Outcome) -> dict[str, Array]:
    names = sorted(outcome.factors)
    said = {
        "names": names,
        "steps": outcome.steps,
        "samples": outcome.samples,
        "held_out": outcome.held_out,
        "missing": outcome.missing,
    }
    arrays = {f"{i}.{part}": a for i, n in enumerate(names) for part, a in packed_part(outcome.factors[n]).items()}
    return {_SAID: np.frombuffer(json.dumps(said).encode(), np.uint8), **arrays}


def _unpacked(arrays: Mapping[str, Array]) -> Outcome:
    said = json.loads(arrays[_SAID].tobytes())
    parts: dict[str, dict[str, Array]] = {str(i): {} for i in range(len(said["names"]))}
    for name, array in arrays.items():
        if name != _SAID:
            index, _, part = name.partition(".")
            parts[index][part] = array
    factors = {name: unpacked_part(parts[str(i)]) for i, name in enumerate(said["names"])}
    before, after = map(float, said["held_out"])
    return Outcome(factors, int(said["steps"]), int(said["samples"]), (before, after), tuple(said["missing"]))


DISTILLED: Step[_Task, Outcome] = Step("distilled", 3, _trained, arrays_store(_packed, _unpacked))


def check_distill(samples: Samples | None) -> Samples:
    """The calibration samples that a distillation trains on.

    Raises:
        UsageError: there are none.
    """
    if samples is None:
        raise UsageError(
            "--distill trains on calibration data, and there are none",
            hint="give --data F.npz, or put `calibration` into the recipe",
        )
    return samples
