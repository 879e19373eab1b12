"""How values run through an ONNX graph once its constants are set apart."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from edgepack.onnxgraph.constants import constant_tensor

if TYPE_CHECKING:
    import onnx_ir as ir

_CLIPPING = frozenset({"Relu", "Clip"})
"""What a quantizer's own limits can stand for, so that it does not come between a product and its QuantizeLinear."""

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


class Flow:
    """How values run through a graph once constants are set apart.

    Args:
        nodes: of the graph, in order of execution.
        survivors: names of the values that are still there after the runtime's optimisation.
    """

    def __init__(self, nodes: Sequence[ir.Node], survivors: Collection[str]) -> None:
        self._survivors = survivors
        self.constant: set[ir.Node] = set()
        self.copied: set[ir.Node] = set()
        """Nodes that each segment has for itself: constants, and DequantizeLinear, which only means something together
        with the node that it feeds."""
        for node in nodes:
            known = [value is None or self.is_constant(value) for value in node.inputs]
            if all(known) and node.op_type not in _RANDOM:
                self.constant.add(node)
            if node in self.constant or (node.op_type == "DequantizeLinear" and all(known[1:])):
                self.copied.add(node)

    def is_constant(self, value: ir.Value) -> bool:
        """Whether the value is the same in every run."""
        return value.is_initializer() or value.producer() in self.constant

    def shape(self, value: ir.Value) -> tuple[object, ...] | None:
        """Shape of a value where the file states it."""
        if value.const_value is not None:
            return tuple(value.const_value.shape.dims)
        node = value.producer()
        if node is not None and node.op_type == "Constant" and (tensor := constant_tensor(node)) is not None:
            return tuple(tensor.shape.dims)
        return None if value.shape is None else tuple(value.shape.dims)

    def survives(self, value: ir.Value) -> bool:
        """Whether the runtime still computes this value after its optimisation."""
        return value.name in self._survivors

    def readers(self, value: ir.Value) -> Iterator[ir.Node | None]:
        """The nodes that read a value, seen through the copied ones; None stands for the caller of the model."""
        if value.is_graph_output():
            yield None
        for node, _ in value.uses():
            if node in self.copied:
                for output in node.outputs:
                    yield from self.readers(output)
            else:
                yield node

    def sole_reader(self, value: ir.Value) -> ir.Node | None:
        """The node that reads a value, if it is the only one; copied nodes count like any other."""
        users = {node for node, _ in value.uses()}
        return users.pop() if len(users) == 1 and not value.is_graph_output() else None

    def is_scale(self, value: ir.Value | None) -> bool:
        """Whether a value only says how a quantized tensor is scaled."""
        if value is None or self.is_constant(value):
            return True
        node = value.producer()
        if node is None:
            return False
        if node.op_type == "DynamicQuantizeLinear":
            return value.index() != 0
        return node.op_type == "Mul" and all(self.is_scale(v) for v in node.inputs)

    def data_input(self, node: ir.Node) -> ir.Value | None:
        """The one input that is neither constant nor a scale."""
        found = [value for value in node.inputs if value is not None and not self.is_scale(value)]
        return found[0] if len(found) == 1 else None

    def is_dequantized(self, value: ir.Value | None) -> bool:
        """Whether a value comes out of a DequantizeLinear."""
        node = None if value is None else value.producer()
        return node is not None and node.op_type == "DequantizeLinear"

    def meets_quantizer(self, value: ir.Value) -> bool:
        """Whether the node behind `value` works on quantized data, so that a QuantizeLinear becomes a part of it."""
        node = value.producer()
        if node is None or node in self.copied:
            return False
        if node.op_type in _CLIPPING and node.inputs[0] is not None and not self.is_dequantized(node.inputs[0]):
            return self.sole_reader(node.inputs[0]) is node and self.meets_quantizer(node.inputs[0])
        return any(self.is_dequantized(v) and not self.is_constant(v) for v in node.inputs if v is not None)
