"""How much of a score a compressed model loses, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgepack.metrics import classes, intervals
from edgepack.metrics.choose import Judge
from edgepack.metrics.soft_labels import SoftLabels, soft_labels
from edgepack.model.types import Array

CONFIDENCE = 0.9
"""One-sided."""
SHARE_OF_BIAS = 0.25
"""Of the variance of the labels' correction, that stands in the bound for what is not corrected. On a 784-512-10
perceptron at six ranks, 200 to 4,000 samples and 2,400 draws each, bounds at 90 % hold in 87 to 99 % of the draws."""
WORST = -1e6
"""Score of an answer that is not finite."""
SHARES = ("accuracy", "agreement", "top5")


@dataclass(frozen=True)
class Drop:
    """metric(dense fp32) − metric(emitted) of the output that loses most.

    Attributes:
        metric: its name.
        dense, emitted: scores, higher is better.
        value: the estimated drop, in the metric's unit: more is worse.
        bound: what the true drop stays under with the confidence.
        standard_error: of the estimate.
        samples: that were scored.
        confidence: one-sided.
        output: number of the output.
        score: of the emitted file's first output that is judged, whatever output loses most.
    """

    metric: str
    dense: float
    emitted: float
    value: float
    bound: float
    standard_error: float
    samples: int
    confidence: float = CONFIDENCE
    output: int = 0
    score: float = float("nan")

    @property
    def margin(self) -> float:
        """How far the true drop may lie above the estimate."""
        return self.bound - self.value


@dataclass(frozen=True)
class Scale:
    """What drops are measured by: the dense model's answers and how they are judged.

    Attributes:
        reference: (N, …) each, of every output.
        labels: (N, …) or None.
        judges: at most one an output.
        soft: by output number, of judges of accuracy on scores.
        confidence: of bounds, one-sided.
    """

    reference: Sequence[Array]
    labels: Array | None
    judges: Sequence[Judge]
    soft: dict[int, SoftLabels]
    confidence: float = CONFIDENCE

    def drop(self, outputs: Sequence[Array]) -> Drop:
        """Of the output with the largest bound.

        The bound of the worst output is one of its true drop: it is at least as large as that output's own.

        Args:
            outputs: (N, …) each, of every output of the emitted file.
        """
        drops = [self._drop(judge, outputs) for judge in self.judges]
        return replace(max(drops, key=lambda one: one.bound), score=drops[0].emitted)

    def _drop(self, judge: Judge, outputs: Sequence[Array]) -> Drop:
        labels = self.labels if judge.labelled else None
        answers, reference = outputs[judge.output], self.reference[judge.output]
        score = judge.metric.scores
        dense, emitted = score(reference, reference, labels), score(answers, reference, labels)
        emitted = np.where(np.isfinite(emitted), emitted, WORST)
        differences, count = dense - emitted, len(dense)
        value, bound, error = _by_scores(differences, judge, self.confidence)
        if judge.output in self.soft:
            expected = self.soft[judge.output].drops(answers, reference)
            value, bound, error = _by_soft_labels(differences, expected, self.confidence)
        return Drop(
            judge.metric.name,
            float(dense.mean()),
            float(emitted.mean()),
            value,
            bound,
            error,
            count,
            self.confidence,
            judge.output,
        )


def make_scale(
    reference: Sequence[Array], labels: Array | None, judges: Sequence[Judge], confidence: float = CONFIDENCE
) -> Scale:
    """What drops against these answers are measured by; soft labels are calibrated where the judges use labels."""
    soft = {}
    for judge in judges:
        answers = reference[judge.output]
        layout = None if labels is None or not judge.labelled else classes.layout(answers, labels)
        if judge.metric.name != "accuracy" or labels is None or layout is None:
            continue
        found = soft_labels(answers, classes.truth(labels, layout, answers), layout)
        if found is not None:
            soft[judge.output] = found
    return Scale(reference, labels, judges, soft, confidence)


def _by_scores(differences: Array, judge: Judge, confidence: float) -> tuple[float, float, float]:
    """Estimate, bound and standard error from the scores alone."""
    value, count = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / count**0.5 if count > 1 else float("inf")
    if judge.metric.name not in SHARES:
        return value, intervals.of_mean(differences, confidence), error
    worse, better = int((differences > 0).sum()), int((differences < 0).sum())
    bound = 100.0 * intervals.of_counts(worse, better, count, confidence)
    largest = float(np.abs(differences).max())
    if 0.0 < largest < 100.0 or not np.isin(np.abs(differences), (0.0, 100.0)).all():  # shares of many positions
        beyond = bound - 100.0 * (worse - better) / count
        bound = max(intervals.of_mean(differences, confidence), value + beyond * largest / 100.0)
    return value, bound, error


def _by_soft_labels(differences: Array, expected: Array, confidence: float) -> tuple[float, float, float]:
    """Estimate, bound and standard error from soft labels, as far as the labels do not contradict them.

    Their mean differs from that of the labels by a bias that is known as well as the labels are noisy. It is taken out
    by as much as it is sure: the less, the more it may be noise (the positive part of James and Stein's estimator).
    """
    from scipy.special import ndtri

    count = len(differences)
    gaps = differences - expected
    bias, noise = float(gaps.mean()), float(gaps.std(ddof=1)) / count**0.5
    weight = max(0.0, 1.0 - (noise / bias) ** 2) if bias else 0.0
    soft = float(expected.mean())
    z = float(ndtri(confidence))
    rise = 100.0 * intervals.of_rare(expected / 100.0, confidence) - soft
    correction = noise**2 * (weight**2 + SHARE_OF_BIAS * (1.0 - weight) ** 2)
    value = soft + weight * bias
    spread = float(expected.std(ddof=1)) / count**0.5
    return value, value + float(np.hypot(rise, z * correction**0.5)), float(np.hypot(spread, weight * noise))
