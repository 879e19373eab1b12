"""JPEG on weights: a layer's int8 codes travel as one grey image, each row a tile of it, and come back dense.

Only the bytes on the wire shrink. The model file that is unpacked from them holds the layer dense in 8 bits, as large
and as fast as any: `edgepack.methods.mosaic` is the codec of both ends.
"""

from __future__ import annotations

import numpy as np

from edgepack.factorize.leastsquares import corrected_bias, metric, through
from edgepack.methods import mosaic
from edgepack.methods.budget import too_small
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, dense
from edgepack.model.types import Array
from edgepack.quantize.grids import quantize_weight

QUALITIES = (1, 95)
"""libjpeg's scale; above 95 files grow and hardly anything comes back better."""

_NOTHING = np.float32(2.0**-100)
"""Scale of a row that is better dropped: its codes keep their place on the grid, its outputs vanish."""


def jpeg(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """The layer at the highest quality whose image takes at most share · out · in bytes.

    Found by bisection: files grow with quality.

    Args:
        layer: whose W is put on the grid of 8 bits per row.
        share: of the bytes of its dense int8 weight, for the image; scales and bias are not counted.
        seed, gradient: not used.

    Raises:
        UsageError: Pillow is not installed.
    """
    quality = quality_within(layer, share)
    return quality if isinstance(quality, str) else at_quality(layer, quality)[0]


def quality_within(layer: View, share: float) -> int | str:
    """The highest quality whose image of the layer takes at most share · out · in bytes, or why there is none.

    Raises:
        UsageError: Pillow is not installed.
    """
    reason = mosaic.too_large(layer.weight.shape)
    if reason:
        return f"its weight is {reason}"
    codes, _ = quantize_weight(layer.weight)
    budget = int(share * layer.weight.size)
    low, high = QUALITIES
    least = len(mosaic.encode(codes, low))
    if least > budget:
        return too_small(share, least / layer.weight.size)
    while low < high:
        middle = (low + high + 1) // 2
        if len(mosaic.encode(codes, middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def at_quality(layer: View, quality: int) -> tuple[Replacement, bytes]:
    """The layer after its way through an image, and the image.

    Each row of the weight is a scale times the decoded codes, the largest of which is ±127. The scale is that of least
    squares, in the metric C of the inputs where they are known: s = wᵀ C c / cᵀ C c.

    Args:
        layer: whose W is put on the grid of 8 bits per row.
        quality: 1 … 95.

    Raises:
        UsageError: Pillow is not installed, or the weight is too large for one image.
    """
    data = mosaic.encode(quantize_weight(layer.weight)[0], quality)
    codes = mosaic.decode(data, (layer.out_features, layer.in_features)).astype(np.float64)
    weighed = through(codes, metric(layer))
    aligned = np.einsum("oi,oi->o", weighed, layer.weight.astype(np.float64))
    energy = np.einsum("oi,oi->o", weighed, codes)
    best = np.divide(aligned, energy, out=np.zeros_like(aligned), where=energy > 0)
    scales = np.maximum(best.astype(np.float32), _NOTHING)
    weight = codes.astype(np.float32) * scales[:, None]
    return dense(weight, corrected_bias(layer, weight)), data
