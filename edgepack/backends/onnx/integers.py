"""Operators of a file that multiply by integers already: they are no layers, and stay as they are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from edgepack.backends.onnx.decoded import tensor_of
from edgepack.backends.onnx.kinds import OPERATORS
from edgepack.backends.onnx.tensors import all_graphs

if TYPE_CHECKING:
    import onnx_ir as ir

IN_INTEGERS = frozenset({
    "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "DynamicQuantizeLSTM", "MatMulNBits", "QAttention",
})  # fmt: skip
_CODES = frozenset({"INT4", "UINT4", "INT8", "UINT8", "INT32"})
"""Types of weights and biases that are decoded."""
DEEPEST = 8
"""Steps from an operator back to the integers that its weight is decoded from, at most."""


def already_in_integers(model: ir.Model) -> str | None:
    """What stays as it is, as a sentence; None where nothing does."""
    found = Counter(
        node.op_type if node.op_type in IN_INTEGERS else f"{node.op_type} behind decoded weights"
        for graph in all_graphs(model)
        for node in graph
        if node.op_type in IN_INTEGERS or _has_decoded(node)
    )
    if not found:
        return None
    named = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    return (
        f"operators with integer weights stay as they are: {named}; they are of several groups, or their weights or "
        "grids are no constants of a kind that is known"
    )


def _has_decoded(node: ir.Node) -> bool:
    """Whether it would be a layer, but for a weight that is decoded from integers."""
    places = OPERATORS.get(node.op_type, ()) if node.domain == "" else ()
    return any(place < len(node.inputs) and is_decoded(node.inputs[place], DEEPEST) for place in places)


def is_decoded(value: ir.Value | None, steps: int) -> bool:
    """Whether a value is made of constant integers by what a runtime folds at load, in so many steps at most."""
    if value is None or steps == 0:
        return False
    if (tensor := tensor_of(value)) is not None:
        return tensor.dtype.name in _CODES
    node = value.producer()
    if node is None or node.domain != "":
        return False
    decodes = node.op_type in ("DequantizeLinear", "Cast", "Mul", "Sub", "Transpose", "Reshape", "Identity")
    return decodes and is_decoded(node.inputs[0], steps - 1)
