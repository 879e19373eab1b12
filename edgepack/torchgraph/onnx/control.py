"""Control flow, unrolled while a graph is built: branches that constants choose, or both of them, and loops whose
turns are known."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from onnx import AttributeProto, GraphProto, NodeProto

from edgepack.errors import ModelError
from edgepack.torchgraph.onnx.node import HINT
from edgepack.torchgraph.onnx.scope import Value, read_node

if TYPE_CHECKING:
    from edgepack.torchgraph.onnx.build import Builder

Scope = ChainMap[str, Value]
Versions = Mapping[str, int]


def _branch(builder: Builder, proto: NodeProto, label: str, scope: Scope, versions: Versions) -> list[Value]:
    """If: the branch that a known condition chooses; else both are computed, and each result is picked from them."""
    condition = builder.named(proto.input[0], scope, label)

    def taken(name: str) -> list[Value]:
        return builder.graph(_graph(proto, name, label), scope.new_child(), versions)

    if condition.slot is None:
        return taken("then_branch" if _known(condition, label, "condition") else "else_branch")
    try:
        pairs = list(zip(taken("then_branch"), taken("else_branch"), strict=True))
    except ModelError as err:
        raise _computed(label, "condition", f", unless both branches run: {err.message}") from err
    for pair in pairs:
        shapes = [tuple(each.tensor.shape) for each in pair]
        if shapes[0] != shapes[1] or pair[0].tensor.dtype != pair[1].tensor.dtype:
            raise _computed(label, "condition", f", whose branches give {shapes[0]} and {shapes[1]}")
    return [builder.chosen(condition, *pair, label) for pair in pairs]


def _loop(builder: Builder, proto: NodeProto, label: str, scope: Scope, versions: Versions) -> list[Value]:
    """Loop: its body again and again, as often as its count and its condition say."""
    body = _graph(proto, "body", label)
    names = [*proto.input, *[""] * (2 - len(proto.input))]
    count, condition, *given = (builder.given(name, scope, label) for name in names)
    turns = None if count is None else int(_known(count, label, "count"))
    goes_on = condition is None or bool(_known(condition, label, "condition"))
    state = [value for value in given if value is not None]
    rows: list[list[Value]] = []
    while goes_on and (turns is None or len(rows) < turns):
        turned = [Value(torch.tensor(len(rows))), Value(torch.tensor(True)), *state]
        inner = scope.new_child(dict(zip((value.name for value in body.input), turned, strict=True)))
        after, *results = builder.graph(body, inner, versions)
        state = results[: len(state)]
        rows.append(results[len(state) :])
        goes_on = bool(_known(after, label, "condition"))
    if not rows and len(proto.output) > len(state):
        raise ModelError(f"{label} has no turn to gather results from", hint=HINT)
    return [*state, *(builder.stacked(column, 0, label) for column in zip(*rows, strict=True))]


def _scan(builder: Builder, proto: NodeProto, label: str, scope: Scope, versions: Versions) -> list[Value]:
    """Scan: its body for each element along an axis."""
    node, body = read_node(proto, versions.get("", 1), label, graphs=("body",)), _graph(proto, "body", label)
    if node.version < 9:
        raise node.error("is that of opset 8, with batches of its own")
    count = node.integer("num_scan_inputs")
    given = [builder.named(name, scope, label) for name in proto.input]
    state, scanned = given[: len(given) - count], given[len(given) - count :]
    outputs = [0] * (len(proto.output) - len(state))
    axes, turned = (node.integers(f"scan_input_{name}", [0] * count) for name in ("axes", "directions"))
    out_axes, out_turned = (node.integers(f"scan_output_{name}", outputs) for name in ("axes", "directions"))
    sizes = {value.tensor.shape[axis] for value, axis in zip(scanned, axes, strict=True)}
    if len(sizes) != 1 or 0 in sizes:
        raise node.error(f"goes along axes of {sorted(sizes)} elements, as many of each were expected")
    steps = range(sizes.pop())
    names = [value.name for value in body.input]
    rows: list[list[Value]] = []
    for step in steps:
        places = [steps[-1 - step] if turn else step for turn in turned]
        elements = [builder.picked(*each, label) for each in zip(scanned, axes, places, strict=True)]
        inner = scope.new_child(dict(zip(names, [*state, *elements], strict=True)))
        results = builder.graph(body, inner, versions)
        state = results[: len(state)]
        rows.append(results[len(state) :])
    columns = [each[::-1] if turn else each for each, turn in zip(zip(*rows, strict=True), out_turned, strict=True)]
    return [*state, *(builder.stacked(each, axis, label) for each, axis in zip(columns, out_axes, strict=True))]


def _known(value: Value, label: str, what: str) -> float:
    """The number that is a constant's only element.

    Raises:
        ModelError: it depends on the model's inputs.
    """
    if value.slot is not None or value.tensor.numel() != 1:
        raise _computed(label, what)
    return float(value.tensor.item())


def _computed(label: str, what: str, why: str = "") -> ModelError:
    return ModelError(
        f"{label} has a {what} that is computed from the model's inputs: such control flow cannot go into the "
        f"TFLite file{why}",
        hint=HINT,
    )


def _graph(proto: NodeProto, name: str, label: str) -> GraphProto:
    for attribute in proto.attribute:
        if attribute.name == name and attribute.type == AttributeProto.GRAPH:
            graph: GraphProto = attribute.g
            return graph
    raise ModelError(f"{label} has no {name}", hint=HINT)


CONTROL: Mapping[str, Callable[[Builder, NodeProto, str, Scope, Versions], list[Value]]] = {
    "If": _branch,
    "Loop": _loop,
    "Scan": _scan,
}
