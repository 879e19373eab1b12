"""Matrices whose codes are two to a byte: Gather takes the bytes apart, Reshape gives the codes their sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.quantize.grids import PAIRS

if TYPE_CHECKING:
    import onnx_ir as ir


def packed_codes(node: ir.Node) -> ir.Value | None:
    """The bytes that a node takes apart, None where it does something else."""
    table = node.inputs[0].const_value if node.op_type == "Gather" and node.inputs[0] is not None else None
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
        if wanted is not None and wanted.const_value is not None:
            sides = tuple(int(side) for side in wanted.const_value.numpy())
        value = node.inputs[0]
    return None
