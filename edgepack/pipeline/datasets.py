"""The data of a build: where they come from, how they are split, and the guard over the accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepack import metrics
from edgepack.backends.backend import Session
from edgepack.backends.runtime import predict
from edgepack.data import Samples, example, from_recipe, read_npz, split
from edgepack.errors import DataError, UsageError
from edgepack.methods.registry import AUTO, AUTO_METHOD, DEFAULT, factorizer, is_factorizer
from edgepack.model.model import Model
from edgepack.model.types import Array, TensorSpec
from edgepack.pipeline.decompositions import FALLBACK
from edgepack.pipeline.evaluate import Guard
from edgepack.workspace import digest

STAND_INS = 4
"""Seeded samples that prove a file's integrity where no data were given."""


@dataclass(frozen=True)
class Data:
    """Calibration and guard samples. Without data, `calibration` and `origin` are None and `guard` holds stand-ins."""

    origin: str | None
    calibration: Samples | None
    guard: Samples

    def digest(self) -> str | None:
        """Identity of the calibration samples."""
        if self.calibration is None:
            return None
        return digest(*(part for name, array in sorted(self.calibration.inputs.items()) for part in (name, array)))


def load_data(path: Path | None, opened: Model, spec: str, seed: int) -> Data:
    """The file of `--data`, else the recipe's calibration, else none; split by the seed into calibration and guard.

    Raises:
        DataError: the data do not fit the model.
    """
    if path is not None:
        origin, samples = path.name, read_npz(path, opened.inputs)
    elif opened.recipe is not None and opened.recipe.calibration is not None:
        origin, samples = "recipe", from_recipe(opened.recipe.calibration, opened.inputs, spec)
    else:
        return Data(None, None, _stand_ins(opened.inputs, seed))
    calibration, guard = split(samples, seed)
    return Data(origin, calibration, guard)


def _stand_ins(specs: tuple[TensorSpec, ...], seed: int) -> Samples:
    runs = [example(None, specs, seed + i) for i in range(STAND_INS)]
    return Samples({spec.name: np.stack([run[spec.name] for run in runs]) for spec in specs})


@dataclass(frozen=True)
class Methods:
    """What the layers of a build may become.

    Attributes:
        factorizer: of the spectra, by which dense layers and pairs are weighed.
        pairs: whether its pairs are offered.
        others: methods that are functions, whose results are offered as well.
    """

    factorizer: str
    pairs: bool
    others: tuple[str, ...]


def choose_methods(asked: str | None, data: Data) -> Methods:
    """One factorizer alone, one other method alone, or for `auto` the default factorizer and all that compete with it.

    Raises:
        UsageError: an unknown method, or one that needs data where there are none.
    """
    if asked == AUTO_METHOD:
        return Methods(choose_method(None, data), True, AUTO)
    if asked is None or is_factorizer(asked):
        return Methods(choose_method(asked, data), True, ())
    return Methods(choose_method(None, data), False, (asked,))


def choose_method(asked: str | None, data: Data) -> str:
    """The factorizer's name: what was asked for, else whitened with data and plain SVD without.

    Raises:
        UsageError: an unknown method, or one that needs data where there are none.
    """
    method = asked or (DEFAULT if data.calibration is not None else FALLBACK)
    if factorizer(method).needs_moments and data.calibration is None:
        raise UsageError(
            f"--method {method} needs calibration data",
            hint="give --data F.npz, put `calibration` into the recipe, or use --method svd",
        )
    return method


def make_guard(metric: str | None, data: Data, dense: Session, *, exact: bool) -> Guard:
    """The dense fp32 model's answers on the guard samples, and the metric that fits them.

    Args:
        dense: the model as it is.

    Raises:
        UsageError: the metric asked for does not fit.
        DataError: labels that are no classes of the model.
    """
    reference = predict(dense, data.guard)
    chosen = metrics.choose(reference, data.guard.labels, metric)
    if chosen == "accuracy" and data.guard.labels is not None:
        _check_classes(data.guard.labels, reference.shape[-1], data.origin)
    return Guard(data.guard, reference, chosen, data.calibration is not None, exact)


def _check_classes(labels: Array, classes: int, origin: str | None) -> None:
    low, high = labels.min(), labels.max()
    if low < 0 or high >= classes:
        raise DataError(
            f"{origin}: the labels 'y' go from {low:g} to {high:g}, the model has the classes 0 to {classes - 1}",
            hint="number the classes like the model's scores, or leave 'y' out to measure agreement with the model",
        )
