"""Scores of answers that are numbers: how far they lie from the labels, or from the dense model's answers.

Every channel counts alike, whatever its scale: a block of scores a thousand times smaller than the boxes beside it
weighs as much as they do.
"""

from __future__ import annotations

import numpy as np

from edgepack.model.types import Array

MOST_DB = 100.0
"""Signal over noise from which answers count as equal: the rounding of float32 lies near it."""
LEAST_DB = -30.0
LEAST_ERROR = 1.2e-7
"""Of float32 beside 1, in units of an output: runtimes cut the tails of a sigmoid off far below it."""
MOST_CHANNELS = 4096
LEAST_VARIANCE = 1e-10
"""Of the channel that varies most: a channel that varies less is compared on that scale, since it is constant but for
rounding."""


def cosine(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) 100 × cosine between a sample's output and the original's, both flattened."""
    a, b = _flat(outputs), _flat(reference)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    return np.asarray(np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), (a == b).all(axis=1)) * 100.0)


def r2(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) scores with 100 × the coefficient of determination as their mean, averaged over the channels."""
    return np.asarray(100.0 * (1.0 - _relative(outputs, reference, labels)))


def nrmse(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) scores with minus the root mean square error, in percent of a channel's standard deviation, as their mean.

    A root of a mean; the scores are its first-order expansion (the delta method).
    """
    return -100.0 * _rooted(_relative(outputs, reference, labels))


def mse(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) minus the mean square error of each sample, in squared units of the output."""
    return np.asarray(-np.square(_flat(outputs) - _flat(_target(reference, labels))).mean(axis=1))


def mae(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) minus the mean absolute error of each sample, in units of the output."""
    return np.asarray(-np.abs(_flat(outputs) - _flat(_target(reference, labels))).mean(axis=1))


def sqnr(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) signal over noise of each sample in dB, at most 100."""
    target = _flat(_target(reference, labels))
    return _decibels(np.square(target).sum(axis=1), np.square(_flat(outputs) - target).sum(axis=1))


def psnr(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) peak signal over noise of each sample in dB, at most 100; the peak is the range of all targets."""
    target = _flat(_target(reference, labels))
    peak = float(np.ptp(target))
    return _decibels(np.full(len(target), peak**2), np.square(_flat(outputs) - target).mean(axis=1))


def sqnr_db(outputs: Array, reference: Array, floor: float = 0.0) -> float:
    """Signal to quantization noise ratio of `outputs` against `reference`, in dB (inf where they are equal).

    Args:
        floor: of the differences, in units of the output: what of them is below counts for nothing.
    """
    noise = float(np.square(np.maximum(np.abs(outputs.astype(float) - reference) - floor, 0.0)).sum())
    if noise == 0:
        return float("inf")
    signal = float(np.square(reference.astype(float)).sum())
    return 10 * float(np.log10(max(signal / noise, 1e-30)))


def labels_are_values(reference: Array, labels: Array) -> bool:
    """Whether labels are what the output should be: of its shape, but for an axis of one."""
    return labels.dtype.kind in "iubf" and bool(np.isfinite(labels).all()) and _fitting(reference, labels) is not None


def no_values(reference: Array, labels: Array | None) -> str | None:
    """Why an output cannot be compared number by number; None where it can."""
    if reference.dtype.kind not in "iubf":
        return f"the output holds {reference.dtype}"
    return None


def channel_axis(target: Array) -> int | None:
    """The axis along which scales differ most; None where an array has no axis but that of the samples."""
    axes = [axis for axis in range(1, target.ndim) if 1 < target.shape[axis] <= MOST_CHANNELS]
    return max(axes, key=lambda axis: (_spread(target, axis), axis), default=None)


def _spread(target: Array, axis: int) -> float:
    """Standard deviation of the logarithm of the variance along an axis."""
    variances = _variances(target, axis)
    return float(np.log(np.maximum(variances, LEAST_VARIANCE * max(float(variances.max()), 1e-300))).std())


def _variances(target: Array, axis: int) -> Array:
    others = tuple(other for other in range(target.ndim) if other != axis)
    return np.asarray(target.astype(float).var(axis=others))


def _relative(outputs: Array, reference: Array, labels: Array | None) -> Array:
    """(N,) scores with the mean square error, each channel's over its variance, as their mean.

    That is a ratio of two means, both of which another draw of samples would change: the scores are its first-order
    expansion (the delta method).
    """
    target = _target(reference, labels).astype(float)
    error = np.square(outputs.reshape(target.shape).astype(float) - target)
    axis = channel_axis(target)
    if axis is not None:
        error, target = np.moveaxis(error, axis, -1), np.moveaxis(target, axis, -1)
    others = tuple(range(target.ndim if axis is None else target.ndim - 1))
    squares = np.square(target - target.mean(axis=others))
    variances = squares.mean(axis=others)
    most = float(variances.max())
    floor = most * LEAST_VARIANCE if most > 0 else max(float(np.square(target).mean()), 1e-300)
    scales = np.maximum(variances, floor)
    ratios = np.where(np.isfinite(error), error, 0.0).mean(axis=others) / scales
    moved = ratios * (squares - variances)  # of mean 0; a channel on the floor is not scaled by its variance
    moved = np.where(variances < floor, 0.0, moved)
    return np.asarray(((error - moved) / scales).reshape(len(error), -1).mean(axis=1))


def _rooted(errors: Array) -> Array:
    mean = float(errors.mean())
    if mean == 0:
        return np.zeros_like(errors)
    root = mean**0.5
    return np.asarray(root + (errors - mean) / (2 * root))


def _target(reference: Array, labels: Array | None) -> Array:
    fitted = None if labels is None else _fitting(reference, labels)
    return reference if fitted is None else fitted


def _fitting(reference: Array, labels: Array) -> Array | None:
    """The labels in the shape of the output, None where they do not fit."""
    if labels.shape == reference.shape:
        return labels
    trimmed = [tuple(n for n in array.shape[1:] if n != 1) for array in (labels, reference)]
    same = len(labels) == len(reference) and trimmed[0] == trimmed[1]
    return labels.reshape(reference.shape) if same else None


def _decibels(signal: Array, noise: Array) -> Array:
    ratio = np.where(noise > 0, signal / np.where(noise > 0, noise, 1.0), np.inf)
    return np.clip(10.0 * np.log10(np.maximum(ratio, 1e-30)), LEAST_DB, MOST_DB)


def _flat(array: Array) -> Array:
    return np.asarray(array.reshape(len(array), -1).astype(float))
