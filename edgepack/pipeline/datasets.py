"""The data of a build: where they come from, how they are split, and the samples that the accuracy is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np

from edgepack.backends.backend import Session
from edgepack.backends.runtime import answers
from edgepack.data import Samples, example, feeds, from_recipe, split
from edgepack.errors import ModelError, UsageError
from edgepack.methods.registry import AUTO, AUTO_METHOD, DEFAULT, factorizer, is_factorizer
from edgepack.metrics.choose import choose
from edgepack.metrics.drop import CONFIDENCE, make_scale
from edgepack.model.kinds import views_of
from edgepack.model.model import Model
from edgepack.model.types import TensorSpec
from edgepack.natives import native
from edgepack.pipeline.activations import row_counts
from edgepack.pipeline.decompositions import FALLBACK
from edgepack.pipeline.evaluate import EvaluationSet
from edgepack.pipeline.recipe_score import RecipeScore
from edgepack.sources.images import ImageOptions
from edgepack.sources.inputs import shown, usual_sides
from edgepack.sources.recipe import load_metric
from edgepack.sources.samples import read_samples
from edgepack.workspace import Workspace, digest

ROWS_PER_INPUT = 3
"""Of calibration, for each input of a layer."""
FEWEST, MOST = 128, 4096
"""Calibration samples: ranges of activations want the first, beyond the second nothing is gained."""

STAND_INS = 4
"""Seeded samples that prove a file's integrity where no data were given."""


@dataclass(frozen=True)
class Data:
    """The samples of a build. Without data, `calibration` and `origin` are None and `validation` holds stand-ins.

    Attributes:
        validation: the validation samples.
        confirmation: see `Parts`.
    """

    origin: str | None
    calibration: Samples | None
    validation: Samples
    confirmation: Samples | None = None

    def digest(self) -> str | None:
        """Identity of the calibration samples."""
        if self.calibration is None:
            return None
        return digest(*(part for name, array in sorted(self.calibration.inputs.items()) for part in (name, array)))


def load_data(
    path: Path | None,
    opened: Model,
    spec: str,
    seed: int,
    *,
    trains: bool = False,
    images: ImageOptions | None = None,
) -> Data:
    """The samples of `--data`, else the recipe's calibration, else none; split by the seed.

    Args:
        images: how images become samples; None where nothing was said.
        trains: whether factors are trained on the calibration samples: then these are a third whatever the layers.

    Raises:
        DataError: the data do not fit the model.
    """
    if path is not None:
        origin, samples = path.name, read_samples(path, opened.inputs, images)
    elif opened.recipe is not None and opened.recipe.calibration is not None:
        origin, samples = "recipe", from_recipe(opened.recipe.calibration, opened.inputs, spec)
    else:
        return Data(None, None, _stand_ins(opened.inputs, seed))
    wanted = len(samples) if trains else calibration_samples(opened, samples, seed)
    parts = split(samples, seed, wanted)
    return Data(origin, parts.calibration, parts.validation, parts.confirmation)


def with_open_sides(opened: Model, data: Path | None, workspace: Workspace) -> Model:
    """The model with usual sides where its inputs are open and no data say more: the first on which it runs."""
    with_data = data is not None or (opened.recipe is not None and opened.recipe.calibration is not None)
    if with_data or all(None not in spec.shape[1:] for spec in opened.inputs):
        return opened
    inputs = _running(opened, list(usual_sides(opened.inputs)), workspace.seed)
    for spec, taken in zip(opened.inputs, inputs, strict=True):
        if taken != spec:
            asked = f"--input {spec.name}={shown(taken).replace('?', '1')}"
            workspace.warn(f"{asked} is assumed: the model leaves {shown(spec)} open, and there are no data")
    return replace(opened, inputs=inputs)


def _running(opened: Model, shapes: Sequence[tuple[TensorSpec, ...]], seed: int) -> tuple[TensorSpec, ...]:
    """The first inputs on which the model runs, else the first of all, whose failure a build tells."""
    session = native(opened.native).session(opened.content, {}, threads=1)
    for inputs in shapes:
        with suppress(ModelError):
            session.run(example(None, inputs, seed))
            return inputs
    return shapes[0]


def calibration_samples(opened: Model, samples: Samples, seed: int) -> int:
    """How many samples the covariances of all layers' inputs need: a few rows for each input of the widest layer.

    Of N rows of n features, a sample covariance is known to about sqrt(n / N) of its norm (Vershynin, "How close is the
    sample covariance matrix to the actual covariance matrix?", 2012). What it decides is the subspace that is kept: on
    a 784-512-10 perceptron 2,000 rows lose as little as 8,000.
    """
    rows = row_counts(opened, samples, seed) if opened.layers else None
    rows = rows or {}
    _, batch = next(feeds(samples, opened.inputs, dynamic_batch=1))
    views = [view for view in views_of(opened.layers) if rows.get(view.name)]
    needed = [ceil(ROWS_PER_INPUT * view.in_features * batch / rows[view.name]) for view in views]
    return min(max([FEWEST, *needed]), MOST)


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


def make_evaluation_sets(
    metric: str | None,
    data: Data,
    dense: Session,
    *,
    exact: bool,
    confidence: float = CONFIDENCE,
    recipe: RecipeScore | None = None,
) -> tuple[EvaluationSet, EvaluationSet | None]:
    """The dense fp32 model's answers on the validation and the confirmation samples, and the metrics that fit them.

    Args:
        metric: that was asked for, by its name or as file.py:function; None to choose.
        dense: the model as it is.
        confidence: of bounds, one-sided.
        recipe: judges the files in the place of the metrics, which then only say what the outputs are; no samples are
            kept back then.

    Raises:
        UsageError: the metric asked for does not fit.
        DataError: labels that fit no output of the model.
        ModelError: no output can be scored.
    """
    reference = answers(dense, data.validation)
    asked = load_metric(metric) if metric is not None and ":" in metric else metric
    judges = choose(reference, data.validation.labels, asked, data.validation.arrays.values())
    if not judges:
        raise ModelError("no output of the model holds numbers of one shape for all samples: none can be scored")
    scale = make_scale(reference, data.validation.labels, judges, confidence)
    validation = EvaluationSet(
        data.validation, scale, data.calibration is not None or recipe is not None, exact, recipe
    )
    kept_back = data.confirmation
    if kept_back is None or recipe is not None:
        return validation, None
    scale = make_scale(answers(dense, kept_back), kept_back.labels, judges, confidence)
    return validation, EvaluationSet(kept_back, scale, True, exact)
