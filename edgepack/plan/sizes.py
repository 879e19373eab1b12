"""Bytes that a linear layer takes in a model file: weights, scales, zero points, bias, and the nodes around them."""

from __future__ import annotations

from collections.abc import Iterable

from edgepack.model.scheme import Scheme, scheme_of
from edgepack.model.structure import Op
from edgepack.quantize.blocks import stored_bytes
from edgepack.types import Array


def size_bytes(scheme: Scheme, ops: Iterable[Op], bias: Array | None) -> int:
    """Bytes of a layer's products in a scheme, with its float32 bias."""
    return sum(_op_bytes(scheme_of(op, scheme), op) for op in ops) + (0 if bias is None else 4 * bias.size)


def _op_bytes(scheme: Scheme, op: Op) -> int:
    if scheme.granularity == "block":
        return stored_bytes(op.rows, op.columns, scheme.bits) + scheme.bytes_per_op
    return op.weights * scheme.bits // 8 + op.rows * scheme.bytes_per_channel + scheme.bytes_per_op


def resident_bytes(scheme: Scheme, size_bytes: int) -> int:
    """Bytes of memory, at the peak, that weights of `size_bytes` in the file take in the runtime."""
    return round(scheme.ram_per_byte * size_bytes)
