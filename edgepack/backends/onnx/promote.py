"""Leads inner values of a model out of branches, loops and scans, to its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.onnx.values import Names, take_over
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Wanted:
    """What is to be seen of a value.

    Attributes:
        dtype: its element type, None if unknown.
        axis: its feature axis, counted from the end.
        features: size of that axis; 0 where vectors are made of more than one position.
        rank: its rank, None if unknown.
    """

    dtype: np.dtype[Any] | None
    axis: int
    features: int
    rank: int | None


@dataclass(frozen=True)
class Tap:
    """One observed value: the output's name, the feature axis, counted from the end, and how many scans it left."""

    output: str
    axis: int
    scans: int


@dataclass
class Promotion:
    """One model while values are led out of it."""

    model: ir.Model
    names: Names
    parents: dict[int, ir.Node]
    seen: dict[tuple[int, int], Tap | None] = field(default_factory=dict)
    values: list[ir.Value] = field(default_factory=list)  # ids stay unique only while their objects live


def start(model: ir.Model) -> Promotion:
    """Prepare to change `model`."""
    parents = {id(graph): node for node in model.graph.all_nodes() for graph in _bodies(node)}
    return Promotion(model, Names(model), parents)


def promote(promotion: Promotion, value: ir.Value, wanted: Wanted) -> Tap | None:
    """Make a value an output of the model, or return None if there is no way.

    A branch that is not taken gives an empty array, a scan stacks its steps, a loop concatenates the rows of its
    rounds. Two layers share an output only where their features are on the same axis: an output means one set of rows.
    """
    key = (id(value), wanted.axis)
    if key not in promotion.seen:
        way = _way_out(promotion, value)
        again = any(known == id(value) for known, _ in promotion.seen)
        passable = way is not None and _passable(way, wanted)
        promotion.seen[key] = _lead(promotion, value, way, wanted, again) if way is not None and passable else None
        promotion.values.append(value)
    return promotion.seen[key]


def _bodies(node: ir.Node) -> list[ir.Graph]:
    import onnx_ir as ir

    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            graphs.extend(attribute.as_graphs())
    return graphs


def _way_out(promotion: Promotion, value: ir.Value) -> list[ir.Node] | None:
    """The nodes whose bodies must be left, the innermost first."""
    way: list[ir.Node] = []
    graph = value.graph
    while graph is not promotion.model.graph:
        node = promotion.parents.get(id(graph))
        if node is None or node.domain != "" or node.op_type not in ("If", "Loop", "Scan"):
            return None
        way.append(node)
        graph = node.graph
    return way


def _passable(way: Sequence[ir.Node], wanted: Wanted) -> bool:
    ops = [node.op_type for node in way]
    if wanted.dtype is None and set(ops) - {"Scan"}:
        return False
    if "Loop" in ops and (not wanted.features or (wanted.axis != -1 and wanted.rank is None)):
        return False  # rows cannot be cut from it inside the graph
    scans = ops.count("Scan")
    return all(op == "Scan" for op in ops[:scans])  # a scan stacks only what has the same shape in every step


def _lead(promotion: Promotion, value: ir.Value, way: list[ir.Node], wanted: Wanted, again: bool) -> Tap:
    import onnx_ir as ir

    of_type = value.type if wanted.dtype is None else ir.TensorType(ir.DataType.from_numpy(wanted.dtype))
    road = _Road(promotion, value.name or "value", of_type)
    axis, scans = wanted.axis, sum(node.op_type == "Scan" for node in way)
    empty = np.zeros(0, wanted.dtype)
    if any(node.op_type == "Loop" for node in way):
        value = road.rows(value, wanted)
        empty = np.zeros((0, wanted.features), wanted.dtype)
        axis = -1
    for node in way:
        value = {"If": road.through_if, "Loop": road.through_loop, "Scan": road.through_scan}[node.op_type](
            value, node, empty
        )
    graph = promotion.model.graph
    if not value.is_graph_output() or again:
        if value.is_graph_input() or value.is_initializer() or value.is_graph_output():
            value = road.add(graph, "Identity", [value])
        value.type = value.type or of_type
        graph.outputs.append(value)
    return Tap(value.name or "", axis, scans)


