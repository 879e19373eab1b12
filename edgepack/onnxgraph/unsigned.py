"""Moves quantized values from the signed to the unsigned 8-bit grid, as ONNX Runtime does inside a graph on x86."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

_SHIFT = 128


def to_unsigned(model: ir.Model, values: Iterable[ir.Value]) -> None:
    """Give int8 values between a QuantizeLinear and its DequantizeLinear the type uint8, zero point and all up by 128.

    The numbers that they stand for stay the same. Values that are made or used otherwise are left alone, as the runtime
    leaves them alone: also those that several DequantizeLinear nodes read, or one on behalf of several nodes.

    Args:
        model: changed in place.
        values: the candidates; all others stay signed.
    """
    import onnx_ir as ir

    moved: dict[ir.Value, ir.Value] = {}
    for value in values:
        node = value.producer()
        pair = [] if node is None else [node, *(user for user, _ in value.uses())]
        if value.is_graph_output() or not _is_signed_pair(pair):
            continue
        for user in pair:
            zero = user.inputs[2]
            if zero is not None:
                if zero not in moved:
                    moved[zero] = _moved(model, zero)
                user.replace_input_with(2, moved[zero])
        value.type = ir.TensorType(ir.DataType.UINT8)


def _is_signed_pair(nodes: list[ir.Node]) -> bool:
    """A QuantizeLinear and the DequantizeLinear that reads it for one node, both with a constant int8 zero point."""
    if [node.op_type for node in nodes] != ["QuantizeLinear", "DequantizeLinear"]:
        return False
    result = nodes[1].outputs[0]
    if len(result.uses()) + result.is_graph_output() > 1 or "output_dtype" in nodes[0].attributes:
        return False
    zeros = [node.inputs[2] if len(node.inputs) > 2 else None for node in nodes]
    tensors = [None if zero is None or not zero.is_initializer() else zero.const_value for zero in zeros]
    return all(tensor is not None and tensor.dtype.name == "INT8" for tensor in tensors)


def _moved(model: ir.Model, zero: ir.Value) -> ir.Value:
    import onnx_ir as ir

    if zero.const_value is None:
        raise ValueError(f"the zero point {zero.name!r} is not constant")
    array = (zero.const_value.numpy().astype(np.int16) + _SHIFT).astype(np.uint8)
    name = f"{zero.name}.unsigned"
    while name in model.graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    made = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(made)
    return made
