"""Compressors: what makes the factors of a weight, or its numbers in code, once, when the schedule begins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgepack.errors import EdgepackError, UsageError
from edgepack.methods import registry
from edgepack.methods.registry import METHODS
from edgepack.methods.registry import Method as ShareMethod
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array

Compressor = Callable[[Array, Array | None, int], Replacement | Sequence[Array | None]]
"""`(weight (out, in), bias (out,) or None, rank) → (A (out, rank), B (rank, in)[, bias (out,)])`, float32."""

NAMES = {"low-rank": "svd"}
"""Names of this package's own; every other name is that of a method, as `whitened` or `kmeans`."""


@dataclass(frozen=True)
class ByShare:
    """A compressor that is given a share of a layer's weights instead of a rank; made by `by_share`."""

    function: ShareMethod
    looks_at_inputs: bool
    frozen: frozenset[str]


def by_share(function: ShareMethod, *, looks_at_inputs: bool = False, frozen: Collection[str] = ()) -> ByShare:
    """A method of `edgepack.methods.registry`, or a function of its protocol, as a compressor.

    Args:
        function: `(layer, share, *, seed, gradient) -> Replacement | str`; a string says why a layer stays dense.
        looks_at_inputs: whether layers are to carry moments of their inputs in the training steps before.
        frozen: names of float constants of its `Replacement` that are not to be trained.
    """
    return ByShare(function, looks_at_inputs, frozenset(frozen))


@dataclass(frozen=True)
class Method:
    """A compressor, ready to be applied to layers.

    Attributes:
        name: for messages and saved states.
        needs_moments: whether layers must carry statistics of their inputs.
        factors: layer, and rank or share → what replaces the weight, or why the layer stays dense.
        by_share: whether it is given a share instead of a rank; it does without moments then if there are none.
        frozen: float constants that are not to be trained.
    """

    name: str
    needs_moments: bool
    factors: Callable[[View, Any], Replacement | str]
    by_share: bool = False
    frozen: frozenset[str] = frozenset()


def method(compressor: str | Compressor | ByShare, seed: int = 0) -> Method:
    """The compressor of that name, or a function as a compressor.

    Args:
        compressor: either.
        seed: of what a method by share draws.

    Raises:
        UsageError: there is none of that name, it needs what is not gathered here, or it is neither a name nor a
            function.
    """
    if isinstance(compressor, ByShare):
        return _sharing(_name(compressor.function), compressor, seed)
    if callable(compressor):
        name = _name(compressor)
        return Method(name, False, lambda layer, rank: _called(compressor, name, layer, rank))
    if not isinstance(compressor, str):
        raise UsageError(f"compressor={compressor!r}: a name or a function (weight, bias, rank) was expected")
    known = NAMES.get(compressor, compressor)
    try:
        if not registry.is_factorizer(known):
            return _sharing(compressor, by_share(registry.method(known), looks_at_inputs=True), seed)
    except UsageError as err:
        raise UsageError(
            f"unknown compressor {compressor!r}",
            hint=f"give 'low-rank', 'whitened' or another method ({', '.join(METHODS) or 'of a plug-in'}), or a "
            "function (weight, bias, rank) -> (A, B)",
        ) from err

    chosen = registry.factorizer(known)
    if getattr(chosen, "needs_gradients", False):
        raise UsageError(
            f"compressor={compressor!r} weighs outputs by their gradients, which are not gathered during training",
            hint="give 'whitened' or 'low-rank'",
        )

    def factors(layer: View, rank: int) -> Replacement:
        return _balanced(chosen.factors(layer, chosen.spectrum(layer), rank))

    return Method(compressor, chosen.needs_moments, factors)


def _balanced(factors: Replacement) -> Replacement:
    """The same product with columns of A as long as the rows of B: gradients of both are then of one size.

    Factorizers put all of the scale into B, which suits quantization but not one learning rate for both.
    """
    left, right = np.linalg.norm(factors.A, axis=0), np.linalg.norm(factors.B, axis=1)
    there = (left > 0) & (right > 0)
    scale = np.ones_like(left)
    scale[there] = np.sqrt(right[there] / left[there])
    return low_rank(factors.A * scale, factors.B / scale[:, None], factors.bias)


def _sharing(name: str, compressor: ByShare, seed: int) -> Method:
    def made(layer: View, share: float) -> Replacement | str:
        try:
            part = compressor.function(layer, share, seed=seed)
        except EdgepackError:
            raise
        except Exception as err:
            raise UsageError(f"{layer.name}: compressor {name} raised {type(err).__name__}: {err}") from err
        return _fit(part, layer, name)

    return Method(name, compressor.looks_at_inputs, made, by_share=True, frozen=compressor.frozen)


def _fit(part: object, layer: View, name: str) -> Replacement | str:
    """The result of a method by share, ready to be trained."""
    what = f"{layer.name}: {{}} of compressor {name}"
    if isinstance(part, str):
        return part
    if isinstance(part, Replacement) and part.structure.is_low_rank:
        shapes = (layer.out_features, part.rank), (part.rank, layer.in_features)
        a, b = (_checked(v, s, what.format(n)) for v, s, n in zip((part.A, part.B), shapes, "AB", strict=True))
        return _balanced(low_rank(a, b, _bias(part.bias, layer, what)))
    if not (isinstance(part, Replacement) and part.structure.is_constexpr):
        raise UsageError(
            f"{layer.name}: compressor {name} returned {type(part).__name__}: only factors and layers stored in code "
            "can be trained"
        )
    _checked(part.weight, layer.weight.shape, what.format("weight"))
    bias = _bias(part.bias, layer, what)
    same = bias is not None and layer.bias is not None and np.array_equal(bias, layer.bias)
    return replace(part, bias=None if same else bias)


def _bias(bias: Array | None, layer: View, what: str) -> Array | None:
    return None if bias is None else _checked(bias, (layer.out_features,), what.format("bias"))


def _name(function: object) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _called(compressor: Compressor, name: str, layer: View, rank: int) -> Replacement:
    bias = None if layer.bias is None else layer.bias.copy()
    try:
        result = compressor(layer.weight.copy(), bias, rank)
    except EdgepackError:
        raise
    except Exception as err:
        raise UsageError(f"{layer.name}: compressor {name} raised {type(err).__name__}: {err}") from err
    parts = result
    if isinstance(result, Replacement) and result.structure.is_low_rank:
        parts = result.A, result.B, result.bias
    if not isinstance(parts, Sequence) or len(parts) not in (2, 3):
        raise UsageError(
            f"{layer.name}: compressor {name} returned {type(result).__name__}; (A, B) or (A, B, bias) was expected"
        )
    rest = parts[2] if len(parts) == 3 else None
    return low_rank(
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
