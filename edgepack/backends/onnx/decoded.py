"""Weights in integers that the runtime decodes at load: how a graph holds them, and what they come to.

Codes of 8 bits stand as they are, those of 4 bits two to a byte, which Gather takes apart; Cast and Mul follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.model.types import Array
from edgepack.quantize.grids import PAIRS

if TYPE_CHECKING:
    import onnx_ir as ir

SUFFIX = ".decoded"
"""Of the name of a decoded matrix, behind that of its codes."""


def is_decoded(value: ir.Value | None) -> bool:
    """Whether a value is such a matrix."""
    return value is not None and value.const_value is None and (value.name or "").endswith(SUFFIX)


def packed_codes(node: ir.Node) -> ir.Value | None:
    """The bytes that a node takes apart, None where it does something else."""
    table = _stored(node.inputs[0]) if node.op_type == "Gather" and node.inputs[0] is not None else None
    if table is None or tuple(table.shape.numpy()) != PAIRS.shape or not np.array_equal(table.numpy(), PAIRS):
        return None
    return node.inputs[1]


def sides_of_pairs(value: ir.Value | None) -> tuple[int, ...] | None:
    """Sides of the codes behind a value, None where they are not two to a byte."""
    sides: tuple[int, ...] | None = None
    while value is not None and (node := value.producer()) is not None and node.inputs:
        if packed_codes(node) is not None:
            return sides
        wanted = node.inputs[1] if node.op_type == "Reshape" and sides is None else None
        if wanted is not None and (tensor := _stored(wanted)) is not None:
            sides = tuple(int(side) for side in tensor.numpy())
        value = node.inputs[0]
    return None


def codes_of(value: ir.Value) -> ir.TensorProtocol:
    """The stored codes behind a decoded matrix."""
    while (tensor := _stored(value)) is None:
        node = value.producer()
        if node is None:
            raise ValueError(f"{value.name} is no constant")
        step = packed_codes(node) or node.inputs[0]
        if step is None:
            raise ValueError(f"{value.name}: {node.op_type} decodes nothing")
        value = step
    return tensor


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    node = value.producer()
    if node is not None and node.op_type == "Constant":
        return node.attributes["value"].as_tensor()
    return value.const_value


def decode(value: ir.Value) -> Array:
    """The matrix, to the bit as the runtime decodes it."""
    import onnx_ir as ir

    if (tensor := _stored(value)) is not None:
        return np.asarray(tensor.numpy())
    node = value.producer()
    if node is None:
        raise ValueError(f"{value.name} is no constant")
    first, *others = (decode(each) for each in node.inputs if each is not None)
    if node.op_type == "Cast":
        return first.astype(ir.DataType(node.attributes.get_int("to", 1)).numpy())
    if node.op_type == "Mul":
        return np.asarray(first * others[0])
    if node.op_type == "Gather":
        return first[others[0]]
    if node.op_type == "Slice":
        return first[int(others[0][0]) : int(others[1][0])]
    if node.op_type == "Reshape":
        return first.reshape(others[0])
    raise ValueError(f"{value.name}: {node.op_type} decodes nothing")
