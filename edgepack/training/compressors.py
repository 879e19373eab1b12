"""Compressors: what makes the factors of a weight, once, when the schedule begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack import factorize
from edgepack.errors import EdgepackError, UsageError
from edgepack.types import Array, Factors, LinearLayer

Compressor = Callable[[Array, Array | None, int], Factors | Sequence[Array | None]]
"""`(weight (out, in), bias (out,) or None, rank) → (A (out, rank), B (rank, in)[, bias (out,)])`, float32."""

NAMES = {"low-rank": "svd"}
"""Names of this package's own; every other name is that of a factorizer, as `whitened`."""


@dataclass(frozen=True)
class Method:
    """A compressor, ready to be applied to layers.

    Attributes:
        name: for messages and saved states.
        needs_moments: whether layers must carry statistics of their inputs.
        factors: layer and rank → factors.
    """

    name: str
    needs_moments: bool
    factors: Callable[[LinearLayer, int], Factors]


def method(compressor: str | Compressor) -> Method:
    """The compressor of that name, or a function as a compressor.

    Raises:
        UsageError: there is none of that name, it needs what is not gathered here, or it is neither a name nor a
            function.
    """
    if callable(compressor):
        name = getattr(compressor, "__qualname__", type(compressor).__name__)
        return Method(name, False, lambda layer, rank: _called(compressor, name, layer, rank))
    if not isinstance(compressor, str):
        raise UsageError(f"compressor={compressor!r}: a name or a function (weight, bias, rank) was expected")
    try:
        chosen = factorize.factorizer(NAMES.get(compressor, compressor))
    except UsageError as err:
        raise UsageError(
            f"unknown compressor {compressor!r}",
            hint="give 'low-rank', 'whitened', another factorizer, or a function (weight, bias, rank) -> (A, B)",
        ) from err

    if getattr(chosen, "needs_gradients", False):
        raise UsageError(
            f"compressor={compressor!r} weighs outputs by their gradients, which are not gathered during training",
            hint="give 'whitened' or 'low-rank'",
        )

    def factors(layer: LinearLayer, rank: int) -> Factors:
        return _balanced(chosen.factors(layer, chosen.spectrum(layer), rank))

    return Method(compressor, chosen.needs_moments, factors)


def _balanced(factors: Factors) -> Factors:
    """The same product with columns of A as long as the rows of B: gradients of both are then of one size.

    Factorizers put all of the scale into B, which suits quantization but not one learning rate for both.
    """
    left, right = np.linalg.norm(factors.A, axis=0), np.linalg.norm(factors.B, axis=1)
    there = (left > 0) & (right > 0)
    scale = np.ones_like(left)
    scale[there] = np.sqrt(right[there] / left[there])
    return Factors(factors.A * scale, factors.B / scale[:, None], factors.bias)


def _called(compressor: Compressor, name: str, layer: LinearLayer, rank: int) -> Factors:
    bias = None if layer.bias is None else layer.bias.copy()
    try:
        result = compressor(layer.weight.copy(), bias, rank)
    except EdgepackError:
        raise
    except Exception as err:
        raise UsageError(f"{layer.name}: compressor {name} raised {type(err).__name__}: {err}") from err
    parts = (result.A, result.B, result.bias) if isinstance(result, Factors) else result
    if not isinstance(parts, Sequence) or len(parts) not in (2, 3):
        raise UsageError(
            f"{layer.name}: compressor {name} returned {type(result).__name__}; (A, B) or (A, B, bias) was expected"
        )
    rest = parts[2] if len(parts) == 3 else None
    return Factors(
        _checked(parts[0], (layer.out_features, rank), f"{layer.name}: A of compressor {name}"),
        _checked(parts[1], (rank, layer.in_features), f"{layer.name}: B of compressor {name}"),
        None if rest is None else _checked(rest, (layer.out_features,), f"{layer.name}: bias of compressor {name}"),
    )


def _checked(value: object, shape: tuple[int, ...], what: str) -> Array:
    array = np.asarray(value)
    if array.shape != shape or not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"{what} is {array.dtype} {array.shape}, floats of shape {shape} were expected")
    if not np.isfinite(array).all():
        raise UsageError(f"{what} holds NaN or infinity")
    return np.array(array, np.float32)
