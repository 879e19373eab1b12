"""A graph of ONNX as a torch module: constants folded, control flow unrolled, every shape known.

The graph is walked once, on example inputs. What depends on nothing but constants and shapes is computed on the way;
branches are chosen and loops unrolled by it. Every other node becomes a step, which the module walks: an operator's
function, with earlier values, weights and numbers. No text of the file is ever run, nor used as a name.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from onnx import GraphProto, ModelProto, NodeProto
from torch import Tensor

from edgepack.errors import ModelError
from edgepack.torchgraph.onnx.control import CONTROL
from edgepack.torchgraph.onnx.functions import body_of
from edgepack.torchgraph.onnx.module import OnnxModule, Slot, Step, Weight, several
from edgepack.torchgraph.onnx.natural import is_natural, naturals
from edgepack.torchgraph.onnx.node import HINT, Node, Operator
from edgepack.torchgraph.onnx.registry import ONNX, OPERATORS
from edgepack.torchgraph.onnx.scope import Value, names_read, read_node
from edgepack.torchgraph.onnx.types import array_of, tensor_of

MOST_NODES = 50_000
"""That are looked at, those in unrolled loops counted each time."""
MOST_NESTED = 32
"""Graphs within graphs."""
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, ArithmeticError, AttributeError)


def build_module(model: ModelProto, inputs: Sequence[Tensor], name: str, natural: Collection[str] = ()) -> OnnxModule:
    """The module that computes what a model does, at the shapes of the example inputs.

    Args:
        model: with all its data inside, and without functions of its own.
        inputs: examples, in the order of the graph's inputs that are no initializers.
        name: the file's, for messages.
        natural: names of inputs that hold no negative numbers.

    Raises:
        ModelError: names the node that has no counterpart in torch, and why.
    """
    if len(model.functions) or len(model.graph.sparse_initializer):
        what = "functions of its own" if len(model.functions) else "sparse weights"
        raise ModelError(f"{name}: has {what}, which cannot go into the TFLite file", hint=HINT)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    constants = {tensor.name for tensor in model.graph.initializer}
    places = [value.name for value in model.graph.input if value.name not in constants]
    if len(places) != len(inputs):
        raise ModelError(f"{name}: takes {len(places)} inputs, {len(inputs)} were given")
    builder = Builder(name, len(inputs))
    given = enumerate(zip(places, inputs, strict=True))
    scope = {place: Value(tensor, slot, place in natural) for slot, (place, tensor) in given}
    with torch.no_grad():
        results = builder.graph(model.graph, ChainMap(scope), versions)
    return builder.module(results)


class Builder:
    """Gathers the steps of a module, graph by graph."""

    def __init__(self, name: str, inputs: int) -> None:
        self._name = name
        self._slots = inputs
        self._steps: list[Step] = []
        self._weights: dict[int, tuple[str, Tensor]] = {}
        self._nodes = 0
        self._depth = 0

    def module(self, results: Sequence[Value]) -> OnnxModule:
        """The module that returns these."""
        outputs = [self._reference(value) for value in results]
        kept = {output.number for output in outputs if isinstance(output, Slot)}
        steps: list[Step] = []
        for step in reversed(self._steps):
            if not kept.intersection(step.results):
                continue  # nothing reads it
            read = {each.number for each in step.arguments if isinstance(each, Slot)}
            unread = {number for number in step.results if number not in kept}
            steps.append(replace(step, finished=tuple(sorted((read - kept) | unread))))
            kept |= read
        steps.reverse()
        used = {each.name for step in steps for each in step.arguments if isinstance(each, Weight)}
        used |= {output.name for output in outputs if isinstance(output, Weight)}
        weights = {name: tensor for name, tensor in self._weights.values() if name in used}
        return OnnxModule(steps, outputs, weights)

    def graph(self, graph: GraphProto, scope: ChainMap[str, Value], versions: Mapping[str, int]) -> list[Value]:
        """Go through a graph, whose inputs are in the scope, and return its outputs."""
        for tensor in graph.initializer:
            scope[tensor.name] = Value(tensor_of(tensor, f"{self._name}: weight {tensor.name[:80]!r}"))
        self._walk(graph.node, [output.name for output in graph.output], scope, versions)
        return [self.named(output.name, scope, self._name) for output in graph.output]

    def _walk(
        self,
        nodes: Sequence[NodeProto],
        outputs: Sequence[str],
        scope: ChainMap[str, Value],
        versions: Mapping[str, int],
    ) -> None:
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise ModelError(f"{self._name}: graphs are nested more than {MOST_NESTED} deep", hint=HINT)
        last = {name: at for at, node in enumerate(nodes) for name in names_read(node)}
        last |= dict.fromkeys(outputs, len(nodes))
        for at, node in enumerate(nodes):
            self._node(node, scope, versions)
            for name in {*names_read(node), *node.output}:
                if last.get(name, -1) <= at:
                    scope.maps[0].pop(name, None)
        self._depth -= 1

    def _node(self, proto: NodeProto, scope: ChainMap[str, Value], versions: Mapping[str, int]) -> None:
        self._nodes += 1
        called = (proto.name or next(filter(None, proto.output), ""))[:80]
        label = f"{self._name}: node {called!r}"
        if self._nodes > MOST_NODES:
            raise ModelError(f"{label} is one of more than {MOST_NODES}, loops unrolled", hint=HINT)
        if proto.domain not in OPERATORS:
            raise ModelError(
                f"{label} is {proto.domain[:80]}.{proto.op_type[:80]}, an operator outside of ONNX", hint=HINT
            )
        version = versions.get(proto.domain, versions.get("" if proto.domain in ONNX else proto.domain, 1))
        if proto.domain in ONNX and proto.op_type in CONTROL:
            results = CONTROL[proto.op_type](self, proto, f"{label} ({proto.op_type})", scope, versions)
        elif (operator := OPERATORS[proto.domain].get(proto.op_type)) is not None:
            node = read_node(proto, version, f"{label} ({proto.op_type})")
            results = self._apply(operator, node, proto, [self.given(name, scope, label) for name in proto.input])
        else:
            results = self._by_definition(proto, version, label, scope)
        scope |= {name: value for name, value in zip(proto.output, results, strict=False) if name}

    def named(self, name: str, scope: Mapping[str, Value], label: str) -> Value:
        """What a name stands for.

        Raises:
            ModelError: nothing gives it.
        """
        if name not in scope:
            raise ModelError(f"{label} reads {name[:80]!r}, which nothing gives", hint=HINT)
        return scope[name]

    def given(self, name: str, scope: Mapping[str, Value], label: str) -> Value | None:
        """What a name stands for; no name stands for nothing, and errors are as of `named`."""
        return self.named(name, scope, label) if name else None

    def _by_definition(self, proto: NodeProto, version: int, label: str, scope: ChainMap[str, Value]) -> list[Value]:
        """The results of an operator by the body that ONNX defines for it."""
        given = [self.given(name, scope, label) for name in proto.input]
        examples = [None if value is None else value.tensor for value in given]
        body = body_of(proto, version, examples) if proto.domain in ONNX else None
        if body is None:
            called = f"{proto.domain[:80]}.{proto.op_type[:80]}" if proto.domain else proto.op_type[:80]
            raise ModelError(f"{label} is {called!r}, which has no counterpart in torch", hint=HINT)
        inner = {name: value for name, value in zip(body.inputs, given, strict=False) if value is not None}
        own: ChainMap[str, Value] = ChainMap(inner)
        self._walk(body.nodes, body.outputs, own, body.versions)
        return [own.get(name, _NOTHING) for name in body.outputs]

    def _apply(self, operator: Operator, node: Node, proto: NodeProto, given: Sequence[Value | None]) -> list[Value]:
        """The results of a node: constants if all that it reads are, else those of a new step."""
        node = replace(node, natural=frozenset(at for at, value in enumerate(given) if is_natural(value)))
        constant = all(value is None or value.slot is None for value in given)
        arguments = [self._argument(operator, node, at, given, constant) for at in range(len(given))]
        examples = [self._example(argument, given[at]) for at, argument in enumerate(arguments)]
        try:
            results = several(operator.run(node, *examples))
        except _FAILURES as err:
            raise node.error(f"cannot be computed in torch: {str(err).splitlines()[0] if str(err) else err!r}") from err
        if unread := node.unread():
            raise node.error(f"has an attribute that is not supported: {unread[0][:80]!r}")
        if constant or operator.static:
            return [Value(tensor) for tensor in results]
        for value, example in zip(given, examples, strict=True):
            if value is not None and len(results) == 1 and results[0] is example:
                return [value]  # nothing was done
        known = naturals(node, given, results)
        values = [Value(tensor, self._slots + at, known[at]) for at, tensor in enumerate(results)]
        self._slots += len(results)
        numbers = tuple(value.slot for value in values if value.slot is not None)
        self._steps.append(Step(operator.run, node, tuple(arguments), numbers, tuple(proto.output)))
        return values

    def _argument(self, operator: Operator, node: Node, at: int, given: Sequence[Value | None], constant: bool) -> Any:
        value = given[at]
        if value is None:
            return None
        if at in operator.known or (at in operator.either and value.slot is None):
            if value.slot is not None:
                raise node.error(f"computes its input {at + 1} from the model's inputs, a constant was expected")
            return array_of(value.tensor)
        if constant:
            return value.tensor
        if operator.scalars and value.slot is None and _is_scalar(value.tensor, given):
            return value.tensor.item()
        return self._reference(value)

    def _reference(self, value: Value) -> Slot | Weight:
        if value.slot is not None:
            return Slot(value.slot)
        name, _ = self._weights.setdefault(id(value.tensor), (f"weight_{len(self._weights)}", value.tensor))
        return Weight(name)

    def _example(self, argument: Any, value: Value | None) -> Any:
        return value.tensor if isinstance(argument, (Slot, Weight)) and value is not None else argument

    def stacked(self, values: Sequence[Value], axis: int, label: str) -> Value:
        """Values one behind the other along a new axis."""
        operator = Operator(lambda node, *rows: torch.stack(rows, axis))
        return self._apply(operator, Node("Stack", 1, label, {}), NodeProto(), list(values))[0]

    def chosen(self, condition: Value, a: Value, b: Value, label: str) -> Value:
        """One of two values of the same shape, by a condition of one element."""
        operator = Operator(lambda node, on, a, b: torch.where(on.reshape(()), a, b))
        return self._apply(operator, Node("Where", 1, label, {}), NodeProto(), [condition, a, b])[0]

    def picked(self, value: Value, axis: int, place: int, label: str) -> Value:
        """An element along an axis, which goes."""
        operator = Operator(lambda node, x: x.select(axis, place))
        return self._apply(operator, Node("Select", 1, label, {}), NodeProto(), [value])[0]


_NOTHING = Value(torch.zeros(0))
"""What an operator gives that its definition leaves out."""


def _is_scalar(tensor: Tensor, others: Sequence[Value | None]) -> bool:
    """Whether torch may broadcast a number in the place of this tensor: no axis is added, no type is changed."""
    ranks = [value.tensor.dim() for value in others if value is not None and value.slot is not None]
    real = tensor.dtype in (torch.float32, torch.float64, torch.int32, torch.int64)
    return tensor.numel() == 1 and real and tensor.dim() <= max(ranks, default=0) and bool(torch.isfinite(tensor).all())
