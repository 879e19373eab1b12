"""Operators of a file that multiply by integers already: they are no layers, and stay as they are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from edgepack.backends.onnx.kinds import OPERATORS
from edgepack.backends.onnx.tensors import all_graphs

if TYPE_CHECKING:
    import onnx_ir as ir

IN_INTEGERS = frozenset({
    "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "DynamicQuantizeLSTM", "MatMulNBits", "QAttention",
})  # fmt: skip
DEEPEST = 8
"""Steps from an operator back to the integers that its weight is decoded from, at most."""


def already_in_integers(model: ir.Model) -> str | None:
    """What stays as it is, as a sentence; None where nothing does."""
    found = Counter(
        node.op_type if node.op_type in IN_INTEGERS else f"{node.op_type} behind decoded weights"
        for graph in all_graphs(model)
        for node in graph
        if node.op_type in IN_INTEGERS or _is_decoded(node)
    )
    if not found:
        return None
    named = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    return f"operators with integer weights stay as they are: {named}"


def _is_decoded(node: ir.Node) -> bool:
    """Whether it would be a layer, but for a weight that is decoded from integers."""
    places = OPERATORS.get(node.op_type, ()) if node.domain == "" else ()
    return any(place < len(node.inputs) and _from_integers(node.inputs[place], DEEPEST) for place in places)


def _from_integers(value: ir.Value | None, steps: int) -> bool:
    """Whether a value is made of constant integers by what a runtime folds at load."""
    import onnx_ir as ir

    node = None if value is None else value.producer()
    if value is None or steps == 0:
        return False
    if node is None:
        return value.const_value is not None and value.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    decodes = node.op_type in ("DequantizeLinear", "Cast", "Mul", "Sub", "Transpose", "Reshape", "Identity")
    return decodes and _from_integers(node.inputs[0], steps - 1)
