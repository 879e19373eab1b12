"""Refit on the compressed prefix: factors that answer the layer's *compressed* inputs with its *original* outputs.

Once the layers before it are compressed, a layer sees x̃ instead of x. The linear map that best predicts y = W x + b
from x̃ undoes part of their error: Ŵ = Cov(y, x̃) Cov(x̃)⁻¹, and of rank r, U_r U_rᵀ Ŵ with U the left singular vectors
of Ŵ C̃^½ — reduced-rank regression (Izenman, Journal of Multivariate Analysis 5, 1975).

It overfits where rows are few, so the fit is pulled towards W, not towards 0:
Ŵ_λ = W + (Cov(y, x̃) − W C̃)(C̃ + λ t I)⁻¹, t = tr C̃ / n, the ridge estimate of what W misses (Hoerl and Kennard,
Technometrics 12, 1970). With x̃ = x it is W at every λ, and for λ → ∞ as well: then only the bias is refitted. λ is
chosen on held-out parts of the data, by moments alone; where no λ does better than not refitting, nothing is.

Moments of a layer's inputs in the compressed model together with its outputs in the original one, streamed in fp64.

Row for row: x̃ is what the layer is fed once everything before it is compressed, y what the original layer answers at
the same place to the same sample, bias included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from edgepack.errors import DataError
from edgepack.factorize import whitened
from edgepack.model.kinds.stages import composed
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array, Moments

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, math.inf)
"""λ in units of the mean variance of an input; infinite keeps W and refits the basis and the bias."""
STILL = 1e-13
"""Share of E‖x‖² below which a variance is rounding."""

FLUSH_ROWS = 1024


@dataclass(frozen=True)
class Refit:
    """A refitted layer and what the choice was made from.

    Attributes:
        factors: refitted on all parts, or `kept` as it was.
        ridge: the chosen λ; None where not refitting did at least as well.
        errors: by λ, mean squared error of the outputs on the parts held out, in the unit of y², summed over outputs.
        kept_error: the same of the factors that were there before.
    """

    factors: Replacement
    ridge: float | None
    errors: dict[float, float]
    kept_error: float


Fit = Callable[[Array, "PairedMoments"], Replacement]
"""(Ŵ, moments) → factors in the place of Ŵ x̃, their bias such that the mean of y is exact."""


def refit(
    layer: View,
    kept: Replacement,
    parts: Sequence[PairedMoments],
    fit: Fit | None = None,
    *,
    ridges: Sequence[float] = RIDGES,
) -> Refit:
    """Factors like `kept`, refitted where held-out data say that it helps.

    Every part is held out once. The parts should be of different samples: tokens of one sentence in two of them would
    make the data look less scarce than they are.

    Args:
        layer: the original layer; its moments are not looked at.
        kept: the factors of the layer as they stand, made without knowing of the prefix.
        parts: two or more, of disjoint samples.
        fit: factors in the structure of `kept`; `truncated` to its rank unless given.
        ridges: λ to choose from, > 0.

    Raises:
        DataError: fewer than two parts, or they do not fit the layer, or its inputs never vary in one of them.
    """
    _check(layer, kept, parts, ridges)
    if fit is None:
        fit = partial(truncated, layer, rank=kept.rank)
    errors = dict.fromkeys(ridges, 0.0)
    kept_error, rows = 0.0, sum(part.inputs.count for part in parts)
    for index, held_out in enumerate(parts):
        share = held_out.inputs.count / rows
        rest = pooled([part for other, part in enumerate(parts) if other != index])
        for ridge, weight in zip(ridges, refitted_weights(layer, rest, ridges), strict=True):
            errors[ridge] += share * output_error(fit(weight, rest), held_out)
        kept_error += share * output_error(kept, held_out)
    best = min(ridges, key=lambda ridge: (errors[ridge], -ridge))
    if errors[best] >= kept_error:
        return Refit(kept, None, errors, kept_error)
    seen = pooled(parts)
    (weight,) = refitted_weights(layer, seen, [best])
    return Refit(fit(weight, seen), best, errors, kept_error)


def refitted_weights(layer: View, seen: PairedMoments, ridges: Sequence[float]) -> list[Array]:
    """Ŵ_λ (out, in) float64 for every λ, from one eigendecomposition of C̃."""
    from scipy.linalg import eigh

    weight = layer.weight.astype(np.float64)
    covariance = seen.inputs.covariance
    missed = seen.cross_covariance - weight @ covariance
    unit = float(np.trace(covariance)) / layer.in_features
    if not unit > STILL * float(np.trace(seen.inputs.second)) / layer.in_features:
        raise DataError(f"{layer.name}: its input is constant over the calibration data", hint="give inputs that vary")
    values, vectors = eigh(covariance, overwrite_a=True, check_finite=False, driver="evd")
    values = np.clip(values, 0.0, None)
    missed = missed @ vectors
    return [
        weight if math.isinf(ridge) else weight + (missed / (values + ridge * unit)) @ vectors.T for ridge in ridges
    ]


def truncated(layer: View, weight: Array, seen: PairedMoments, rank: int) -> Replacement:
    """Rank-r factors of `weight` by centred whitening with x̃, and the bias that makes the mean of y exact."""
    spectrum = whitened.spectrum(replace(layer, weight=weight, moments=seen.inputs))
    basis = np.ascontiguousarray(spectrum.basis[:, :rank])
    projected = np.asarray(basis.T @ weight, np.float32)
    bias = seen.mean - basis @ (projected @ seen.inputs.mean)
    return low_rank(basis, projected, np.asarray(bias, np.float32))


def refitted_view(layer: View, weight: Array, seen: PairedMoments) -> View:
    """The layer with Ŵ in the place of W, the moments of x̃, and the bias that makes the mean of y exact."""
    bias = seen.mean - weight @ seen.inputs.mean
    return replace(layer, weight=weight.astype(np.float32), bias=bias.astype(np.float32), moments=seen.inputs)


def _pair(factors: Replacement) -> tuple[Array, Array]:
    """A and B float64; of a kernel that is taken apart the identity and all that it comes to."""
    if factors.structure.is_low_rank:
        return factors.A.astype(np.float64), factors.B.astype(np.float64)
    return np.eye(len(factors.A)), composed(factors).astype(np.float64)


def output_error(factors: Replacement, seen: PairedMoments) -> float:
    """E‖y − (A B x̃ + b)‖² over the rows behind `seen`, from their moments alone."""
    A, B = _pair(factors)
    bias = np.zeros(len(A)) if factors.bias is None else factors.bias.astype(np.float64)
    spread = float((seen.power - np.square(seen.mean)).sum())
    shared = float(((A.T @ seen.cross_covariance) * B).sum())
    own = float(((A.T @ A) * (B @ seen.inputs.covariance @ B.T)).sum())
    offset = seen.mean - A @ (B @ seen.inputs.mean) - bias
    return max(spread - 2 * shared + own, 0.0) + float(np.square(offset).sum())


def _check(layer: View, kept: Replacement, parts: Sequence[PairedMoments], ridges: Sequence[float]) -> None:
    if len(parts) < 2:
        raise DataError(f"{layer.name}: {len(parts)} part of the data to refit on, expected two or more")
    if not ridges or not min(ridges) > 0:
        raise DataError(f"{layer.name}: ridges {tuple(ridges)}, expected one or more, all > 0")
    shape = (layer.out_features, layer.in_features)
    A, B = _pair(kept)
    for found in {part.cross.shape for part in parts} | {(A.shape[0], B.shape[1])}:
        if found != shape:
            raise DataError(f"{layer.name}: outputs and inputs to refit on are {found}, the layer is {shape}")


@dataclass(frozen=True)
class PairedMoments:
    """Second-order statistics of pairs (x̃, y).

    Attributes:
        inputs: of x̃.
        mean: (out,) float64, E[y].
        power: (out,) float64, E[y²].
        cross: (out, in) float64, E[y x̃ᵀ].
    """

    inputs: Moments
    mean: Array
    power: Array
    cross: Array

    @property
    def cross_covariance(self) -> Array:
        """(out, in) float64: E[(y − E y)(x̃ − E x̃)ᵀ]."""
        return np.asarray(self.cross - np.outer(self.mean, self.inputs.mean))


class PairedRows:
    """Moments of pairs that come in chunks: rows are gathered first, for one large product instead of many small ones.

    Attributes:
        count: rows so far.
    """

    def __init__(self, name: str) -> None:
        """`name` is the layer's, for messages."""
        self.name = name
        self.count = 0
        self._parts: list[PairedMoments] = []
        self._waiting: list[tuple[Array, Array]] = []
        self._rows = 0

    def add(self, x: Array, y: Array) -> None:
        """A chunk of rows x̃ (N, in), y (N, out), N ≥ 0.

        Raises:
            DataError: the rows do not match, or one holds NaN or infinity.
        """
        _check_activations(self.name, x, y)
        if not len(x):
            return
        self._waiting.append((x, y))
        self._rows += len(x)
        self.count += len(x)
        if self._rows >= FLUSH_ROWS:
            # Two at a time: no more than two sets of matrices are ever held.
            self._parts, self._waiting, self._rows = [pooled([*self._parts, _of(self._waiting)])], [], 0

    def moments(self) -> PairedMoments:
        """Of all rows.

        Raises:
            DataError: there are none.
        """
        parts = [*self._parts, *([_of(self._waiting)] if self._waiting else [])]
        if not parts:
            raise DataError(f"{self.name}: no rows to refit on", hint="was the layer reached on the calibration data?")
        return pooled(parts)


