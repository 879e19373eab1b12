"""Which metric judges which output, and why: by the labels where there are any, else by what the answers look like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.errors import DataError, UsageError
from edgepack.metrics import classes, values
from edgepack.metrics.metric import METRICS, Metric, metric_named
from edgepack.model.types import Array

CONFIDENT = 0.6
"""Mean of the largest softmax share from which vectors are taken for class scores: what a network that was trained to
tell classes apart exceeds, and standardized targets of a regression (about 0.5 of three, 0.25 of ten) do not."""
VARIED = 0.5
"""Of the largest entropy of the arg max: class scores have their largest value now here, now there."""
UNIT_TOLERANCE = 1e-3
FEWEST_CLASSES = 3
"""Without labels: two values may as well be a pair of coordinates."""


@dataclass(frozen=True)
class Judge:
    """How one output is scored.

    Attributes:
        output: its number.
        metric: that scores it.
        labelled: whether it is compared with the labels, and not with the dense model's answers.
        why: the metric was chosen.
    """

    output: int
    metric: Metric
    labelled: bool
    why: str

    def scores(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> Array:
        """(N,) scores of the answers, all outputs of them given; higher is better."""
        return self.metric.scores(outputs[self.output], reference[self.output], labels if self.labelled else None)


def choose(
    reference: Sequence[Array], labels: Array | None, asked: str | Metric | None, inputs: Iterable[Array] = ()
) -> tuple[Judge, ...]:
    """A judge for every output that holds numbers; the metric that was asked for wherever it fits.

    Args:
        reference: (N, …) each, the dense model's answers.
        labels: (N, …) or None.
        asked: a metric or its name, None to choose.
        inputs: (N, …) each, of the model: an output of an input's shape is a reconstruction.

    Raises:
        UsageError: an unknown metric, or one that fits no output.
        DataError: labels that fit no output.
    """
    shapes = {array.shape[1:] for array in inputs if array.ndim > 1}
    given = _labelled(reference, labels) if asked is None else _as_asked(reference, labels, asked)
    found = []
    for number, answers in enumerate(reference):
        if number in given:
            found.append(given[number])
        elif answers.dtype.kind in "iubf" and answers.size:
            name, why = _automatic(answers, shapes)
            found.append(Judge(number, METRICS[name], False, why))
    return tuple(found)


def _as_asked(reference: Sequence[Array], labels: Array | None, asked: str | Metric) -> dict[int, Judge]:
    metric, why = asked if isinstance(asked, Metric) else metric_named(asked), "it was asked for"
    unfit = {number: metric.unfit(answers, labels) for number, answers in enumerate(reference)}
    fit = [number for number, reason in unfit.items() if reason is None]
    if not fit:
        if metric.labels == "needed" and labels is None:
            raise UsageError(
                f"--metric {metric.name} needs labels", hint="put an array `y` into --data, or use --metric agreement"
            )
        reasons = "; ".join(str(reason) for reason in unfit.values())
        raise UsageError(
            f"--metric {metric.name} does not fit: {reasons}", hint="leave --metric out to have one chosen"
        )
    if metric.labels == "own":
        return {fit[0]: Judge(fit[0], metric, labels is not None, why)}
    if metric.labels == "needed":
        return {number: Judge(number, metric, True, why) for number in fit}
    of_labels = _first_with_values(reference, labels) if metric.labels == "used" else None
    return {number: Judge(number, metric, number == of_labels, why) for number in fit}


def _labelled(reference: Sequence[Array], labels: Array | None) -> dict[int, Judge]:
    """Judges of the outputs that the labels are of."""
    if labels is None:
        return {}
    layouts = {number: classes.layout(answers, labels) for number, answers in enumerate(reference)}
    known = {number: found for number, found in layouts.items() if found is not None}
    # A single number beside scores or class numbers is something else than their label.
    several = {number: found for number, found in known.items() if found.kind != "score"} or known
    why = {
        "scores": "labels are the classes that it scores",
        "score": "labels are 0 or 1, and it gives one score",
        "numbers": "it gives class numbers, as the labels are",
        "several": "labels say yes or no for each of its scores",
    }
    if several:
        return {
            number: Judge(number, METRICS["f1" if found.kind == "several" else "accuracy"], True, why[found.kind])
            for number, found in several.items()
        }
    number = _first_with_values(reference, labels)
    if number is None:
        shapes = ", ".join(f"{answers.dtype} {answers.shape}" for answers in reference)
        raise DataError(
            f"the labels 'y' ({labels.dtype} {labels.shape}, from {labels.min():g} to {labels.max():g}) "
            f"fit no output of the model ({shapes})",
            hint="give class numbers (N,), rows of 0 and 1 (N, classes), or values in the shape of an output; "
            "or leave 'y' out to compare with the original model",
        )
    return {number: Judge(number, METRICS["r2"], True, "labels are values in the shape of its answers")}


def _first_with_values(reference: Sequence[Array], labels: Array | None) -> int | None:
    if labels is None:
        return None
    fits = (number for number, answers in enumerate(reference) if values.labels_are_values(answers, labels))
    return next(fits, None)


def _automatic(answers: Array, shapes: set[tuple[int, ...]]) -> tuple[str, str]:
    """The metric of an output without labels, and why."""
    if answers.dtype.kind in "iub":
        return "agreement", "it holds class numbers"
    if classes.is_distribution(answers):
        return "agreement", "its answers are shares of classes"
    if answers.shape[1:] in shapes:
        return "r2", "its answers have the shape of an input: a reconstruction"
    if answers.ndim == 2 and answers.shape[1] > 1:
        lengths = np.linalg.norm(answers.astype(float), axis=1)
        if np.allclose(lengths, 1.0, atol=UNIT_TOLERANCE):
            return "cosine", "its answers have unit length: an embedding"
        if _like_classes(answers):
            return "agreement", "its answers look like scores of classes"
    return "r2", "its answers are values"


def _like_classes(answers: Array) -> bool:
    """Whether vectors (N, classes) look like logits: sure of themselves, and of another class for other samples."""
    count = answers.shape[1]
    if count < FEWEST_CLASSES:
        return False
    scores = answers.astype(float)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    surest = float((1.0 / shares.sum(axis=1)).mean())
    winners = np.bincount(scores.argmax(axis=1), minlength=count) / len(scores)
    entropy = -float((winners[winners > 0] * np.log(winners[winners > 0])).sum())
    return surest >= CONFIDENT and entropy >= VARIED * np.log(min(count, len(scores)))
