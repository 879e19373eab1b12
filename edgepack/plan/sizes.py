"""Bytes that a linear layer takes in a model file: weights, scales, zero points, bias, and the nodes around them."""

from __future__ import annotations

from edgepack.formats import WEIGHT_BITS, Format, matrices
from edgepack.quantize.blocks import stored_bytes

NODE_BYTES: dict[Format, int] = {"onnx": 600, "tflite": 400}
"""Of the operators and names of one matrix: what the emitted files have, within a factor of two."""

CHANNEL_BYTES = {
    "fp32": 0,
    "int8-dynamic": 4,  # a float32 scale
    "int8-static-qdq": 4 + 1 + 4 + 4,  # scale, zero point; scale and zero point of the int32 bias
    "int8-dynamic-range": 4 + 8,  # a float32 scale, an int64 zero point
    "int8-static": 4 + 8 + 4 + 8,  # likewise, and those of the int32 bias
    "int4-dynamic-range": 4 + 8,
}
"""Per output channel, weights and bias apart."""


def size_bytes(fmt: Format, form: str, out_features: int, in_features: int, rank: int | None, *, bias: bool) -> int:
    """Bytes of the dense layer (`rank` None), of the pair, or of both, in a form."""
    parts = matrices(form, (out_features, in_features), rank)
    total = sum(_matrix_bytes(fmt, own or form, rows, columns) for own, rows, columns in parts)
    return total + (4 * out_features if bias else 0)


def _matrix_bytes(fmt: Format, form: str, rows: int, columns: int) -> int:
    if form.startswith("nbits"):
        return stored_bytes(rows, columns, WEIGHT_BITS[form]) + NODE_BYTES[fmt]
    return rows * columns * WEIGHT_BITS[form] // 8 + rows * CHANNEL_BYTES[form] + NODE_BYTES[fmt]