def pooled(parts: Sequence[PairedMoments]) -> PairedMoments:
    """The moments of all rows together, from those of disjoint parts (at least one)."""
    if len(parts) == 1:
        return parts[0]
    counts = np.array([part.inputs.count for part in parts], np.float64)
    shares = counts / counts.sum()
    return PairedMoments(
        pooled_inputs([part.inputs for part in parts]),
        _weighted(shares, [part.mean for part in parts]),
        _weighted(shares, [part.power for part in parts]),
        _weighted(shares, [part.cross for part in parts]),
    )


def pooled_inputs(parts: Sequence[Moments]) -> Moments:
    """`Moments` of all rows together, from those of disjoint parts (at least one)."""
    counts = np.array([part.count for part in parts], np.float64)
    shares = counts / counts.sum()
    return Moments(
        count=sum(part.count for part in parts),
        mean=_weighted(shares, [part.mean for part in parts]),
        second=_weighted(shares, [part.second for part in parts]),
        low=min(part.low for part in parts),
        high=max(part.high for part in parts),
        row_range=float(np.sqrt(shares @ np.square([part.row_range for part in parts]))),
    )


def _weighted(shares: Array, arrays: Sequence[Array]) -> Array:
    total = shares[0] * arrays[0]
    for share, array in zip(shares[1:], arrays[1:], strict=True):
        total += share * array
    return np.asarray(total)


def _of(chunks: Sequence[tuple[Array, Array]]) -> PairedMoments:
    x = np.concatenate([chunk for chunk, _ in chunks]).astype(np.float64)
    y = np.concatenate([chunk for _, chunk in chunks]).astype(np.float64)
    count = len(x)
    spans = x.max(axis=1).clip(min=0.0) - x.min(axis=1).clip(max=0.0)
    inputs = Moments(
        count=count,
        mean=x.mean(axis=0),
        second=x.T @ x / count,
        low=float(x.min()),
        high=float(x.max()),
        row_range=float(np.sqrt(np.square(spans).mean())),
    )
    return PairedMoments(inputs, y.mean(axis=0), np.square(y).mean(axis=0), y.T @ x / count)


def _check_activations(name: str, x: Array, y: Array) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise DataError(
            f"{name}: inputs {x.shape} and outputs {y.shape} do not match, expected (rows, in), (rows, out)"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError(
            f"{name}: NaN or Inf flows through the model at this place on the calibration data",
            hint="look for an overflow in the model or in the inputs",
        )
