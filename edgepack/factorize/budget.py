"""How many bytes a layer's code may take, and how many an array of floats will, once it is in 8 bits."""

from __future__ import annotations

import math

from edgepack.errors import UsageError
from edgepack.quantize.coded import LEAST_COLUMNS, LEAST_ELEMENTS
from edgepack.types import LinearLayer


def allowed_bytes(layer: LinearLayer, share: float) -> int:
    """Bytes of `share` of the layer's weights, at a byte each.

    Raises:
        UsageError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"a share of {share:g} of the weights, expected one between 0 and 1")
    return int(share * layer.out_features * layer.in_features)


def float_bytes(*shape: int) -> int:
    """Bytes that `edgepack.quantize.coded.in_8_bits` stores for a float constant of this shape, scales included."""
    size = math.prod(shape)
    if size < LEAST_ELEMENTS:
        return 4 * size
    return size + 4 * (shape[0] if size >= LEAST_COLUMNS * shape[0] else 1)


def most_floats(left: int, beside: int = 0) -> int:
    """How many floats of a flat constant fit into so many bytes in 8 bits, with `beside` more bytes each.

    Not every smaller number need fit: too few are left as they are, at four bytes each.
    """
    many = (left - 4) // (1 + beside)
    return many if many >= LEAST_ELEMENTS else max(min(left // (4 + beside), LEAST_ELEMENTS - 1), 0)
