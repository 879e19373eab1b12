"""Convolutions that take a kernel apart: the first of them, and what stands behind it.

The first stage gives z = B s for every strip s of a patch x: all places of the axes that it takes, at one place of the
others. So z = T x for a whole patch, and the best that can stand behind it is least squares from z to the layer's
answers: M = W C Tᵀ (T C Tᵀ)⁻¹, which loses tr(G (W − M T) C Wᵀ), C being the covariance of the patches. Both are exact.
M is a layer again, with z for its input: as it is (spatial SVD, input SVD), or with low-rank factors in its place
(Tucker-2; De Lathauwer, De Moor and Vandewalle, "On the best rank-1 and rank-(R1, …, RN) approximation of higher-order
tensors", SIAM J. Matrix Anal. Appl. 21(4), 2000; Kim et al., "Compression of Deep Convolutional Neural Networks for
Fast and Low Power Mobile Applications", ICLR 2016).

B itself comes from the unfolded kernel, whitened by the mean covariance of the strips of a patch, as if errors at
different places did not add up (without the data: Jaderberg, Vedaldi and Zisserman, "Speeding up Convolutional Neural
Networks with Low Rank Expansions", BMVC 2014). For Tucker-2 the unfolded kernel is projected on the outputs' side
first, and the two sides take turns (HOOI).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.layer import View
from edgepack.model.types import Array, Moments
from edgepack.quantize.rotation import LATENT_DEVIATIONS, latent_span, rotation

RIDGE = 1e-7
"""Of the mean variance of z: components that never vary leave M open there."""
FLOOR = 1e-3
"""Of the largest singular value: smaller ones are not made alike."""
TINY = float(np.finfo(np.float64).tiny)
SWEEPS = 2
"""Of the two sides of Tucker-2 in turns. Nothing was seen to change behind the second."""


@dataclass(frozen=True)
class Patches:
    """The input of a convolution.

    Attributes:
        covariance: (in, in) float64 C; the identity where nothing is known.
        mean: (in,) float64, zeros where nothing is known.
        count: of patches that they were made from, 0 where nothing is known.
    """

    covariance: Array
    mean: Array
    count: int


def patches_of(moments: Moments | None, features: int) -> Patches:
    """What is known of a convolution's patches, its covariance shrunk for what their number tells."""
    if moments is None:
        return Patches(np.eye(features), np.zeros(features), 0)
    return Patches(shrunk_covariance(moments), moments.mean, moments.count)


@dataclass(frozen=True)
class Behind:
    """What stands behind a first stage.

    Attributes:
        view: M (out, r · places left) float32 as a layer: its bias makes up for the mean.
        moments: of z.
        lost: (out, out) float64, (W − M T) C (W − M T)ᵀ: what no M can make up for.
    """

    view: View
    moments: Moments
    lost: Array


def first_stage(
    weight: Array, kernel: tuple[int, ...], axes: slice, rank: int, patches: Patches, *, seed: int
) -> Array:
    """B (rank, in · places that it takes) float32, in a basis in which all components carry alike.

    Args:
        weight: (n, in · places) of the unfolded kernel, any projection of its outputs, errors in which count alike.
        kernel: its sizes.
        axes: leading ones, that the first stage takes.
        rank: at most the sides of the unfolded matrix.
        patches: of the layer's input.
        seed: of the rotation.
    """
    from scipy.linalg import eigh

    seen = strips(patches.covariance, kernel, axes)
    size = len(seen)
    unfolded = weight.astype(np.float64).reshape(len(weight), size, -1).swapaxes(1, 2).reshape(-1, size)
    gram = unfolded.T @ unfolded
    values, vectors = eigh(seen, check_finite=False)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    energies, directions = eigh(root.T @ gram @ root, check_finite=False, subset_by_index=(size - rank, size - 1))
    # Uᵀ of the unfolded kernel comes to Vᵀ rootᵀ gram / σ; another σ^½ and a rotation make its rows alike.
    sigma = np.sqrt(np.clip(energies, FLOOR**2 * max(float(energies[-1]), TINY), None))
    rows = (directions.T @ (root.T @ gram)) / (sigma**1.5)[:, None]
    return np.asarray(rotation(rank, 0, seed).T @ rows, np.float32)


