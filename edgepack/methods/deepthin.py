"""DeepThin: a weight whose numbers are those of a low-rank matrix of *another* shape, read on across its rows.

W_aux = X_f W_f with X_f (p, r), W_f (r, q), p = ⌈mn / q⌉ and gcd(q, n) = 1; row j of W (m, n) is
W_aux.flat[j n : (j + 1) n]. As q does not divide into n, the repeats of W_f fall on another column in every row, and W
has full rank although it takes r (p + q) numbers only: r may be as small as 1, far below what a pair can do.

Source: Sotoudeh and Baghsorkhi, "DeepThin: A Self-Compressing Library for Deep Neural Networks", 2018 (its W is
written column by column, for x W; here (out, in), row by row). Covered by US patent 11429849: see to a licence before
you ship it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edgepack.factorize.leastsquares import conjugate_gradients, corrected_bias, metric, through
from edgepack.methods.budget import bytes_in_8_bits, too_small
from edgepack.model.constexpr import Writer, X
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.quantize.gptq import output_energy

ROUNDS = 3
STEPS = 8
"""Of conjugate gradients, for each factor in each round of the fit with data."""


@dataclass(frozen=True)
class Shape:
    """X_f (p, r) and W_f (r, q) for a weight of (out, in)."""

    out_features: int
    in_features: int
    rank: int
    width: int

    @property
    def length(self) -> int:
        """p = ⌈out · in / q⌉."""
        return -(-self.out_features * self.in_features // self.width)

    @property
    def taps(self) -> int:
        """K: how many rows of W_aux one row of W can touch."""
        return (self.in_features + self.width - 2) // self.width + 1

    @property
    def stored_bytes(self) -> int:
        """With X_f stored transposed and both in 8 bits."""
        return bytes_in_8_bits(self.rank, self.length) + bytes_in_8_bits(self.rank, self.width)

    @property
    def macs(self) -> int:
        """Of the decode-free form, for one row of inputs: r filters of length q, then m K r products."""
        return self.rank * self.taps * (self.width**2 + self.out_features)


_NUMBERS = {"n": 4, "q": 4, "last": 4}
"""Bytes of the whole numbers from which the decode-free form works out its indices."""


def deepthin(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """The layer decoded at load: W_aux = X_f W_f, cut and reshaped, then one dense product.

    Saves bytes of the file; memory and time stay those of the dense layer. Of the ranks r = 1, 2, 3, 4, 6, 8,
    12, … and the largest that the bytes allow, the one is taken whose truncated SVD of the re-laid W loses least; with
    data the factors are then improved in the metric of the inputs.

    Args:
        layer: whose W is fitted.
        share: of out · in bytes, for both factors in 8 bits with their scales.
        seed, gradient: not used.
    """
    budget = int(share * layer.weight.size)
    found = _fitted(layer, list(shapes(layer.out_features, layer.in_features, budget)))
    return _too_few(layer, share) if found is None else written(*found, layer)


def deepthin_conv(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """The layer without decoding: T = r filters over the padded input, then y_j = Σ_{k,s} X_f[⌊jn/q⌋ + k, s] T[…, s].

    Exactly `deepthin`'s function of its factors. Only ranks whose multiplications are no more than the dense layer's
    are looked at, or rank 1 where none is: they grow with r².

    Args:
        layer: whose W is fitted.
        share: of out · in bytes, for both factors in 8 bits with their scales and three whole numbers.
        seed, gradient: not used.
    """
    budget = int(share * layer.weight.size) - sum(_NUMBERS.values())
    some = list(shapes(layer.out_features, layer.in_features, budget))
    found = _fitted(layer, [shape for shape in some if shape.macs <= layer.weight.size] or some[:1])
    return _too_few(layer, share) if found is None else written_as_conv(*found, layer)


def initial(
    out_features: int, in_features: int, share: float, seed: int, *, rank: int | None = None, gain: float = 1.0
) -> tuple[Array, Array] | str:
    """X_f (p, r) and W_f (r, q), float32, drawn so that training starts with activations of unit scale.

    Numbers of W are sums of r products, so that normal factors of variance (gain / (in r))^½ each give it the variance
    gain / in. The bias starts at zero.

    Args:
        out_features, in_features: of the layer.
        share: as for `deepthin`.
        seed: of the draw.
        rank: r; by default the largest of 1, 2, 3, 4, 6, … whose decode-free form multiplies no more than the dense
            layer.
        gain: 2 before a ReLU.
    """
    budget = int(share * out_features * in_features) - sum(_NUMBERS.values())
    if rank is None:
        some = list(shapes(out_features, in_features, budget))
        cheap = [shape for shape in some if shape.macs <= out_features * in_features] or some[:1]
        shape = cheap[-1] if cheap else None
    else:
        shape = fitting(out_features, in_features, rank, budget)
    if shape is None:
        return too_small(share, 2 * (rank or 1) / math.sqrt(out_features * in_features))
    random = np.random.default_rng(seed)
    deviation = (gain / (in_features * shape.rank)) ** 0.25
    rows = deviation * random.standard_normal((shape.length, shape.rank))
    filters = deviation * random.standard_normal((shape.rank, shape.width))
    return rows.astype(np.float32), filters.astype(np.float32)


def ideal_width(ratio: float, rank: int, out_features: int, in_features: int) -> int | None:
    """q: the whole number coprime to n nearest to [α mn − √((α mn)² − 4 r² mn)] / (2 r), the smaller one of two.

    None where α is below α_min = 2 r / √(mn).

    Args:
        ratio: α = r (p + q) / (mn).
        rank: r.
        out_features, in_features: m, n.
    """
    size = out_features * in_features
    inside = (ratio * size) ** 2 - 4 * rank**2 * size
    if inside < 0:
        return None
    # The same root without the difference of two close numbers.
    root = 2 * rank * size / (ratio * size + math.sqrt(inside))
    near = max(round(root), 1)
    around = sorted(range(max(near - 64, 1), near + 65), key=lambda q: (abs(q - root), q))
    return next(q for q in around if math.gcd(q, in_features) == 1)


def fitting(out_features: int, in_features: int, rank: int, budget: int) -> Shape | None:
    """The shape of this rank that takes most of `budget` bytes: q is the ideal one, or the next that fits."""
    size = out_features * in_features
    ideal = ideal_width(budget / size, rank, out_features, in_features) if budget > 0 else None
    if ideal is None:
        return None
    for width in range(ideal, math.isqrt(size) + 2):
        shape = Shape(out_features, in_features, rank, width)
        if math.gcd(width, in_features) == 1 and shape.stored_bytes <= budget:
            return shape
    return None


def shapes(out_features: int, in_features: int, budget: int) -> Iterator[Shape]:
    """Those of rank 1, 2, 3, 4, 6, 8, 12, … and of the largest rank there is, in this order."""
    largest = int(max(budget, 0) / (2 * math.sqrt(out_features * in_features)))
    while largest > 0 and fitting(out_features, in_features, largest, budget) is None:
        largest -= 1
    ladder = {step << i for i in range(largest.bit_length()) for step in (1, 3) if step << i < largest}
    for rank in sorted(ladder | {largest}) if largest > 0 else ():
        shape = fitting(out_features, in_features, rank, budget)
        if shape is not None:
            yield shape


def laid(rows: Array, filters: Array, sides: tuple[int, ...]) -> Array:
    """W (m, n) of X_f (p, r) and W_f (r, q)."""
    return (rows @ filters).reshape(-1)[: sides[0] * sides[1]].reshape(sides)


def relaid(weight: Array, width: int) -> Array:
    """(p, q): the numbers of W (m, n) as those of W_aux, zeros after the last."""
    flat = weight.reshape(-1)
    return np.pad(flat, (0, -len(flat) % width)).reshape(-1, width)


def written(rows: Array, filters: Array, layer: View) -> Replacement:
    """The decoded form of X_f (p, r) and W_f (r, q); the bias is corrected for W − their W."""
    writer = Writer()
    auxiliary = writer.step("matmul", _rows(writer, rows), _filters(writer, filters))
    flat = writer.step("head", auxiliary, count=layer.weight.size)
    weight = writer.step("reshape", flat, shape=layer.weight.shape)
    return writer.decoded(weight, corrected_bias(layer, laid(rows, filters, layer.weight.shape)))


def written_as_conv(rows: Array, filters: Array, layer: View) -> Replacement:
    """The decode-free form of the same; the bias is corrected for W − their W.

    Row a of W_aux covers the flat positions a q … a q + q − 1, so that it adds Σ_s X_f[a, s] T_σ[s] to y_j, where
    T_σ[s] = Σ_u W_f[s, u] x[σ + u] and σ = a q − j n; x is zero outside 0 … n − 1. With a = ⌊jn/q⌋ + k,
    σ = k q − (jn mod q). Enough zeros follow x that every k < K stays inside T; where σ ≥ n, T is zero, and which row
    of X_f it meets does not matter: a modulo p is one that there is.
    """
    m, n = layer.weight.shape
    shape = Shape(m, n, *filters.shape)
    q, taps = shape.width, shape.taps
    writer = Writer()
    count = writer.step("range", count=taps)
    first = writer.step("mul", writer.step("range", count=m), writer.constant("n", np.array([n], np.int32)))
    quotient = writer.step("reshape", writer.step("div", first, by=q), shape=(m, 1))
    touched = writer.step("mod", writer.step("add", quotient, count), by=shape.length)
    remainder = writer.step("reshape", writer.step("mod", first, by=q), shape=(m, 1))
    window = writer.step("mul", count, writer.constant("q", np.array([q], np.int32)))
    window = writer.step("add", window, writer.constant("last", np.array([q - 1], np.int32)))
    window = writer.step("sub", window, remainder)
    gathered = writer.step("gather", _rows(writer, rows), touched, axis=0)
    padded = writer.step("pad", X, before=q - 1, after=taps * q - n)
    responses = writer.step("conv1d", padded, _filters(writer, filters))
    products = writer.step("mul", writer.step("gather", responses, window, axis=1), gathered)
    writer.step("sum", products, axes=(2, 3))
    return writer.direct(n, corrected_bias(layer, laid(rows, filters, layer.weight.shape)))


def _rows(writer: Writer, rows: Array) -> str:
    """X_f, stored transposed: each of its r columns then has a scale of its own."""
    stored = writer.constant("rows", rows.T.astype(np.float32))
    return writer.step("transpose", stored, perm=(1, 0))


def _filters(writer: Writer, filters: Array) -> str:
    return writer.constant("filters", filters.astype(np.float32))


def _too_few(layer: View, share: float) -> str:
    return too_small(share, 2 / math.sqrt(layer.weight.size))


def _fitted(layer: View, some: list[Shape]) -> tuple[Array, Array] | None:
    """X_f and W_f, float32, of the shape that loses least."""
    covariance = metric(layer)
    weight = layer.weight.astype(np.float64)
    best: tuple[float, Array, Array] | None = None
    for shape in some:
        rows, filters = truncated(weight, shape)
        loss = output_energy(weight - laid(rows, filters, weight.shape), covariance)
        if best is None or loss < best[0]:
            best = loss, rows, filters
    if best is None:
        return None
    rows, filters = best[1:]
    if covariance is not None:
        rows, filters = _improved(weight, rows, filters, covariance)
    rows, filters = balanced(rows, filters)
    return rows.astype(np.float32), filters.astype(np.float32)


def truncated(weight: Array, shape: Shape) -> tuple[Array, Array]:
    """X_f and W_f, float64: the best rank-r approximation of the re-laid W (Eckart and Young, 1936)."""
    auxiliary = relaid(weight, shape.width)
    _, vectors = np.linalg.eigh(auxiliary.T @ auxiliary)
    kept = vectors[:, ::-1][:, : shape.rank]
    return auxiliary @ kept, np.ascontiguousarray(kept.T)


def _improved(weight: Array, rows: Array, filters: Array, covariance: Array) -> tuple[Array, Array]:
    """Alternating least squares in the metric C, each by a few conjugate gradients: the loss never rises.

    The other factor is made orthonormal first, which leaves the condition of C alone.
    """
    width = filters.shape[1]
    wanted = relaid(weight @ covariance, width)

    def through_metric(x: Array, f: Array) -> Array:
        return relaid(through(laid(x, f, weight.shape), covariance), width)

    for _ in range(ROUNDS):
        basis, mixing = np.linalg.qr(filters.T)
        rows, filters = rows @ mixing.T, basis.T
        rows = conjugate_gradients(_bend_rows(through_metric, filters), wanted @ filters.T, rows, STEPS)
        basis, mixing = np.linalg.qr(rows)
        rows, filters = basis, mixing @ filters
        filters = conjugate_gradients(_bend_filters(through_metric, rows), rows.T @ wanted, filters, STEPS)
    return rows, filters


def _bend_rows(through_metric: Callable[[Array, Array], Array], filters: Array) -> Callable[[Array], Array]:
    return lambda direction: through_metric(direction, filters) @ filters.T


def _bend_filters(through_metric: Callable[[Array, Array], Array], rows: Array) -> Callable[[Array], Array]:
    return lambda direction: rows.T @ through_metric(rows, direction)


def balanced(rows: Array, filters: Array) -> tuple[Array, Array]:
    """The same product as U Σ^½ and Σ^½ Vᵀ: one scale per component then suits both in 8 bits."""
    left, left_mix = np.linalg.qr(rows)
    right, right_mix = np.linalg.qr(filters.T)
    u, values, v = np.linalg.svd(left_mix @ right_mix.T)
    root = np.sqrt(values)
    return left @ (u * root), (root[:, None] * v) @ right.T
