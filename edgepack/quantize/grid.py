"""Integer grids: symmetric int8 weights per output channel, asymmetric int8 activations per tensor."""

from __future__ import annotations

import numpy as np

from edgepack.types import Array

WEIGHT_MAX = 127


def weight_scales(weight: Array, *, axis: int = 0, largest: int = WEIGHT_MAX) -> Array:
    """One float32 scale per output channel: max |w| / 127, and 1 for a channel of zeros.

    Args:
        weight: any shape; `axis` holds the output channels.
        largest: largest code: 127, or 63 where the target's int8 dot products saturate.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.abs(weight).max(axis=others).astype(np.float32)
    smallest = np.finfo(np.float32).tiny
    return np.where(peak > 0, np.maximum(peak / np.float32(largest), smallest), np.float32(1)).astype(np.float32)


def quantize_weight(weight: Array, *, axis: int = 0, largest: int = WEIGHT_MAX) -> tuple[Array, Array]:
    """Round to nearest on the symmetric grid of each output channel.

    Returns:
        (codes int8 of the weight's shape, scales (channels,) float32); codes × scales ≈ weight, |error| ≤ scale / 2.
    """
    scales = weight_scales(weight, axis=axis, largest=largest)
    shape = [1] * weight.ndim
    shape[axis] = -1
    codes = np.rint(weight / scales.reshape(shape))
    return np.clip(codes, -largest, largest).astype(np.int8), scales


def activation_grid(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of an int8 tensor that covers low … high and represents 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 0:
        return 1.0, 0
    scale = max(float(np.float32((high - low) / 255)), float(np.finfo(np.float32).tiny))
    zero_point = round(-128 - low / scale)
    return scale, int(np.clip(zero_point, -128, 127))
