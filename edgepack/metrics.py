"""Guard metrics: a score per sample, so that two builds are compared on the same samples (paired)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgepack.errors import UsageError
from edgepack.model.types import Array


class Metric(Protocol):
    """(outputs (N, …), reference outputs (N, …), labels (N,) or None) -> scores (N,); the metric is their mean."""

    def __call__(self, outputs: Array, reference: Array, labels: Array | None, /) -> Array: ...  # noqa: D102


def accuracy(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """100 where the arg max of the last axis equals the label, else 0."""
    if labels is None:
        raise UsageError(
            "--metric accuracy needs labels", hint="put an array `y` into --data, or use --metric agreement"
        )
    if not _are_classes(labels, outputs):
        raise UsageError(
            f"--metric accuracy needs one class number per score vector: labels {labels.dtype} {labels.shape}"
            f" do not fit outputs {outputs.shape}",
            hint="use --metric agreement or cosine, or give the class numbers as `y`",
        )
    return np.asarray((outputs.argmax(axis=-1) == labels).reshape(len(outputs), -1).mean(axis=1) * 100.0)


def agreement(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """100 where the arg max equals the original model's, else 0."""
    same = outputs.argmax(axis=-1) == reference.argmax(axis=-1)
    return np.asarray(same.reshape(len(outputs), -1).mean(axis=1) * 100.0)


def cosine(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """100 × cosine between a sample's output and the original's, both flattened."""
    a, b = outputs.reshape(len(outputs), -1).astype(float), reference.reshape(len(reference), -1).astype(float)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    return np.asarray(np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), (a == b).all(axis=1)) * 100.0)


def _are_classes(labels: Array, outputs: Array) -> bool:
    """Whether the labels are class numbers for the outputs (…, classes). One column has no arg max to compare."""
    if outputs.ndim < 2 or outputs.shape[-1] < 2 or labels.shape != outputs.shape[:-1]:
        return False
    return labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels == np.rint(labels)).all()))


METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "agreement": agreement, "cosine": cosine}


def choose(reference: Array, labels: Array | None, asked: str | None) -> str:
    """The metric's name: what was asked for, else accuracy with labels, agreement for class scores, cosine otherwise.

    Outputs (N, classes) count as class scores unless every row has unit length, as embeddings do and probabilities
    only where all are certain.

    Raises:
        UsageError: an unknown name, or accuracy without labels that fit.
    """
    if asked is not None:
        if asked not in METRICS:
            raise UsageError(f"unknown metric {asked!r}; there are {', '.join(METRICS)}")
        if asked == "accuracy":
            accuracy(reference, reference, labels)
        return asked
    if labels is not None and _are_classes(labels, reference):
        return "accuracy"
    if reference.ndim != 2 or reference.shape[1] < 2:
        return "cosine"
    unit = np.allclose(np.linalg.norm(reference, axis=1), 1.0, atol=1e-3)
    shares = bool((reference >= 0).all()) and np.allclose(reference.sum(axis=1), 1.0, atol=1e-3)
    return "cosine" if unit and not shares else "agreement"


def sqnr_db(outputs: Array, reference: Array) -> float:
    """Signal to quantization noise ratio of `outputs` against `reference`, in dB (inf where they are equal)."""
    noise = float(np.square(outputs.astype(float) - reference).sum())
    if noise == 0:
        return float("inf")
    signal = float(np.square(reference.astype(float)).sum())
    return 10 * float(np.log10(max(signal / noise, 1e-30)))


ONE_SIDED_95 = 1.645
"""The normal quantile: a mean over hundreds of paired differences is as good as normal."""


@dataclass(frozen=True)
class Drop:
    """metric(dense fp32) − metric(emitted), in the metric's unit, with the paired standard error of the difference."""

    metric: str
    dense: float
    emitted: float
    standard_error: float
    samples: int

    @property
    def value(self) -> float:
        """The drop: more is worse."""
        return self.dense - self.emitted

    @property
    def margin(self) -> float:
        """How far the true drop may lie above `value`, or below it: a paired test, one-sided at 95 %."""
        return ONE_SIDED_95 * self.standard_error if self.samples > 1 else float("inf")


def drop(metric: str, outputs: Array, reference: Array, labels: Array | None) -> Drop:
    """Compare emitted outputs with the dense fp32 model's on the same samples.

    Args:
        outputs, reference: (N, …), first output of the emitted file and of the dense fp32 file.
    """
    score: Callable[[Array, Array, Array | None], Array] = METRICS[metric]
    dense, emitted = score(reference, reference, labels), score(outputs, reference, labels)
    count = len(dense)
    error = float(np.std(dense - emitted, ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    return Drop(metric, float(dense.mean()), float(emitted.mean()), error, count)
