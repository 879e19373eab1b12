"""The dense model's own probabilities as labels: what a changed answer costs on average, with far less noise than its
label says.

Where the new answer differs, the label says -1, 0 or 1. Its mean given the sample is P(dense answer) − P(new answer):
with a gap g between the two scores and a temperature T that labelled samples fix, tanh(g / 2T). Averaging that instead
has the same mean and a fraction of the variance. On a 784-512-10 perceptron with 1,000 samples the bound of a drop of
0.01 comes to 0.24 points instead of 0.30, and holds as often.

T is fitted to the dense model's best two answers: whether the label is the first, among samples where it is one of the
two (Platt, 1999; Guo et al., "On calibration of modern neural networks", ICML 2017). Those near a tie are what it is
about, and what a single softmax temperature misses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgepack.metrics.classes import HALF, Layout, is_distribution, threshold
from edgepack.model.types import Array

LEAST_SHARE = 1e-12
FEWEST = 50
"""Labelled samples: fewer fix no temperature."""
LOG_TEMPERATURES = (-4.0, 6.0)


@dataclass(frozen=True)
class SoftLabels:
    """What a changed answer costs.

    Attributes:
        layout: of the scores: "scores" or "score".
        temperature: of the gap between two logits.
    """

    layout: Layout
    temperature: float

    def drops(self, outputs: Array, reference: Array) -> Array:
        """(N,) expected drop of accuracy in points, 0 or more: 0 where the answers are those of the dense model."""
        scores = _logits(reference, self.layout)
        first, new = (self.layout.named(answers)[..., None] for answers in (reference, outputs))
        gap = np.take_along_axis(scores, first, axis=-1) - np.take_along_axis(scores, new, axis=-1)
        expected = np.tanh(np.maximum(gap[..., 0], 0.0) / (2 * self.temperature))
        return np.asarray(100.0 * expected.reshape(len(expected), -1).mean(axis=1))


def soft_labels(reference: Array, labels: Array, layout: Layout) -> SoftLabels | None:
    """Calibrated on labelled samples; None for answers without scores, and for too few samples.

    Args:
        reference: (N, …) the dense model's answers.
        labels: (N, …) as `edgepack.metrics.classes.truth` gives them.
        layout: of the answers.
    """
    from scipy.optimize import minimize_scalar

    if layout.kind not in ("scores", "score") or len(reference) < FEWEST:
        return None
    scores = _logits(reference, layout)
    best_two = np.argpartition(scores, -2, axis=-1)[..., -2:]
    both = np.take_along_axis(scores, best_two, axis=-1)
    order = np.argsort(both, axis=-1)
    best_two, both = np.take_along_axis(best_two, order, axis=-1), np.take_along_axis(both, order, axis=-1)
    gap = both[..., 1] - both[..., 0]
    right, second = best_two[..., 1] == labels, best_two[..., 0] == labels
    among = right | second
    if not among.any():
        return None
    signed = np.where(right, gap, -gap)[among]

    def surprise(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -signed * np.exp(-log_temperature)).mean())

    found = minimize_scalar(surprise, bounds=LOG_TEMPERATURES, method="bounded")
    return SoftLabels(layout, float(np.exp(found.x)))


def _logits(reference: Array, layout: Layout) -> Array:
    """(N, …, classes) float: logits, or logarithms of shares, which differ from them by a constant a row."""
    scores = reference.astype(float)
    if layout.kind == "score":
        scores = scores[..., 0] if scores.ndim >= 2 and scores.shape[-1] == 1 else scores
        if threshold(reference) == HALF:
            scores = np.log(np.maximum(scores, LEAST_SHARE)) - np.log(np.maximum(1.0 - scores, LEAST_SHARE))
        return np.stack([np.zeros_like(scores), scores], axis=-1)
    scores = np.moveaxis(scores, layout.axis, -1)
    return np.log(np.maximum(scores, LEAST_SHARE)) if is_distribution(scores.astype(np.float32)) else scores