@dataclass(frozen=True)
class _Road:
    """The steps of one value on its way out."""

    promotion: Promotion
    base: str
    of_type: ir.TypeProtocol | None

    def add(self, graph: ir.Graph, op: str, inputs: Sequence[ir.Value], **attributes: object) -> ir.Value:
        """Add a node at the end of a graph."""
        node = self._node(op, inputs, attributes)
        graph.append(node)
        return node.outputs[0]

    def rows(self, value: ir.Value, wanted: Wanted) -> ir.Value:
        """The value as (rows, features), in its own graph."""
        graph = _graph_of(value)
        if wanted.axis != -1 and wanted.rank is not None:
            perm = list(range(wanted.rank))
            perm.append(perm.pop(wanted.axis))
            value = self.add(graph, "Transpose", [value], perm=perm)
        shape = self.add(graph, "Constant", [], value_array=np.array([-1, wanted.features]))
        return self.add(graph, "Reshape", [value, shape])

    def through_if(self, value: ir.Value, node: ir.Node, empty: Array) -> ir.Value:
        """Out of a branch; the other one gives nothing, of the same type."""
        inner = _graph_of(value)
        for body in _bodies(node):
            if body is inner:
                body.outputs.append(self.add(body, "Identity", [value]))
            else:
                body.outputs.append(self.add(body, "Constant", [], value_array=empty))
        return self._new_output(node, len(inner.outputs))

    def through_scan(self, value: ir.Value, node: ir.Node, empty: Array) -> ir.Value:
        """Out of a scan, as one more of its stacked outputs."""
        import onnx_ir as ir

        (body,) = _bodies(node)
        body.outputs.append(self.add(body, "Identity", [value]))
        for name in ("scan_output_axes", "scan_output_directions"):
            given = node.attributes.get_ints(name)
            if given is not None:
                node.attributes[name] = ir.AttrInt64s(name, [*given, 0])
        return self._new_output(node, len(body.outputs))

    def through_loop(self, value: ir.Value, node: ir.Node, empty: Array) -> ir.Value:
        """Out of a loop, as a variable that gathers the rows of all rounds, however many each round has."""
        import onnx_ir as ir

        (body,) = _bodies(node)
        carried = len(body.inputs) - 2
        gathered = ir.Value(name=self._unique(), type=self.of_type, shape=ir.Shape([None, empty.shape[1]]))
        body.inputs.append(gathered)
        body.outputs.insert(1 + carried, self.add(body, "Concat", [gathered, value], axis=0))
        first = self._node("Constant", [], {"value_array": empty})
        _graph_of(node).insert_before(node, first)
        node.resize_inputs(2 + carried + 1)
        node.replace_input_with(2 + carried, first.outputs[0])
        self._new_output(node, len(body.outputs) - 1)
        for index in range(len(node.outputs) - 1, carried, -1):  # the scan outputs move up by one
            take_over(node.outputs[index - 1], node.outputs[index])
        return self._named(node.outputs[carried])

    def _new_output(self, node: ir.Node, count: int) -> ir.Value:
        old = len(node.outputs)
        node.resize_outputs(count)
        for skipped in node.outputs[old:-1]:
            skipped.name = ""
        return self._named(node.outputs[-1])

    def _named(self, value: ir.Value) -> ir.Value:
        value.name, value.type, value.shape = self._unique(), self.of_type, None
        return value

    def _node(self, op: str, inputs: Sequence[ir.Value], attributes: dict[str, Any]) -> ir.Node:
        import onnx_ir as ir

        array = attributes.pop("value_array", None)
        if array is not None:
            attributes["value"] = ir.tensor(array)
        node = ir.node(op, inputs, attributes)
        value = self._named(node.outputs[0])
        if array is not None:
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        node.name = value.name
        return node

    def _unique(self) -> str:
        return self.promotion.names.unique(f"{self.base}/observed")


def _graph_of(owned: ir.Value | ir.Node) -> ir.Graph:
    if owned.graph is None:
        raise ValueError(f"{owned.name!r} belongs to no graph")
    return owned.graph
