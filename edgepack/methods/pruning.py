"""Pruning: the weights, or the components of the weight, that the output misses most are kept.

Weights: without data the largest are kept (Han, Pool, Tran and Dally, NeurIPS 2015). With data those whose loss costs
most where others are kept as they are, w_ij² C_jj G_ii: optimal brain damage (LeCun, Denker and Solla, NeurIPS 1989)
with the curvature of one layer, its inputs' variances C_jj and, where gradients are known, those of its outputs G_ii.
Then those that are kept make up for those that are not, row by row: least squares on the outputs. As one weight makes
up for another, others are better kept then: hard thresholding pursuit (Foucart, SIAM Journal on Numerical Analysis 49,
2011) exchanges them by the saliency of a step down the loss, and fits again, as long as that loses less.

Components: of W = Σ σ_k u_k v_kᵀ those with the largest σ_k² (v_kᵀ C v_k)(u_kᵀ G u_k), a pair of thin matrices.

Sparse matrices in two bytes per number kept: its value in 8 bits, and the gap to the one before it.

Han, Mao and Dally, "Deep Compression" (ICLR 2016), section 2: positions are stored as differences along the flat,
row-major matrix; where a difference does not fit into the bits it has, a zero is stored in between. Here a difference
has 8 bits, so the entries are decoded by a running sum and a scatter. Values are stored in units of the largest of
their row: on one grid for all, rows of small numbers would lose most of their bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgepack.errors import UsageError
from edgepack.factorize.leastsquares import corrected_bias, input_variances, metric, with_corrected_bias
from edgepack.factorize.two_sided import checked_gradient
from edgepack.methods.budget import allowed_bytes, bytes_in_8_bits, most_floats
from edgepack.model.constexpr import Writer
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array

LARGEST_REFIT = 500_000_000_000
"""Σ over the rows of (weights kept)³, at most: above, those that are kept stay as they are."""
EXCHANGES = 4
"""At most. A random layer with correlated inputs, an eighth of it kept, loses 42 % of its output without, then 33, 31,
29 and 29 %."""
RIDGE = 1e-9
"""Of the mean variance of an input, added where its inputs depend on one another."""

LARGEST_GAP = 255
_CODES = 127


def pruning(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """The most salient weights, as many as fit into `share` of a byte per weight: about a half of that share.

    Args:
        layer: with moments, by what its output loses; without, the largest.
        share: of the weight's bytes in 8 bits, between 0 and 1.
        seed: without effect.
        gradient: (out, out), the second moment of the loss gradient at the output; None where it is not known.

    Raises:
        UsageError: the share is not between 0 and 1.
        DataError: the gradient does not fit the layer.
    """
    left = allowed_bytes(layer, share) - scale_bytes(layer.out_features) - OVERHEAD

    def chosen(found: Array) -> Array:
        return filled(most_that_fit(found, left))

    if not len(chosen(saliency(layer, gradient))):
        return f"{share:g} of its bytes do not hold one weight and the scales of its {layer.out_features} rows"
    return _stored(layer, chosen, gradient)


def pruned(layer: View, keep: int, *, gradient: Array | None = None) -> Replacement:
    """The layer with its `keep` most salient weights, refitted where it has moments.

    Raises:
        UsageError: `keep` is not a number of its weights.
        DataError: the gradient does not fit the layer.
    """
    if not 1 <= keep <= layer.weight.size:
        raise UsageError(f"{layer.name}: {keep} weights to keep of {layer.weight.size}")
    return _stored(layer, lambda found: np.sort(np.argsort(-found.reshape(-1), kind="stable")[:keep]), gradient)


def saliency(layer: View, gradient: Array | None = None) -> Array:
    """(out, in) float64: w_ij² C_jj G_ii; what is not known of C or G counts as 1."""
    return np.asarray(
        np.square(layer.weight.astype(np.float64)) * input_variances(layer) * _row_weights(gradient, layer)
    )


def refitted(weight: Array, kept: Array, covariance: Array) -> Array:
    """(out, in) float64: the weights that are kept, and make up best for the others.

    Row by row, with S the weights kept: w_S + C_SS⁻¹ C_S· (w − w_S), which never loses more than w_S.

    Args:
        weight: (out, in).
        kept: (out, in) bool.
        covariance: (in, in) of the inputs, symmetric and positive semidefinite.
    """
    from scipy.linalg import cho_factor, cho_solve
    from threadpoolctl import threadpool_limits

    found = np.where(kept, weight, 0.0).astype(np.float64)
    if float(np.power(kept.sum(axis=1, dtype=np.float64), 3).sum()) > LARGEST_REFIT:
        return found
    missed = np.where(kept, 0.0, weight) @ covariance
    ridge = RIDGE * float(np.trace(covariance)) / len(covariance)
    with threadpool_limits(1):  # of BLAS: on a busy machine threads wait longer for one another than a row takes
        for row, wanted, support in zip(found, missed, kept, strict=True):
            some = np.flatnonzero(support)
            if len(some):
                own = covariance[some[:, None], some]
                own[np.diag_indices(len(some))] += ridge
                row[some] += cho_solve(cho_factor(own, overwrite_a=True, check_finite=False), wanted[some])
    return found


def rank_pruning(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """The most salient components of the weight's SVD, as many as fit: a pair of rank share · out · in / (out + in).

    Args:
        layer: with moments, by what its output loses, and the outer factor is refitted; without, the largest.
        share: of the weight's bytes, between 0 and 1.
        seed: without effect.
        gradient: (out, out), the second moment of the loss gradient at the output; None where it is not known.

    Raises:
        UsageError: the share is not between 0 and 1.
        DataError: the gradient does not fit the layer.
    """
    rank = allowed_bytes(layer, share) // (layer.out_features + layer.in_features)
    if rank < 1:
        return f"{share:g} of its bytes do not hold factors of rank 1"
    return rank_pruned(layer, rank, gradient=gradient)


def rank_pruned(layer: View, rank: int, *, gradient: Array | None = None) -> Replacement:
    """The pair of the `rank` most salient components, or of all where there are fewer.

    With moments the outer factor is least squares on the outputs of the inner: A = W C Bᵀ (B C Bᵀ)⁻¹.
    """
    weight = layer.weight.astype(np.float64)
    left, sizes, right = np.linalg.svd(weight, full_matrices=False)
    covariance = metric(layer)
    salient = np.square(sizes)
    if covariance is not None:
        salient = salient * ((right @ covariance) * right).sum(axis=1)
    if gradient is not None:
        salient = salient * (left * (checked_gradient(layer, gradient) @ left)).sum(axis=0)
    best = np.sort(np.argsort(-salient, kind="stable")[:rank])
    roots = np.sqrt(sizes[best])
    A, B = left[:, best] * roots, roots[:, None] * right[best]
    if covariance is not None:
        seen = covariance @ B.T
        inner = B @ seen
        inner[np.diag_indices(len(inner))] += RIDGE * max(float(np.trace(inner)) / len(inner), 1e-30)
        A = A + np.linalg.solve(inner, ((weight - A @ B) @ seen).T).T
    A, B = A.astype(np.float32), B.astype(np.float32)
    return low_rank(A, B, corrected_bias(layer, A @ B))


def _row_weights(gradient: Array | None, layer: View) -> Array:
    """(out, 1): the diagonal of G; ones where it is not known."""
    known = np.ones(layer.out_features) if gradient is None else np.diag(checked_gradient(layer, gradient))
    return np.asarray(np.clip(known, 0.0, None)[:, None])


def _stored(layer: View, chosen: Callable[[Array], Array], gradient: Array | None) -> Replacement:
    """The layer with the weights at the flat, sorted positions that are chosen by saliency."""
    covariance = metric(layer)
    weight, positions = layer.weight, chosen(saliency(layer, gradient))
    if covariance is not None:
        weight, positions = _exchanged(layer.weight, positions, chosen, covariance, _row_weights(gradient, layer))
    w = Writer()
    return with_corrected_bias(layer, w.decoded(write(w, "kept", weight, positions), layer.bias))


def _exchanged(
    weight: Array, positions: Array, chosen: Callable[[Array], Array], covariance: Array, importance: Array
) -> tuple[Array, Array]:
    """Refitted weights (out, in) and their positions, which lose no more than those given.

    Args:
        weight: (out, in).
        positions: flat and sorted, of the weights to begin with.
        chosen: positions by saliency (out, in).
        covariance: (in, in) of the inputs.
        importance: (out, 1) ≥ 0, of the outputs.
    """

    def fitted(some: Array) -> tuple[Array, Array, float]:
        kept = np.zeros(weight.size, bool)
        kept[some] = True
        found = refitted(weight, kept.reshape(weight.shape), covariance)
        error = weight - found
        slope = error @ covariance
        return found, slope, float((importance * slope * error).sum())

    variances = np.diag(covariance)
    found, slope, lost = fitted(positions)
    for _ in range(EXCHANGES):
        step = np.divide(slope, variances, out=np.zeros_like(slope), where=variances > 0)
        others = chosen(np.square(found + step) * variances * importance)
        if np.array_equal(others, positions):
            break
        better, next_slope, less = fitted(others)
        if not less < lost:
            break
        found, slope, lost, positions = better, next_slope, less, others
    return found, positions


def entries_of(positions: Array) -> int:
    """How many entries are stored for these sorted positions, fillers included."""
    return len(positions) + int(_fillers(positions).sum())


def entry_bytes(entries: int) -> int:
    """Bytes of their values and gaps, in 8 bits."""
    return bytes_in_8_bits(entries) + entries


def scale_bytes(rows: int) -> int:
    """Bytes of one scale per row, in 8 bits."""
    return bytes_in_8_bits(rows, 1)


def filled(positions: Array) -> Array:
    """Sorted positions, and those in between that are stored anyway: a number kept there costs nothing."""
    return np.cumsum(_gaps(positions)) - 1


def most_that_fit(saliency: Array, left: int) -> Array:
    """Flat, sorted positions of the most salient numbers, as many as can be stored in `left` bytes, scales apart.

    One position more never takes fewer entries: it adds one, and spares one filler at most. So the number is found by
    bisection.
    """
    flat, most = saliency.reshape(-1), most_floats(left, beside=1)
    order = np.argsort(-flat, kind="stable")
    low, high = 0, min(len(flat), most)
    while low < high:
        count = (low + high + 1) // 2
        if entries_of(np.sort(order[:count])) <= most:
            low = count
        else:
            high = count - 1
    return np.sort(order[:low])


def row_scales(peaks: Array) -> Array:
    """(rows, 1) float32, each at least the row's peak, on the grid that they will be stored on: rounding keeps them."""
    unit = np.float32(peaks.max(initial=0.0)) / np.float32(_CODES)
    if not unit > np.finfo(np.float32).tiny:
        return np.ones((len(peaks), 1), np.float32)
    codes = np.clip(np.ceil(peaks / unit), 1, _CODES).astype(np.float32)
    return np.asarray(codes * unit)[:, None]


