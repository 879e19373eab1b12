"""CP: a convolution's kernel as a sum of products of one vector per side, W[o, c, p] ≈ Σ_r A[o, r] K[r, p] B[r, c].

Written as three convolutions: 1×1 to r channels, the kernel over each of these by itself, and 1×1. The places of a
kernel are one side, for there are few of them: along each axis by itself the fit is worse, and there is one operator
more (Astrid and Lee, "CP-decomposition with Tensor Power Method for Convolutional Neural Networks Compression", BigComp
2017; with a side for every axis: Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned
CP-Decomposition", ICLR 2015).

Least squares in one factor given the others, in turns: A exactly, B and K by a few conjugate gradients. A best
approximation need not exist (De Silva and Lim, "Tensor rank and the ill-posedness of the best low-rank approximation
problem", SIAM J. Matrix Anal. Appl. 30(3), 2008): components then grow against each other without end, so that the
squares of all factors are part of what is least.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import numpy as np

from edgepack.factorize.first_stage import FLOOR, strips
from edgepack.factorize.leastsquares import conjugate_gradients, corrected_bias, metric, through
from edgepack.factorize.two_sided import damped
from edgepack.methods.budget import too_small
from edgepack.model.kinds.stages import CP, composed
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.structure import RANK_TILE, Structure
from edgepack.model.types import Array
from edgepack.quantize.gptq import output_energy

SWEEPS, STEPS = 40, 4
"""Of all three factors in turns, at most; of conjugate gradients for B and for K in each."""
SETTLED = 1e-3
"""Share of what is lost that a sweep has to gain, or it is the last."""
RIDGE = 1e-5
"""On the squares of the factors, of which all components carry alike, for a layer of output energy 1."""
TINY = float(np.finfo(np.float64).tiny)


def cp(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """Three convolutions in the place of one, of which the middle one takes every channel by itself.

    Args:
        layer: with its kernel; where its moments are known, what is lost is of its outputs.
        share: of out · in · places numbers, for those of A, K and B; as many whole tiles of channels as fit.
        seed: not used: the fit starts from the kernel's own singular vectors.
        gradient: G, (out, out), by which errors of outputs are weighed.
    """
    places = prod(layer.kernel)
    if places == 1:
        return "there is no kernel of several places to take apart"
    numbers = layer.out_features + places + layer.in_features // places
    rank = int(share * layer.weight.size / numbers + 1e-9)
    if rank < 1:
        return too_small(share, numbers / layer.weight.size)
    rank = rank // RANK_TILE * RANK_TILE or rank
    covariance, target = metric(layer), layer.weight.astype(np.float64)
    root = None if gradient is None else np.linalg.cholesky(damped(layer, gradient)).T
    A, K, B = fit(target if root is None else root @ target, places, covariance, rank)
    if root is not None:
        A = np.linalg.solve(root, A)
    A, K, B = _of_one_variance(A, K, B, covariance)
    tensors = {"B": B, "core": K, "A": A}
    part = Replacement(Structure(CP, (rank,)), {role: one.astype(np.float32) for role, one in tensors.items()})
    return Replacement(part.structure, part.tensors, corrected_bias(layer, composed(part)))


def fit(target: Array, places: int, covariance: Array | None, rank: int) -> tuple[Array, Array, Array]:
    """A (out, r), K (r, places) and B (r, in) float64 with little tr((W − M) C (W − M)ᵀ).

    Args:
        target: W, (out, in · places) float64.
        places: of the kernel.
        covariance: C of the patches; None for the identity.
        rank: r, which may be more than `out` or `in`.
    """
    spread = 1.0 if covariance is None else max(float(np.trace(covariance)) / len(covariance), TINY)
    alike = None if covariance is None else covariance / spread
    size = np.sqrt(max(output_energy(target, alike), TINY))
    weight = target / size
    seen, lost = through(weight, alike), np.inf
    A, K, B = _balanced(*_start(weight, places, alike, rank))
    for _ in range(SWEEPS):
        gram, right = A.T @ A, A.T @ seen
        K = _improved(K, partial(_rows, B=B), partial(_places, B=B), (gram, right, alike))
        B = _improved(B, partial(_rows, K), partial(_channels, K=K), (gram, right, alike))
        rows = _rows(K, B)
        answers = through(rows, alike)
        A = np.linalg.solve(answers @ rows.T + RIDGE * np.eye(rank), answers @ weight.T).T
        A, K, B = _balanced(A, K, B)
        before, lost = lost, output_energy(weight - A @ _rows(K, B), alike)
        if before - lost < SETTLED * lost:
            break
    return A * size, K, B


def _start(weight: Array, places: int, covariance: Array | None, rank: int) -> tuple[Array, Array, Array]:
    """The strongest r singular vectors of the kernel seen along each of its principal directions among the places, of
    channels as they vary on the mean. All of them together are the kernel."""
    outputs, channels = len(weight), weight.shape[1] // places
    sides = weight.reshape(outputs * channels, places)
    directions = np.linalg.svd(sides, full_matrices=False)[2]
    root = np.eye(channels)
    if covariance is not None:
        values, vectors = np.linalg.eigh(strips(covariance, (places,), slice(0)))
        root = vectors * np.sqrt(np.clip(values, FLOOR * max(float(values[-1]), TINY), None))
    found = []
    for direction in directions:
        left, sizes, right = np.linalg.svd((sides @ direction).reshape(outputs, channels) @ root, full_matrices=False)
        back = np.linalg.solve(root.T, right.T).T
        found += [(size, left[:, at] * size, direction, back[at]) for at, size in enumerate(sizes)]
    found.sort(key=lambda one: -one[0])
    A, K, B = (np.stack([one[side] for one in found[:rank]]) for side in (1, 2, 3))
    return A.T, K, B


def _rows(K: Array, B: Array) -> Array:
    """(r, in · places): what the first two convolutions come to."""
    return np.asarray((B[:, :, None] * K[:, None, :]).reshape(len(B), -1))


def _places(rows: Array, B: Array) -> Array:
    """The transpose of `_rows` in K."""
    return np.asarray(np.einsum("rcp,rc->rp", rows.reshape(*B.shape, -1), B))


def _channels(rows: Array, K: Array) -> Array:
    """The transpose of `_rows` in B."""
    return np.asarray(np.einsum("rcp,rp->rc", rows.reshape(len(K), -1, K.shape[1]), K))


def _improved(
    factor: Array,
    forth: Callable[[Array], Array],
    back: Callable[[Array], Array],
    given: tuple[Array, Array, Array | None],
) -> Array:
    """A few conjugate gradients for one factor: what is least never rises.

    Args:
        factor: K or B.
        forth: `_rows` in it.
        back: the transpose of that.
        given: Aᵀ A, Aᵀ W C, and C.
    """
    gram, right, covariance = given

    def bend(direction: Array) -> Array:
        return back(gram @ through(forth(direction), covariance)) + RIDGE * direction

    return conjugate_gradients(bend, back(right), factor, STEPS)


def _of_one_variance(A: Array, K: Array, B: Array, covariance: Array | None) -> tuple[Array, Array, Array]:
    """The same sum, in which every channel between two convolutions varies alike: one integer grid has all of them."""
    rows = _rows(K, B)
    channels = B if covariance is None else B @ strips(covariance, K.shape[1:], slice(0))
    inner = np.sqrt(np.maximum(np.einsum("rc,rc->r", channels, B), 0.0))
    outer = np.sqrt(np.maximum(np.einsum("ri,ri->r", through(rows, covariance), rows), 0.0))
    inner, outer = (np.maximum(one, max(FLOOR * float(one.max()), TINY)) for one in (inner, outer))
    return A * outer, K * (inner / outer)[:, None], B / inner[:, None]


def _balanced(A: Array, K: Array, B: Array) -> tuple[Array, Array, Array]:
    """The same sum, every component with vectors of one length, for which the sum of their squares is least."""
    sizes = np.stack([np.linalg.norm(A, axis=0), np.linalg.norm(K, axis=1), np.linalg.norm(B, axis=1)])
    a, k, b = np.cbrt(sizes.prod(axis=0)) / np.maximum(sizes, TINY)
    return A * a, K * k[:, None], B * b[:, None]
