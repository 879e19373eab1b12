"""Builds the nodes that take a layer's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from edgepack.onnxgraph.names import Names
from edgepack.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir


Stored = dict[str, list[tuple[Array, "ir.Value"]]]

INITIALIZERS_APART = 4
"""From this IR version on an initializer need not be a graph input as well."""


class Builder:
    """Adds nodes just before one node of a graph.

    Args:
        model: the model that the node belongs to.
        anchor: new nodes go before this one.
        home: the value that holds the old weight; new constants live where it lives, so every placement sees them.
        prefix: beginning of the names of new nodes and values.
        names: the names in use.
        stored: constants that earlier builders of the same layer have registered.
    """

    def __init__(
        self, model: ir.Model, anchor: ir.Node, *, home: ir.Value, prefix: str, names: Names, stored: Stored
    ) -> None:
        self._model, self._anchor, self._home = model, anchor, home
        self.prefix, self._names, self._stored = prefix, names, stored
        self._imports = _imports_at(model, anchor)
        self.nodes: list[ir.Node] = []

    @property
    def opset(self) -> int:
        """Version of the default operator domain at this place."""
        return self._imports.get("", self._imports.get("ai.onnx", 1))

    @overload
    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = ...,
        domain: str = ...,
        outputs: Literal[1] = ...,
    ) -> ir.Value: ...

    @overload
    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = ...,
        domain: str = ...,
        outputs: int = ...,
    ) -> tuple[ir.Value, ...]: ...

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Value | tuple[ir.Value, ...]:
        """Add a node.

        Args:
            op_type: the operator.
            inputs: its inputs, None for one that is left out.
            attributes: plain Python values; None leaves one out.
            domain: the operator's domain, imported at version 1 if the model does not import it yet.
            outputs: how many outputs the node has.

        Returns:
            The output, or a tuple of outputs if `outputs` is not 1.
        """
        import onnx_ir as ir

        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
        for value in node.outputs:
            value.name = self._names.unique(f"{self.prefix}/{op_type}")
        node.name = node.outputs[0].name
        self._imports.setdefault(domain, 1)
        self._graph(self._anchor).insert_before(self._anchor, node)
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def constant(self, array: Array | np.generic, name: str) -> ir.Value:
        """A constant in the scope of the old weight, stored once for all placements of the layer.

        Args:
            array: its value; not copied.
            name: its name; a number is added if something else has it already.
        """
        import onnx_ir as ir

        array = np.asarray(array)
        for known, value in self._stored.get(name, ()):
            if known.dtype == array.dtype and known.shape == array.shape and np.array_equal(known, array):
                return value
        unique = self._names.unique(name)
        tensor = ir.Tensor(array, name=unique)
        graph = self._graph(self._home)
        if self._model.ir_version < INITIALIZERS_APART or self._is_function_body(graph):
            value = self._constant_node(graph, tensor)
        else:
            value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
            graph.register_initializer(value)
        self._stored.setdefault(name, []).append((array, value))
        return value

    def _constant_node(self, graph: ir.Graph, tensor: ir.Tensor[Any]) -> ir.Value:
        import onnx_ir as ir

        node = ir.node("Constant", [], {"value": tensor}, name=tensor.name)
        (value,) = node.outputs
        value.name, value.type, value.shape = tensor.name, ir.TensorType(tensor.dtype), tensor.shape
        graph.insert_before(self._home.producer() or graph[0], node)
        return value

    def _graph(self, owned: ir.Node | ir.Value) -> ir.Graph:
        if owned.graph is None:
            raise ValueError(f"{owned.name!r} was removed by an earlier rewrite")
        return owned.graph

    def _is_function_body(self, graph: ir.Graph) -> bool:
        return any(function.graph is graph for function in self._model.functions.values())


def _imports_at(model: ir.Model, anchor: ir.Node) -> dict[str, int]:
    """The opset imports in force at a node: a function brings its own."""
    for function in model.functions.values():
        if any(node is anchor for node in function.all_nodes()):
            return function.opset_imports
    return model.opset_imports
