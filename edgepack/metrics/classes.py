"""Scores of answers that name classes: what an output says, what the labels say, and how the two compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgepack.model.types import Array

HALF = 0.5
"""Threshold of a probability; that of a logit is 0."""
UNIT_TOLERANCE = 1e-3
STEPS = 256
"""Of a share: models that compute in int8 or uint8 give shares in so many parts."""
TOP = 5


@dataclass(frozen=True)
class Layout:
    """How an output names classes.

    Attributes:
        kind: "scores" one number per class, of which the largest counts; "score" one number for the positive class;
            "numbers" the class itself; "several" one number per class, of which all above a threshold count.
        axis: of the classes, for scores and several.
        threshold: for score and several.
    """

    kind: Literal["scores", "score", "numbers", "several"]
    axis: int = -1
    threshold: float = 0.0

    def named(self, outputs: Array) -> Array:
        """Class numbers (N, …), 0 or 1 for a single score, (N, …, classes) of 0 and 1 for several."""
        if self.kind == "numbers":
            return _squeezed(outputs).astype(np.int64)
        if self.kind == "scores":
            return np.asarray(outputs.argmax(axis=self.axis))
        above = (outputs > self.threshold).astype(np.int64)
        return above if self.kind == "several" else _squeezed(above)


def layout(reference: Array, labels: Array) -> Layout | None:
    """How labels fit an output; None where they do not.

    Labels are class numbers (N, …), a column of them (N, 1), or rows of 0 and 1: one-hot, or several at once.

    Args:
        reference: (N, …) the dense model's answers.
        labels: (N, …).
    """
    if not _whole(labels) or labels.min() < 0:
        return None
    flat, single = _squeezed(labels), _squeezed(reference)
    if reference.dtype.kind in "iub":
        return Layout("numbers") if single.shape == flat.shape else None
    if reference.ndim >= 2 and reference.shape == labels.shape and reference.shape[-1] > 1 and labels.max() <= 1:
        one_hot = bool((labels.sum(axis=-1) == 1).all())
        return Layout("scores") if one_hot else Layout("several", threshold=threshold(reference))
    if single.shape == flat.shape:
        return Layout("score", threshold=threshold(reference)) if flat.max() <= 1 else None
    for axis in (-1, 1):
        if reference.ndim < 2 or reference.shape[axis] < 2 or flat.max() >= reference.shape[axis]:
            continue
        if flat.shape == tuple(np.delete(reference.shape, axis)):
            return Layout("scores", axis if axis == -1 else 1)
    return None


def layout_of(reference: Array) -> Layout:
    """How an output names classes where there are no labels to ask."""
    if reference.dtype.kind in "iub":
        return Layout("numbers")
    if reference.ndim < 2 or reference.shape[-1] < 2:
        return Layout("score", threshold=threshold(reference))
    return Layout("scores")


def threshold(reference: Array) -> float:
    """Above which a score says yes: a half for probabilities, 0 for logits."""
    return HALF if reference.size and float(reference.min()) >= 0 and float(reference.max()) <= 1 else 0.0


def is_distribution(reference: Array) -> bool:
    """Whether every row is a distribution over two or more classes, each share perhaps rounded to 8 bits."""
    if reference.ndim < 2 or reference.shape[-1] < 2 or reference.dtype.kind != "f":
        return False
    rounded = bool((np.rint(reference * STEPS) == reference * STEPS).all())
    tolerance = min(reference.shape[-1] / (2 * STEPS), HALF) if rounded else UNIT_TOLERANCE
    return bool((reference >= 0).all()) and bool(np.allclose(reference.sum(axis=-1), 1.0, rtol=0, atol=tolerance))


def truth(labels: Array, known: Layout, reference: Array) -> Array:
    """The labels as `Layout.named` gives answers."""
    if known.kind == "several":
        return labels.astype(np.int64)
    if known.kind == "scores" and labels.shape == reference.shape:
        return np.asarray(labels.argmax(axis=-1))
    return _squeezed(labels).astype(np.int64)


def accuracy(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) percent of a sample's classes that are the labels': 0 or 100 where a sample has one."""
    known, right = _asked(reference, labels)
    return _share(known.named(outputs) == right)


def agreement(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) percent of a sample's classes that are the original model's."""
    known = layout_of(reference)
    return _share(known.named(outputs) == known.named(reference))


def top5(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) percent of a sample's classes that are among the five with the largest scores."""
    known, right = _asked(reference, labels)
    scores = np.moveaxis(outputs, known.axis, -1)
    best = np.argpartition(scores, -TOP, axis=-1)[..., -TOP:]
    return _share((best == right[..., None]).any(axis=-1))


def f1(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) scores with the macro F1 in percent as their mean: of the positive class where there are two, else over all
    classes that the labels have.

    F1 is a ratio of sums; the scores are its first-order expansion (the delta method), so that paired differences of
    them have the variance of the difference in F1.
    """
    known, right = _asked(reference, labels)
    there, named = _by_class(right, known, reference), _by_class(known.named(outputs), known, reference)
    both, either = 2.0 * (there & named).mean(axis=1), there.mean(axis=1) + named.mean(axis=1)
    present = there.any(axis=(0, 1)) if known.kind != "score" else np.ones(1, bool)
    both, either = both[:, present], either[:, present]
    total = either.mean(axis=0)
    value = np.where(total > 0, both.mean(axis=0) / np.where(total > 0, total, 1.0), 1.0)
    expansion = value + (both - value * either) / np.where(total > 0, total, 1.0)
    return np.asarray(100.0 * expansion.mean(axis=1))


def no_layout(reference: Array, labels: Array | None) -> str | None:
    """Why labels are no classes of an output; None where they are."""
    if labels is None:
        return "there are no labels"
    if layout(reference, labels) is None:
        return f"labels {labels.dtype} {labels.shape} name no classes of outputs {reference.shape}"
    return None


def no_top5(reference: Array, labels: Array | None) -> str | None:
    """Why there is no best five."""
    why = no_layout(reference, labels)
    if why is not None or labels is None:
        return why
    known = layout(reference, labels)
    if known is None or known.kind != "scores" or reference.shape[known.axis] <= TOP:
        return f"it needs scores of more than {TOP} classes, the outputs are {reference.shape}"
    return None


def _asked(reference: Array, labels: Array | None) -> tuple[Layout, Array]:
    known = None if labels is None else layout(reference, labels)
    if labels is None or known is None:
        raise ValueError(str(no_layout(reference, labels)))
    return known, truth(labels, known, reference)


def _by_class(named: Array, known: Layout, reference: Array) -> Array:
    """(N, positions, classes) bool."""
    if known.kind == "several":
        return np.asarray(named.reshape(len(named), -1, named.shape[-1]) > 0)
    flat = named.reshape(len(named), -1)
    if known.kind == "score":
        return np.asarray(flat[..., None] > 0)
    classes = reference.shape[known.axis] if known.kind == "scores" else int(reference.max()) + 1
    return np.asarray(flat[..., None] == np.arange(classes))


def _share(right: Array) -> Array:
    return np.asarray(right.reshape(len(right), -1).mean(axis=1) * 100.0)


def _squeezed(array: Array) -> Array:
    return array[..., 0] if array.ndim >= 2 and array.shape[-1] == 1 else array


def _whole(labels: Array) -> bool:
    return labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels == np.rint(labels)).all()))
