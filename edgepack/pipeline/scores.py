"""The untouched test: scored once per file, at the end of a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import metrics
from edgepack.backends.backend import THREADS, Session
from edgepack.backends.runtime import load, predict
from edgepack.data import Samples, validate
from edgepack.errors import DataError
from edgepack.model.model import Model
from edgepack.model.scheme import Format
from edgepack.pipeline.attempt import Guard
from edgepack.sources.recipe import user_errors
from edgepack.types import Array

_EVALUATE = (
    "evaluate(predict) returns a number, higher is better; predict takes one numpy array per input, samples first"
)


def final_scores(
    paths: Mapping[str, tuple[Path, Format]], opened: Model, test: Samples | None, guard: Guard
) -> dict[str, float]:
    """The untouched test, once per file: `--test`, else the recipe's `evaluate`. Empty where there is neither."""
    if test is not None:
        outputs = {name: predict(_loaded(*file, guard), test) for name, file in paths.items()}
        fp32 = next(found for name, found in outputs.items() if name.startswith("baseline/fp32"))
        unlabelled = guard.metric == "accuracy" and test.labels is None
        metric = metrics.METRICS[metrics.choose(fp32, test.labels, None if unlabelled else guard.metric)]
        return {name: float(metric(found, fp32, test.labels).mean()) for name, found in outputs.items()}
    evaluate = None if opened.recipe is None else opened.recipe.evaluate
    if evaluate is None:
        return {}
    return {name: _evaluated(evaluate, opened, _loaded(path, fmt, guard)) for name, (path, fmt) in paths.items()}


def check_evaluate(opened: Model, dense: Path, guard: Guard) -> None:
    """Run the recipe's `evaluate` once on the dense model: better now than after the search.

    Raises:
        ModelError, DataError: see `final_scores`.
    """
    if opened.recipe is not None and opened.recipe.evaluate is not None:
        _evaluated(opened.recipe.evaluate, opened, _loaded(dense, opened.native, guard))


def _loaded(path: Path, fmt: Format, guard: Guard) -> Session:
    return load(path, fmt, threads=THREADS, exact=guard.exact)


def _evaluated(evaluate: Callable[[Callable[..., Array]], float], opened: Model, model: Session) -> float:
    def answer(*arrays: Array) -> Array:
        if len(arrays) != len(opened.inputs):
            names = ", ".join(spec.name for spec in opened.inputs)
            raise DataError(f"the recipe's evaluate gave predict {len(arrays)} arrays, the model's inputs are {names}")
        given = {spec.name: np.asarray(array) for spec, array in zip(opened.inputs, arrays, strict=True)}
        return predict(model, validate(given, opened.inputs, "evaluate"))

    with user_errors("the recipe's evaluate", "running", _EVALUATE):
        score: Any = evaluate(answer)
    # A metric computed in float32 or in torch comes as a scalar of that library.
    number = score.item() if getattr(score, "ndim", None) == 0 else score
    if not isinstance(number, int | float) or not np.isfinite(number):
        raise DataError(f"the recipe's evaluate returned {score!r}, expected a finite number")
    return float(number)
