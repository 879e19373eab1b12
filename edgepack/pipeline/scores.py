"""The untouched test: scored once per file, at the end of a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgepack import metrics
from edgepack.data import Samples, validate
from edgepack.errors import DataError, EdgepackError, ModelError
from edgepack.inference import Running, load, predict
from edgepack.pipeline.attempt import THREADS, Guard
from edgepack.pipeline.opened import Opened
from edgepack.types import Array, Format


def final_scores(
    paths: Mapping[str, tuple[Path, Format]], opened: Opened, test: Samples | None, guard: Guard
) -> dict[str, float]:
    """The untouched test, once per file: `--test`, else the recipe's `evaluate`. Empty where there is neither."""
    if test is not None:
        fp32 = predict(_loaded(*next(v for n, v in paths.items() if n.startswith("baseline/fp32")), guard), test)
        metric = metrics.METRICS[metrics.choose(fp32, test.labels, guard.metric if test.labels is not None else None)]
        return {n: float(metric(predict(_loaded(*v, guard), test), fp32, test.labels).mean()) for n, v in paths.items()}
    evaluate = None if opened.recipe is None else opened.recipe.evaluate
    if evaluate is None:
        return {}
    return {name: _evaluated(evaluate, opened, _loaded(path, fmt, guard)) for name, (path, fmt) in paths.items()}


def _loaded(path: Path, fmt: Format, guard: Guard) -> Running:
    return load(path, fmt, threads=THREADS, exact=guard.exact)


def _evaluated(evaluate: Callable[[Callable[..., Array]], float], opened: Opened, model: Running) -> float:
    def answer(*arrays: Array) -> Array:
        given = {spec.name: np.asarray(array) for spec, array in zip(opened.inputs, arrays, strict=True)}
        return predict(model, validate(given, opened.inputs, "evaluate"))

    try:
        score = evaluate(answer)
    except EdgepackError:
        raise
    except Exception as err:
        raise ModelError(f"the recipe's evaluate raised {type(err).__name__}: {err}") from err
    if not isinstance(score, int | float) or not np.isfinite(score):
        raise DataError(f"the recipe's evaluate returned {score!r}, expected a finite number")
    return float(score)
