"""Zonal cosine transform: W ≈ C_k D_k, where D_k holds the first k two-dimensional cosine waves in zig-zag order.

Every row of W is looked at as an image, which is what the rows of a first layer on images are; low frequencies carry
most of a smooth image. D_k is the same for all rows, so that the layer is two thin products, the first with a fixed
basis. Source of basis and order: Wallace, "The JPEG Still Picture Compression Standard", 1991, without its 8×8 blocks.
"""

from __future__ import annotations

import numpy as np

from edgepack.factorize.leastsquares import corrected_bias, left_factor, metric
from edgepack.methods.budget import pair_rank, too_small
from edgepack.methods.mosaic import image_sides
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array


def dct(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """A = C_k (out, k), B = D_k (k, in): with data C_k = W C D_kᵀ (D_k C D_kᵀ)⁻¹, without W D_kᵀ.

    Args:
        layer: its rows become images of `edgepack.methods.mosaic.image_sides(in)`.
        share: of out · in numbers that the two factors may take; k = ⌊share · out · in / (out + in)⌋.
        seed, gradient: not used.
    """
    rank = pair_rank(share, *layer.weight.shape)
    if rank < 1:
        return too_small(share, sum(layer.weight.shape) / layer.weight.size)
    right = waves(*image_sides(layer.in_features), rank)
    left = np.asarray(left_factor(layer.weight, right, metric(layer)), np.float32)
    right = right.astype(np.float32)
    return low_rank(left, right, corrected_bias(layer, left @ right))


def waves(height: int, width: int, count: int) -> Array:
    """(count, height · width) float64, orthonormal rows: the first waves of the 2-D DCT-II in zig-zag order."""
    down, across = _cosines(height), _cosines(width)
    order = zigzag(height, width)[:count]
    return (down[order[:, 0], :, None] * across[order[:, 1], None, :]).reshape(len(order), -1)


def zigzag(height: int, width: int) -> Array:
    """(height · width, 2) int: (vertical, horizontal) frequencies along the antidiagonals, turning at each end.

    As in JPEG: (0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), …
    """
    down, across = (index.ravel() for index in np.indices((height, width)))
    diagonal = down + across
    turn = np.where(diagonal % 2 == 1, down, across)
    order = np.lexsort((turn, diagonal))
    return np.stack([down[order], across[order]], axis=1)


def _cosines(size: int) -> Array:
    """(size, size) float64, orthonormal: row u is the DCT-II wave of frequency u."""
    frequency = np.arange(size)[:, None]
    rows = np.sqrt(2 / size) * np.cos(np.pi * (2 * np.arange(size) + 1) * frequency / (2 * size))
    rows[0] = np.sqrt(1 / size)
    return np.asarray(rows)
