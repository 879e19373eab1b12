"""The metrics that plans are judged by: a score per sample, so that two builds are compared on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgepack.errors import UsageError
from edgepack.metrics import classes, values
from edgepack.model.types import Array

Scores = Callable[[Array, Array, Array | None], Array]
"""(outputs (N, …), dense outputs (N, …), labels or None) -> scores (N,), higher is better; the metric is their mean."""
Fits = Callable[[Array, Array | None], str | None]
"""(dense outputs, labels or None) -> why the metric cannot be taken of them, None where it can."""


@dataclass(frozen=True)
class Metric:
    """One way to score answers.

    Attributes:
        name: as in `--metric`.
        scores: see `Scores`.
        unfit: see `Fits`.
        labels: whether it compares with labels alone, with labels where they fit and with the dense model's answers
            elsewhere, with these answers always, or as its own function does.
        unit: of the score and of a drop.
        is_error: whether people know it as an error, of which less is better: its scores are then negative.
        help: in a line.
    """

    name: str
    scores: Scores
    unfit: Fits
    labels: Literal["needed", "used", "unused", "own"]
    unit: str
    help: str
    is_error: bool = False

    def shown(self, score: float) -> float:
        """A score as people know it."""
        return -score if self.is_error else score


def _always(reference: Array, labels: Array | None) -> str | None:
    return None


_ALL = (
    Metric("accuracy", classes.accuracy, classes.no_layout, "needed", "points", "classes that are the labels'"),
    Metric("top5", classes.top5, classes.no_top5, "needed", "points", "labels among the five best classes"),
    Metric("f1", classes.f1, classes.no_layout, "needed", "points", "macro F1 of classes, one or several a sample"),
    Metric("agreement", classes.agreement, _always, "unused", "points", "classes that are the original model's"),
    Metric("cosine", values.cosine, values.no_values, "unused", "points", "direction of the original's answer"),
    Metric("r2", values.r2, values.no_values, "used", "points", "variance that is explained, channel by channel"),
    Metric("nrmse", values.nrmse, values.no_values, "used", "points", "error over the channel's deviation", True),
    Metric("mse", values.mse, values.no_values, "used", "", "mean square error", True),
    Metric("mae", values.mae, values.no_values, "used", "", "mean absolute error", True),
    Metric("sqnr", values.sqnr, values.no_values, "used", "dB", "signal over noise, 100 where equal"),
    Metric("psnr", values.psnr, values.no_values, "used", "dB", "peak signal over noise, 100 where equal"),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}


def metric_named(name: str) -> Metric:
    """One of these.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in METRICS:
        raise UsageError(
            f"unknown metric {name!r}; there are {', '.join(METRICS)}",
            hint="or give your own as file.py:function, function(outputs, labels) -> a score per sample; or recipe: "
            "the `evaluate` of a recipe",
        )
    return METRICS[name]


def own_metric(name: str, function: Callable[[Array, Array | None], object]) -> Metric:
    """A metric of the user's: function(outputs (N, …), labels or None) -> scores (N,), higher is better.

    Raises on use:
        UsageError: it gives something else.
    """

    def scores(outputs: Array, reference: Array, labels: Array | None) -> Array:
        found = np.asarray(function(outputs, labels), dtype=float)
        if found.shape != (len(outputs),):
            raise UsageError(
                f"--metric {name} gave scores of shape {found.shape} for {len(outputs)} samples",
                hint="return one number per sample, higher is better; their mean is the metric",
            )
        return found

    return Metric(name, scores, _always, "own", "", "your own")
