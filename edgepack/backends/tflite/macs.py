"""How many multiplications the products of a TFLite file take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from edgepack.backends.tflite.kinds.recurrent import FUSED
from edgepack.backends.tflite.read import called, constant, graphs, op_name, options_of, shape_of

Shape = tuple[int, ...]


def macs(model: Any) -> int | None:
    """Multiplications of one inference in matrix products, convolutions and recurrent steps, at the shapes of the file.

    Args:
        model: the schema's.

    Returns:
        None where branches, loops of unknown length, other recurrent or custom operators are among the operators.
    """
    (_, graph), *_ = graphs(model)
    return _graph_macs(model, graph)


def _graph_macs(model: Any, graph: Any) -> int | None:
    counts = [_operator_macs(model, graph, each) for each in _operators(graph)]
    return None if None in counts else sum(count for count in counts if count is not None)


def _operators(graph: Any) -> list[Any]:
    return [graph.Operators(position) for position in range(graph.OperatorsLength())]


def _loop_macs(model: Any, graph: Any, operator: Any) -> int | None:
    """Of a loop without others in it that counts up or down to a constant, by one at each step."""
    options = options_of(operator, "WhileOptions")
    if options is None:
        return None
    condition, body = (model.Subgraphs(each) for each in (options.CondSubgraphIndex(), options.BodySubgraphIndex()))
    steps, tests = _operators(body), _operators(condition)
    counts = [each for each in steps if each.OutputsLength() and each.Outputs(0) == body.Outputs(0)]
    if len(counts) != 1 or len(tests) != 1 or any(called(each) for each in steps):
        return None
    (test,), (count,) = tests, counts
    places = [(graph, operator.Inputs(0)), (condition, test.Inputs(1)), (body, count.Inputs(1))]
    numbers = [constant(model, own.Tensors(tensor)) for own, tensor in places]
    known = [int(one.item()) for one in numbers if one is not None and one.size == 1 and one.dtype.kind == "i"]
    goes = op_name(model, test), op_name(model, count), known[-1:]
    is_own = test.Inputs(0) == condition.Inputs(0) and count.Inputs(0) == body.Inputs(0)
    inner = _graph_macs(model, body)
    if not is_own or len(known) < len(numbers) or inner is None or goes not in _COUNTING:
        return None
    begin, end, step = known
    return max(0, (end - begin) * step) * inner


_COUNTING = ("LESS", "ADD", [1]), ("GREATER", "ADD", [-1])
"""How a loop counts its steps."""


def _operator_macs(model: Any, graph: Any, operator: Any) -> int | None:
    name = op_name(model, operator)
    if name == "WHILE":
        return _loop_macs(model, graph, operator)
    if called(operator) or not name.isupper() or name in _UNKNOWN:
        return None
    inputs = [operator.Inputs(i) for i in range(operator.InputsLength())]
    shapes = [shape_of(graph.Tensors(tensor)) if tensor >= 0 else () for tensor in inputs]
    if name in FUSED:
        # At every step an operator multiplies x, a second input, its state and its output by all of its matrices.
        others = [shape for place, shape in enumerate(shapes) if place not in FUSED[name].states]
        return prod(shapes[0][:-1]) * sum(prod(shape) for shape in others if len(shape) == 2)
    if name not in _PRODUCTS:
        return 0
    out = shape_of(graph.Tensors(operator.Outputs(0)))
    if name == "BATCH_MATMUL" and (options := options_of(operator, "BatchMatMulOptions")) and options.AdjX():
        return prod(out) * shapes[0][-2]
    return _PRODUCTS[name](out, shapes)


_UNKNOWN = frozenset(
    (
        *("LSTM", "RNN", "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "SVDF"),
        *("CONV_3D", "CONV_3D_TRANSPOSE"),
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
