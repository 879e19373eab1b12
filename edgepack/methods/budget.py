"""What a share of a layer's weights is in bytes, in numbers and as a rank; larger constants in 8 bits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from edgepack.errors import UsageError
from edgepack.model.constexpr import Writer, effective_weight
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, constexpr
from edgepack.model.types import Array
from edgepack.quantize.grids import quantize_weight

LEAST_ELEMENTS = 64
"""Of a vector; below, scales and operators take more than 8 bits save."""

LEAST_COLUMNS = 16
"""Rows shorter than this share one scale: a scale of their own would take a quarter of them or more."""


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


def bytes_in_8_bits(*shape: int) -> int:
    """Bytes that a float constant of this shape takes in `in_8_bits`, its scales included."""
    size = math.prod(shape)
    if not _is_rounded(shape):
        return 4 * size
    return size + 4 * (shape[0] if size >= LEAST_COLUMNS * shape[0] else 1)


def _is_rounded(shape: tuple[int, ...]) -> bool:
    """Matrices of any size are: a runtime's own reader would take float ones for weights of the layer."""
    return math.prod(shape) >= LEAST_ELEMENTS or (len(shape) > 1 and min(shape) > 1)


def in_8_bits(part: Replacement) -> Replacement:
    """The same layer with float matrices and larger vectors as int8, with a scale per row of the first axis or one.

    Rounded to nearest; the largest code of a scale is ±127. The decoded values are float32 in memory.
    """
    large = {
        name: array for name, array in part.tensors.items() if array.dtype == np.float32 and _is_rounded(array.shape)
    }
    writer = Writer({name: array for name, array in part.tensors.items() if name not in large})
    renamed = {}
    for name, array in large.items():
        codes, scales = _grid(array)
        wide = writer.step("cast", writer.constant(f"{name}.int8", codes), to="float32")
        renamed[name] = writer.step("mul", wide, writer.constant(f"{name}.scale", scales))
    for step in part.program:
        inputs = (renamed.get(name, name) for name in step.inputs)
        renamed[step.output] = writer.step(step.op, *inputs, **step.attributes)
    made = constexpr(writer.constants, tuple(writer.steps), part.weight, part.bias)
    return replace(made, decoded=effective_weight(made))


def _grid(array: Array) -> tuple[Array, Array]:
    """Codes of the array's shape, and scales that broadcast against it."""
    rows = array.reshape(len(array), -1)
    if rows.shape[1] < LEAST_COLUMNS:
        codes, scales = quantize_weight(array.reshape(1, -1))
        return codes.reshape(array.shape), scales
    codes, scales = quantize_weight(rows)
    return codes.reshape(array.shape), scales.reshape(-1, *(1,) * (array.ndim - 1))
