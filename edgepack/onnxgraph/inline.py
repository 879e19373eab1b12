"""Inlines local functions, and only those that a later step cannot see through."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgepack.onnxgraph.constants import FLOATS, VIEWS, root_of

if TYPE_CHECKING:
    import onnx_ir as ir

    FunctionId = tuple[str, str, str]

_WEIGHT_INPUTS = {"Gemm": (0, 1), "MatMul": (0, 1), "Conv": (1,)}


def inline_weight_functions(model: ir.Model) -> None:
    """Inline, in place, the functions that are given a linear layer's weight as an argument.

    Inside such a function the weight is no constant, so the layer could not be told from a product of two variables.
    Functions that hold their weights themselves stay. A function that cannot be inlined stays too, its layers unseen.
    """
    for _ in range(len(model.functions)):  # inlining one caller can uncover the next
        wanted = _given_weights(model)
        if not wanted or not inline(model, lambda function: function.identifier() in wanted):  # noqa: B023
            return


def inline(model: ir.Model, criteria: Callable[[ir.Function], bool]) -> bool:
    """Inline, in place, the functions that meet `criteria`; False if the file's functions do not allow it."""
    import onnx_ir as ir
    from onnx_ir.passes.common import InlinePass

    try:
        InlinePass(criteria)(model)
    except (ir.passes.InvariantError, RuntimeError, ValueError):  # recursion, differing opsets, graph-valued attributes
        return False
    return True


def callers(model: ir.Model, inner: set[FunctionId]) -> set[FunctionId]:
    """`inner` and every function that reaches one of them through calls."""
    reached = set(inner)
    while True:
        more = {
            function.identifier()
            for function in model.functions.values()
            if any(node.op_identifier() in reached for node in function.all_nodes())
        }
        if more <= reached:
            return reached
        reached |= more


def _given_weights(model: ir.Model) -> set[FunctionId]:
    slots = _weight_slots(model)
    wanted: set[FunctionId] = set()
    graphs = [model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())]
    for nodes in graphs:
        for node in nodes:
            name = node.op_identifier()
            if any(_is_matrix(node.inputs[i]) for i in slots.get(name, ()) if i < len(node.inputs)):
                wanted.add(name)
    return wanted


def _is_matrix(value: ir.Value | None) -> bool:
    root = None if value is None else root_of(value)
    if root is None:
        return False
    if root.const_value is None:  # a Constant node's: its size is seen only after inlining
        return True
    return len(root.const_value.shape) >= 2 and root.const_value.dtype.name in FLOATS


def _weight_slots(model: ir.Model) -> dict[FunctionId, set[int]]:
    """For each function the inputs that reach a linear node's weight, directly or through further calls."""
    slots: dict[FunctionId, set[int]] = {name: set() for name in model.functions}
    changed = True
    while changed:
        changed = False
        for name, function in model.functions.items():
            inputs = {id(value): index for index, value in enumerate(function.inputs)}
            for node in function.all_nodes():
                own = _WEIGHT_INPUTS.get(node.op_type, ()) if node.domain == "" else ()
                for index in {*own, *slots.get(node.op_identifier(), ())}:
                    value = node.inputs[index] if index < len(node.inputs) else None
                    slot = inputs.get(id(_behind_views(value)))
                    if slot is not None and slot not in slots[name]:
                        slots[name].add(slot)
                        changed = True
    return slots


def _behind_views(value: ir.Value | None) -> ir.Value | None:
    while value is not None:
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in VIEWS or not node.inputs:
            return value
        value = node.inputs[0]
    return None
