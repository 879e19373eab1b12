"""How many multiplications the products of a TFLite file take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from edgepack.backends.tflite.read import called, graphs, op_name, options_of, shape_of

Shape = tuple[int, ...]


def macs(model: Any) -> int | None:
    """Multiplications of one inference in matrix products and convolutions, at the shapes that the file has.

    Args:
        model: the schema's.

    Returns:
        None where branches, loops, recurrent or custom operators are among the operators.
    """
    (_, graph), *_ = graphs(model)
    counts = [_operator_macs(model, graph, graph.Operators(i)) for i in range(graph.OperatorsLength())]
    return None if None in counts else sum(count for count in counts if count is not None)


def _operator_macs(model: Any, graph: Any, operator: Any) -> int | None:
    name = op_name(model, operator)
    if called(operator) or not name.isupper() or name in _UNKNOWN:
        return None
    if name not in _PRODUCTS:
        return 0
    inputs = [operator.Inputs(i) for i in range(operator.InputsLength())]
    shapes = [shape_of(graph.Tensors(tensor)) if tensor >= 0 else () for tensor in inputs]
    out = shape_of(graph.Tensors(operator.Outputs(0)))
    if name == "BATCH_MATMUL" and (options := options_of(operator, "BatchMatMulOptions")) and options.AdjX():
        return prod(out) * shapes[0][-2]
    return _PRODUCTS[name](out, shapes)


_UNKNOWN = frozenset(
    (
        *("LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "RNN", "SVDF"),
        *("UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "CONV_3D", "CONV_3D_TRANSPOSE"),
    )
)
_PRODUCTS: Mapping[str, Callable[[Shape, list[Shape]], int]] = {
    "CONV_2D": lambda out, given: prod(out) * prod(given[1][1:]),
    "DEPTHWISE_CONV_2D": lambda out, given: prod(out) * prod(given[1][1:3]),
    "FULLY_CONNECTED": lambda out, given: prod(out) * given[1][-1],
    "BATCH_MATMUL": lambda out, given: prod(out) * given[0][-1],
    "TRANSPOSE_CONV": lambda out, given: prod(given[2]) * prod(given[1][:3]),
}
"""By operator: from the shape of its output and those of its inputs."""
