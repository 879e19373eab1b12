"""What a share of a layer's weights is in bytes, in numbers, and as a rank."""

from __future__ import annotations

from edgepack.errors import UsageError
from edgepack.model.layer import View
from edgepack.quantize.coded import LEAST_ELEMENTS


def allowed_bytes(layer: View, share: float) -> int:
    """Bytes of `share` of the layer's weights, at a byte each.

    Raises:
        UsageError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"a share of {share:g} of the weights, expected one between 0 and 1")
    return int(share * layer.out_features * layer.in_features)


def most_floats(left: int, beside: int = 0) -> int:
    """How many floats of a flat constant fit into so many bytes in 8 bits, with `beside` more bytes each.

    Not every smaller number need fit: too few are left as they are, at four bytes each.
    """
    many = (left - 4) // (1 + beside)
    return many if many >= LEAST_ELEMENTS else max(min(left // (4 + beside), LEAST_ELEMENTS - 1), 0)


def pair_rank(share: float, out_features: int, in_features: int) -> int:
    """The largest k with k (out + in) ≤ share · out · in: the rank of a pair that takes this share; may be 0."""
    return int(share * out_features * in_features / (out_features + in_features) + 1e-9)


def too_small(share: float, least: float) -> str:
    """Why a layer stays dense."""
    return f"{share:.2%} of its bytes are too few: the smallest form takes {least:.2%}"