def tucker_first_stage(
    layer: View,
    ranks: tuple[int, int],
    patches: Patches,
    outputs: Array,
    refine: Callable[[View, Moments], Array],
    *,
    seed: int,
) -> Array:
    """B of Tucker-2: (r₁, in) float32. Both sides take turns, each given the other.

    Args:
        layer: with its kernel.
        ranks: r₁ of the inputs, r₂ of the outputs.
        patches: of its input.
        outputs: (out, r₂) on which answers are projected at first, so that errors in all components count alike.
        refine: the same for a layer behind a first stage, and the moments of its input.
        seed: of the rotation.
    """
    none = slice(0)

    def projected(on: Array) -> Array:
        kept = on[:, : ranks[1]].T @ layer.weight
        return first_stage(kept, layer.kernel, none, ranks[0], patches, seed=seed)

    B = projected(outputs)
    for _ in range(SWEEPS):
        rest = behind(layer, patches, B, none)
        B = projected(refine(rest.view, rest.moments))
    return B


def strips(covariance: Array, kernel: tuple[int, ...], axes: slice) -> Array:
    """Mean covariance of the strips of a patch: (in · places taken, in · places taken)."""
    places = prod(kernel[len(kernel[axes]) :])
    size = len(covariance) // places
    return np.asarray(np.einsum("apbp->ab", covariance.reshape(size, places, size, places)) / places)


def behind(layer: View, patches: Patches, B: Array, axes: slice) -> Behind:
    """The best layer behind a first stage as it is stored: it may lie on a grid.

    Args:
        layer: W (out, in · places), with its kernel.
        patches: of its input.
        B: (r, in · places taken).
        axes: leading ones, that it takes.
    """
    from scipy.linalg import solve

    weight = layer.weight.astype(np.float64)
    seen = _through(B, patches.covariance)
    inner = _through(B, seen.T)
    inner = (inner + inner.T) / 2
    answers = seen @ weight.T
    damped = inner.copy()
    damped[np.diag_indices(len(inner))] += RIDGE * max(float(np.trace(inner)), TINY) / len(inner)
    left = solve(damped, answers, assume_a="pos", check_finite=False).T
    lost = weight @ patches.covariance @ weight.T - left @ answers
    given = _through(B, patches.mean[:, None])[:, 0]
    view = replace(
        layer,
        weight=left.astype(np.float32),
        bias=layer.bias if not patches.count else _moved(layer.bias, weight @ patches.mean - left @ given),
        moments=None,
        kernel=layer.kernel[len(layer.kernel[axes]) :],
    )
    return Behind(view, _moments(inner, given, patches.count), (lost + lost.T) / 2)


def _through(B: Array, values: Array) -> Array:
    """T V of values (in · places, n): every strip of a patch through the first stage."""
    size = B.shape[1]
    stripped = np.tensordot(B.astype(np.float64), values.reshape(size, -1, values.shape[1]), 1)
    return stripped.reshape(-1, values.shape[1])


def _moved(bias: Array | None, by: Array) -> Array:
    return np.asarray(by if bias is None else bias + by, np.float32)


def _moments(covariance: Array, mean: Array, count: int) -> Moments:
    """Of z, its range as it is expected of normal numbers; shrunk as that of the patches is already."""
    variance = np.diag(covariance)
    reach = LATENT_DEVIATIONS * np.sqrt(variance)
    low, high = min(float((mean - reach).min()), 0.0), max(float((mean + reach).max()), 0.0)
    second = covariance + np.outer(mean, mean)
    return Moments(count, mean, second, low, high, latent_span(mean, variance, "dynamic"), 0.0)
