"""The recipe's own `evaluate`: a score of a whole model, on data of the recipe's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepack.backends.backend import Session
from edgepack.backends.runtime import predict
from edgepack.data import validate
from edgepack.errors import DataError, UsageError
from edgepack.metrics.drop import WORST, Drop
from edgepack.model.model import Model
from edgepack.model.types import Array
from edgepack.sources import source_of
from edgepack.sources.recipe import PythonRecipe, user_errors
from edgepack.workspace import digest

RECIPE = "recipe"
"""Name of this metric."""

_EVALUATE = (
    "evaluate(predict) returns a number, higher is better; predict takes one numpy array per input, samples first"
)


@dataclass(frozen=True)
class RecipeScore:
    """What judges files where `--metric recipe` was asked for.

    Attributes:
        dense: the dense fp32 model's score.
        key: digest of what `evaluate` asked the dense model, and of its score.
    """

    opened: Model
    dense: float
    key: str

    def drop(self, model: Session) -> Drop:
        """The difference of two scores. One number a model knows no interval, so that the bound is the drop itself."""
        score, _ = evaluated(self.opened, model, worst=WORST)
        lost = self.dense - score
        return Drop(RECIPE, self.dense, score, lost, lost, float("nan"), samples=0, score=score)


def check_recipe_metric(spec: str, *, test: bool) -> None:
    """Refuse the metric for what is no recipe; nothing is opened.

    Args:
        spec: of the model.
        test: whether there is a `--test`.

    Raises:
        UsageError: it is no recipe, or a test asks for another metric.
    """
    if not isinstance(source_of(spec), PythonRecipe):
        raise UsageError(
            f"--metric recipe: {spec} is no recipe, so it has no `evaluate`",
            hint="give file.py:function that returns a Recipe with evaluate, or the name of another metric",
        )
    if test:
        raise UsageError(
            "--metric recipe scores on the recipe's own data, which cannot be done with --test",
            hint="leave --test out, or give the name of another metric",
        )


def recipe_score(opened: Model, dense: Session) -> RecipeScore:
    """The recipe's `evaluate`, run once on the dense model.

    Raises:
        UsageError: the recipe has none.
        ModelError, DataError: see `evaluated`.
    """
    if opened.recipe is None or opened.recipe.evaluate is None:
        raise UsageError(
            f"--metric recipe: the recipe of {opened.name} has no `evaluate`",
            hint="put evaluate into the Recipe, or give the name of another metric",
        )
    score, key = evaluated(opened, dense)
    return RecipeScore(opened, score, key)


def evaluated(opened: Model, model: Session, *, worst: float | None = None) -> tuple[float, str]:
    """The score of a model by the recipe's `evaluate`, and a digest of the score and of all that was asked for it.

    Args:
        opened: with a recipe that has `evaluate`.
        model: that answers.
        worst: takes the place of a score that is not finite; None to refuse it.

    Raises:
        ModelError: `evaluate` raises.
        DataError: it returns no number, or asks with other inputs than the model has.
    """
    asked: list[Array] = []

    def answer(*arrays: Array) -> Array:
        if len(arrays) != len(opened.inputs):
            names = ", ".join(spec.name for spec in opened.inputs)
            raise DataError(f"the recipe's evaluate gave predict {len(arrays)} arrays, the model's inputs are {names}")
        given = {spec.name: np.asarray(array) for spec, array in zip(opened.inputs, arrays, strict=True)}
        asked.extend(given.values())
        return predict(model, validate(given, opened.inputs, "evaluate"))

    if opened.recipe is None or opened.recipe.evaluate is None:
        raise ValueError("the model has no `evaluate`")
    with user_errors("the recipe's evaluate", "running", _EVALUATE):
        score: Any = opened.recipe.evaluate(answer)
    # A metric computed in float32 or in torch comes as a scalar of that library.
    number = score.item() if getattr(score, "ndim", None) == 0 else score
    if isinstance(number, int | float) and not np.isfinite(number) and worst is not None:
        number = worst
    if not isinstance(number, int | float) or not np.isfinite(number):
        raise DataError(f"the recipe's evaluate returned {score!r}, expected a finite number")
    return float(number), digest(float(number), *asked)
