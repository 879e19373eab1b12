"""Input projection: the input is cut into blocks, and one small matrix P shortens each of them.

y = A vec(P x_1, …, P x_{n/b}) with P (k, b), A (m, k n/b): the weight is W ≈ A (I ⊗ P), and takes about k / b of its
numbers. The input compression of Google's matrix compression operator, where P is random and stays; here it is fitted.
"""

from __future__ import annotations

import math

import numpy as np

from edgepack.factorize.leastsquares import conjugate_gradients, corrected_bias, left_factor, metric, through
from edgepack.methods.budget import bytes_in_8_bits, too_small
from edgepack.model.constexpr import Writer, X
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.quantize.gptq import output_energy

BLOCKS = (8, 128)
"""Inputs of a block, at least and at most."""

PADDED_BLOCK = 32
"""Where no width in between divides the layer's inputs: zeros follow the last one."""

ROUNDS = 2
STEPS = 6
"""Of conjugate gradients, for P in each round of the fit with data."""


def input_projection(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """Reshape, one product with P, reshape, one product with A: nothing is decoded.

    Of the block widths that divide the inputs the one is taken that loses least. Without data P holds the leading
    eigenvectors of Σ_j W_jᵀ W_j over W's blocks of columns, which is optimal; with data it starts there, or from their
    counterpart in the metric of the mean block, and alternates with A, which is always that of least squares.

    Args:
        layer: whose W becomes A (I ⊗ P).
        share: of out · in bytes, for A and P in 8 bits with their scales.
        seed, gradient: not used.
    """
    budget = int(share * layer.weight.size)
    covariance = metric(layer)
    best: tuple[float, Array, Array] | None = None
    for block in widths(layer.in_features):
        kept = _kept(layer, block, budget)
        if kept > 0:
            left, small = _fit(_padded(layer.weight, block), block, kept, _padded_metric(covariance, block))
            loss = output_energy(layer.weight - effective(left, small, layer.in_features), covariance)
            if best is None or loss < best[0]:
                best = loss, left, small
    if best is None:
        least = min(_bytes(layer, block, 1) for block in widths(layer.in_features))
        return too_small(share, least / layer.weight.size)
    return _written(layer, np.asarray(best[1], np.float32), np.asarray(best[2], np.float32))


def widths(features: int) -> list[int]:
    """Block widths that are tried: divisors of the number of inputs within `BLOCKS`, two blocks at least.

    Of two that differ by less than a factor of 1.5, the larger: it has the finer choice of k.
    """
    low, high = BLOCKS
    found: list[int] = []
    for width in range(min(high, features // 2), low - 1, -1):
        if features % width == 0 and (not found or width * 1.5 <= found[-1]):
            found.append(width)
    return found or [min(PADDED_BLOCK, features)]


def effective(left: Array, small: Array, features: int) -> Array:
    """A (I ⊗ P): (out, features)."""
    kept, _ = small.shape
    return (left.reshape(len(left), -1, kept) @ small).reshape(len(left), -1)[:, :features]


def _bytes(layer: View, block: int, kept: int) -> int:
    blocks = math.ceil(layer.in_features / block)
    return bytes_in_8_bits(layer.out_features, blocks * kept) + bytes_in_8_bits(kept, block)


def _kept(layer: View, block: int, budget: int) -> int:
    """The largest k < b that the bytes allow."""
    return next((kept for kept in range(block - 1, 0, -1) if _bytes(layer, block, kept) <= budget), 0)


def _fit(weight: Array, block: int, kept: int, covariance: Array | None) -> tuple[Array, Array]:
    """A and P, float64, for a weight whose columns are whole blocks."""
    small = _leading(weight, block, kept)
    left = left_factor(weight, _repeated(small, weight.shape[1]), covariance)
    if covariance is None:
        return left, small
    other = _leading(weight, block, kept, _mean_block(covariance, block))
    other_left = left_factor(weight, _repeated(other, weight.shape[1]), covariance)

    def loss(a: Array, p: Array) -> float:
        return output_energy(weight - effective(a, p, weight.shape[1]), covariance)

    if loss(other_left, other) < loss(left, small):
        left, small = other_left, other
    for _ in range(ROUNDS):
        small = _orthonormal_rows(_improved(weight, left, small, covariance))
        left = left_factor(weight, _repeated(small, weight.shape[1]), covariance)
    return left, small


def _leading(weight: Array, block: int, kept: int, mean_block: Array | None = None) -> Array:
    """P (k, b), orthonormal rows, of the leading eigenvectors of Σ_j W_jᵀ W_j, seen through the root of a block's C."""
    rows = weight.astype(np.float64).reshape(-1, block)
    gram = rows.T @ rows
    if mean_block is None:
        return np.ascontiguousarray(np.linalg.eigh(gram)[1][:, ::-1][:, :kept].T)
    values, vectors = np.linalg.eigh(mean_block)
    root = np.sqrt(np.clip(values, 1e-9 * values[-1], None))
    inner = np.linalg.eigh((vectors * root).T @ gram @ (vectors * root))[1][:, ::-1][:, :kept]
    return _orthonormal_rows((vectors @ (inner / root[:, None])).T)


def _improved(weight: Array, left: Array, small: Array, covariance: Array) -> Array:
    """A few conjugate gradients for P with A held: the loss never rises."""
    kept, block = small.shape
    features = weight.shape[1]
    flat = np.ascontiguousarray(left.reshape(len(left), -1, kept)).reshape(-1, kept)

    def back(matrix: Array) -> Array:
        """Σ_j A_jᵀ M_j."""
        return flat.T @ matrix.reshape(-1, block)

    def bend(direction: Array) -> Array:
        return back(through(effective(left, direction, features), covariance))

    return conjugate_gradients(bend, back(through(weight, covariance)), small, STEPS)


def _repeated(small: Array, features: int) -> Array:
    """I ⊗ P: (k n/b, n)."""
    return np.kron(np.eye(features // small.shape[1]), small)


def _orthonormal_rows(small: Array) -> Array:
    return np.ascontiguousarray(np.linalg.qr(small.T)[0].T)


def _mean_block(covariance: Array, block: int) -> Array:
    blocks = len(covariance) // block
    return np.asarray(np.einsum("iaib->ab", covariance.reshape(blocks, block, blocks, block)) / blocks)


def _padded(weight: Array, block: int) -> Array:
    return np.pad(weight, ((0, 0), (0, -weight.shape[1] % block)))


def _padded_metric(covariance: Array | None, block: int) -> Array | None:
    if covariance is None:
        return None
    return np.pad(covariance, (0, -len(covariance) % block))


def _written(layer: View, left: Array, small: Array) -> Replacement:
    block = small.shape[1]
    features = layer.in_features
    writer = Writer()
    x = writer.step("pad", X, before=0, after=-features % block) if features % block else X
    blocks = writer.step("reshape", x, shape=(-1, block))
    projection = writer.step("transpose", writer.constant("projection", small), perm=(1, 0))
    short = writer.step("reshape", writer.step("matmul", blocks, projection), shape=(-1, left.shape[1]))
    writer.step("matmul", short, writer.step("transpose", writer.constant("left", left), perm=(1, 0)))
    return writer.direct(features, corrected_bias(layer, effective(left, small, features)))
