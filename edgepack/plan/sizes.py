"""Bytes that a linear layer takes in a model file: weights, scales, zero points, bias, and the nodes around them."""

from __future__ import annotations

from edgepack.model.scheme import Scheme, matrices
from edgepack.quantize.blocks import stored_bytes


def size_bytes(scheme: Scheme, out_features: int, in_features: int, rank: int | None, *, bias: bool) -> int:
    """Bytes of the dense layer (`rank` None), of the pair, or of both, in a scheme."""
    parts = matrices(scheme, (out_features, in_features), rank)
    total = sum(_matrix_bytes(own, rows, columns) for own, rows, columns in parts)
    return total + (4 * out_features if bias else 0)


def _matrix_bytes(scheme: Scheme, rows: int, columns: int) -> int:
    if scheme.granularity == "block":
        return stored_bytes(rows, columns, scheme.bits) + scheme.bytes_per_op
    return rows * columns * scheme.bits // 8 + rows * scheme.bytes_per_channel + scheme.bytes_per_op


def resident_bytes(scheme: Scheme, size_bytes: int) -> int:
    """Bytes of memory, at the peak, that weights of `size_bytes` in the file take in the runtime."""
    return round(scheme.ram_per_byte * size_bytes)
