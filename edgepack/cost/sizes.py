"""Bytes that a layer takes in a model file and in memory: weights, scales, bias, and the nodes around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgepack.backends.registry import FACTS
from edgepack.model.constexpr import is_decoded, stored_bytes
from edgepack.model.kinds.recurrent import units_of
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FLOAT_BITS, INT8_BITS, Format, Scheme, scheme_of
from edgepack.model.structure import Op
from edgepack.model.types import Array
from edgepack.quantize.grids import stored_block_bytes

OPERATORS_OF = {"bucket": 20}
"""Operators of one instruction where they are more than one: those of a hash."""


def size_bytes(scheme: Scheme, ops: Iterable[Op], bias: Array | None) -> int:
    """Bytes of a layer's products in a scheme, with its float32 bias."""
    return sum(_op_bytes(scheme_of(op, scheme), op) for op in ops) + (0 if bias is None else 4 * bias.size)


def dense_bytes(scheme: Scheme, layer: Layer, ops: Sequence[Op]) -> int:
    """As `size_bytes`, of the products of a dense layer, whose weights a file may hold in fewer bits than float32."""
    spared = FLOAT_BITS - layer.stored_bits if scheme.is_float else 0
    return size_bytes(scheme, ops, layer.bias) - sum(op.weights for op in ops) * spared // 8


def _op_bytes(scheme: Scheme, op: Op) -> int:
    if scheme.granularity == "block":
        return stored_block_bytes(op.rows, op.inputs, scheme.bits) + scheme.bytes_per_op
    return op.weights * scheme.bits // 8 + op.rows * scheme.bytes_per_channel + scheme.bytes_per_op


def table_bytes(scheme: Scheme, layer: Layer) -> int:
    """Bytes of a table beside the layer whose weight it is as well, where that does not hold it.

    Args:
        scheme: of its rows.
    """
    return _op_bytes(scheme, Op("rows", "gather", layer.out_features, layer.in_features))


def state_bytes(fmt: Format, layer: Layer, scheme: Scheme) -> int:
    """Bytes that the weights of a recurrent layer's states take in its scheme beyond those that they have in 8 bits.

    None where a format stores them apart from those of its inputs.
    """
    if layer.geometry.operator not in FACTS[fmt].whole_cells:
        return 0
    return layer.out_features * units_of(layer) * (scheme.bits - INT8_BITS) // 8


def resident_bytes(scheme: Scheme, size_bytes: int) -> int:
    """Bytes of memory, at the peak, that weights of `size_bytes` in the file take in the runtime."""
    return round(scheme.ram_per_byte * size_bytes)


def constexpr_size_bytes(fmt: Format, part: Replacement, *, bias: bool) -> int:
    """Bytes of the constants, the operators that read them, and the bias."""
    operators = sum(OPERATORS_OF.get(step.op, 1) for step in part.program)
    return (
        stored_bytes(part)
        + FACTS[fmt].constexpr.bytes_per_instruction * operators
        + (4 * len(part.weight) if bias else 0)
    )


def time_over_dense(fmt: Format, part: Replacement) -> float:
    """Time of an inference of the layer over that of the dense layer in fp32.: one number for each kind.

    What is built for this machine is measured as a whole in the end.
    """
    facts = FACTS[fmt].constexpr
    if is_decoded(part):
        return facts.decoded
    return facts.convolved if any(step.op == "conv1d" for step in part.program) else facts.direct
