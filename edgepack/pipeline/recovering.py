"""`--recover`: the factors of a plan trained against the original model's answers, once per set of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.cache import Cache, digest
from edgepack.data import Samples
from edgepack.errors import ModelError, UsageError
from edgepack.model.replacement import Replacement
from edgepack.pipeline.opened import Opened
from edgepack.pipeline.parts import packed_part, unpacked_pair
from edgepack.pipeline.programs import with_program
from edgepack.progress import Progress
from edgepack.recover.budget import Budget
from edgepack.recover.layers import recover_factors
from edgepack.types import Array

if TYPE_CHECKING:
    from torch.export import ExportedProgram

VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """What one training came to.

    Attributes:
        factors: by layer name.
        steps: optimizer steps that were made.
        held_out: loss on held-out calibration samples, before and after.
        missing: layers that the torch program does not have; their factors are as they were.
    """

    factors: Mapping[str, Replacement]
    steps: int
    held_out: tuple[float, float]
    missing: tuple[str, ...]


@dataclass
class Recovery:
    """Trains factors, and keeps what it came to in the cache; what was interrupted goes on where it was.

    Attributes:
        metric: of the guard; all but cosine compare class scores.
        key: digest of the model, the data and the metric.
        work: temporary folder.
    """

    opened: Opened
    calibration: Samples
    metric: str
    budget: Budget
    seed: int
    key: str
    cache: Cache
    work: Path
    progress: Progress
    _last: dict[str, Outcome] = field(default_factory=dict)

    def of(self, factors: Mapping[str, Replacement], *, int8: bool, largest: int) -> Outcome:
        """Better factors of the same ranks.

        Args:
            factors: at least one, to begin with.
            int8: whether all of them are to be rounded to int8 per channel: training then does so as well.
            largest: largest int8 weight code of the file.

        Raises:
            ModelError: there is no torch program, or it cannot be trained.
            DataError: too few calibration samples.
        """
        parts = [part for name, pair in sorted(factors.items()) for part in (name, *packed_part(pair).values())]
        key = digest("recovered", VERSION, self.key, repr(self.budget), self.seed, int8, largest, *parts)
        if key not in self._last:
            said, known = self.cache.known("recoveries", key), self.cache.known_arrays("recovered", key)
            if said is None or known is None:
                self._last[key] = self._train(factors, key, int8=int8, largest=largest)
            else:
                self._last[key] = _outcome(said, known, factors)
        return self._last[key]

    def _train(self, factors: Mapping[str, Replacement], key: str, *, int8: bool, largest: int) -> Outcome:
        checkpoint = self.cache.path("recovering", key, ".pt")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if self.cache.fresh:
            checkpoint.unlink(missing_ok=True)
        found = recover_factors(
            *(self._program, self.opened.layers, factors, self.calibration.inputs),
            classes=self.metric != "cosine",
            budget=self.budget,
            seed=self.seed,
            int8=int8,
            largest=largest,
            checkpoint=checkpoint,
            progress=self.progress,
        )
        looks = [point.held_out for point in found.history]
        best = min((loss for loss in looks if math.isfinite(loss)), default=looks[0])
        outcome = Outcome(found.factors, found.history[-1].step, (looks[0], best), found.missing)
        names = sorted(factors)
        arrays = {
            f"{i}.{part}": array for i, n in enumerate(names) for part, array in packed_part(found.factors[n]).items()
        }
        self.cache.keep_arrays("recovered", key, arrays)
        self.cache.keep(
            "recoveries", key, {"steps": outcome.steps, "held_out": [looks[0], best], "missing": found.missing}
        )
        checkpoint.unlink(missing_ok=True)
        return outcome

    @cached_property
    def _program(self) -> ExportedProgram:
        try:
            source = with_program(self.opened, self.calibration, self.seed, self.cache, self.work)
        except ModelError as err:
            raise ModelError(
                f"--recover trains in torch: {err.message}", hint="leave --recover out, or give the torch model"
            ) from err
        if source.program_path is None:
            raise ValueError("there is no torch program")
        from edgepack.sources.torch import load_pt2

        return load_pt2(source.program_path)


def check_recover(samples: Samples | None) -> Samples:
    """The calibration samples that a recovery trains on.

    Raises:
        UsageError: there are none.
    """
    if samples is None:
        raise UsageError(
            "--recover trains on calibration data, and there are none",
            hint="give --data F.npz, or put `calibration` into the recipe",
        )
    return samples


def _outcome(said: Mapping[str, Any], arrays: Mapping[str, Array], factors: Mapping[str, Replacement]) -> Outcome:
    parts = {
        name: {part: arrays[f"{i}.{part}"] for part in ("A", "B", "bias")} for i, name in enumerate(sorted(factors))
    }
    pairs = {name: unpacked_pair(part) for name, part in parts.items()}
    before, after = map(float, said["held_out"])
    return Outcome(pairs, int(said["steps"]), (before, after), tuple(said["missing"]))
