"""How many multiplications the products of an ONNX graph take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING

from edgepack.backends.onnx.values import quiet
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

Shape = tuple[int, ...]


def macs(model: ir.Model, feed: Mapping[str, Array]) -> int | None:
    """Multiplications of one inference in matrix products, convolutions and recurrent steps.

    Args:
        model: of any shapes.
        feed: the inputs of the inference, by name.

    Returns:
        None where shapes depend on values, or branches, loops or functions are among the nodes.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    if model.functions:
        return None
    copy = model.clone()
    _remove_maps(copy.graph)
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    for value in copy.graph.inputs:
        if (given := feed.get(str(value.name))) is not None:
            value.shape = ir.Shape(given.shape)
    with quiet("onnx_ir"):
        ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    counts = [_node_macs(node) for node in copy.graph]
    return None if None in counts else sum(count for count in counts if count is not None)


def _remove_maps(graph: ir.Graph) -> None:
    """Take out what makes maps of scores, as of scikit-learn's classifiers: it multiplies nothing, and `onnx_ir` reads
    no type of a map."""
    for node in [node for node in graph if node.op_type == "ZipMap"]:
        for output in [output for output in graph.outputs if output.producer() is node]:
            graph.outputs.remove(output)
        graph.remove(node, safe=True)


def _node_macs(node: ir.Node) -> int | None:
    if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()):
        return None
    if node.op_type in _RECURRENT:
        given, weights, recurrence = (_shape(value) for value in node.inputs[:3])
        if given is None or weights is None or recurrence is None:
            return None
        return given[0] * given[1] * (prod(weights) + prod(recurrence))
    if node.op_type not in _PRODUCTS:
        return 0
    place, count, over = _PRODUCTS[node.op_type]
    operand, elements = _shape(node.inputs[place]), _shape(node.outputs[0] if over is None else node.inputs[over])
    if operand is None or elements is None:
        return None
    transposed = node.attributes.get("transA")
    return prod(elements) * count(operand[::-1] if transposed is not None and transposed.as_int() else operand)


def _shape(value: ir.Value | None) -> Shape | None:
    if value is None or value.shape is None:
        return None
    sides = [side for side in value.shape if isinstance(side, int)]
    return tuple(sides) if len(sides) == len(value.shape) else None


def _last(rows: Shape) -> int:
    return rows[-1]


def _behind_first(kernel: Shape) -> int:
    return prod(kernel[1:])


_RECURRENT = ("LSTM", "GRU", "RNN")
_PRODUCTS: Mapping[str, tuple[int, Callable[[Shape], int], int | None]] = {
    **dict.fromkeys(("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "QGemm", "MatMulNBits"), (0, _last, None)),
    **dict.fromkeys(("Conv", "ConvInteger"), (1, _behind_first, None)),
    "QLinearConv": (3, _behind_first, None),
    "ConvTranspose": (1, _behind_first, 0),
}
"""By operator: an input, the multiplications that its shape tells of, and the input for each of whose elements there
are so many; None for each of the output."""