def write(w: Writer, name: str, matrix: Array, positions: Array, *, scaled: bool = True) -> str:
    """Stores the numbers of a matrix at some positions: a step that gives the matrix, and zeros elsewhere.

    Args:
        w: is written to; the constants are called `{name}.values`, `{name}.gaps` and, if scaled, `{name}.rows`.
        name: what the constants are called by.
        matrix: (rows, columns).
        positions: flat, sorted, at least one.
        scaled: whether values are stored in units of a scale per row; for rows of one peak they need none.
    """
    rows, columns = matrix.shape
    values = np.zeros(matrix.size, np.float32)
    values[positions] = matrix.reshape(-1)[positions]
    scales = row_scales(np.abs(values.reshape(rows, columns)).max(axis=1)) if scaled else np.ones((1, 1), np.float32)
    gaps = _gaps(positions)
    entries = (values.reshape(rows, columns) / scales).reshape(-1)[np.cumsum(gaps) - 1]
    steps = w.step("cast", w.constant(f"{name}.gaps", gaps.astype(np.uint8)), to="int32")
    one = w.constant(f"{name}.one", np.ones(1, np.int32))
    places = w.step("sub", w.step("cumsum", steps), one)
    flat = w.step("scatter", places, w.constant(f"{name}.values", entries), size=matrix.size)
    found = w.step("reshape", flat, shape=(rows, columns))
    return w.step("mul", found, w.constant(f"{name}.rows", scales)) if scaled else found


OVERHEAD = 4
"""Bytes of the constant 1 that positions are counted from."""


def _fillers(positions: Array) -> Array:
    """How many zeros are stored before each position."""
    return np.asarray((np.diff(positions, prepend=-1) - 1) // LARGEST_GAP)


def _gaps(positions: Array) -> Array:
    """Of every entry, fillers included: whole numbers from 1 to 255."""
    fillers = _fillers(positions)
    gaps = np.full(len(positions) + int(fillers.sum()), LARGEST_GAP)
    gaps[np.arange(len(positions)) + np.cumsum(fillers)] = np.diff(positions, prepend=-1) - LARGEST_GAP * fillers
    return gaps
