"""Which nodes of an ONNX graph make up one linear layer: the product, and what a runtime fuses into it.

The runtime fuses DequantizeLinear → product → QuantizeLinear into one integer kernel, DynamicQuantizeLinear → product
→ scale → bias into another, and product → activation into a third. A cut through one of these patterns would measure
other kernels than those of the whole model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.backends.onnx.constants import FLOATS, VIEWS, constant_tensor
from edgepack.backends.onnx.decoded import decoded, tensor_of
from edgepack.backends.onnx.kinds import FACTORS, sides
from edgepack.backends.onnx.kinds.linear import CLIPPING
from edgepack.backends.segments import Linear, Placement

if TYPE_CHECKING:
    import onnx_ir as ir

ACTIVATIONS = frozenset({
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Elu", "Selu", "Celu", "Gelu", "FastGelu", "QuickGelu",
    "Sigmoid", "HardSigmoid", "Tanh", "HardSwish", "Swish", "Mish", "Softplus", "Softsign",
})  # fmt: skip
"""Operators on each element alone."""

_MATRIX_VIEWS = VIEWS | {"DequantizeLinear", "QuantizeLinear", "Mul"}
_SCALING = frozenset({"Mul", "Div"})
_ADDING = frozenset({"Add", "Sub"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_PASSING = VIEWS | _SCALING | _ADDING | _QUANTIZERS | {"DequantizeLinear"}
"""What may stand between the two products of a factored layer."""

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


@dataclass(frozen=True, eq=False)
class Product:
    """A node that multiplies `data` by a constant matrix with two `sides`, held by `root`."""

    node: ir.Node
    data: ir.Value
    sides: tuple[int, int]
    root: ir.Value


def products(nodes: Sequence[ir.Node], flow: Flow) -> list[Product]:
    """Every node that multiplies something by a constant matrix, in order of execution."""
    found = []
    for node in nodes:
        if node.op_type not in FACTORS:
            continue
        factors = [value for i in {0, *FACTORS[node.op_type]} if (value := node.inputs[i]) is not None]
        constant = [value for value in factors if flow.is_constant(value)]
        data = [value for value in factors if not flow.is_constant(value)]
        matrix = _matrix(node, constant[0]) if len(constant) == len(data) == 1 else None
        if matrix is not None:
            found.append(Product(node, data[0], *matrix))
    return found


def _matrix(product: ir.Node, value: ir.Value) -> tuple[tuple[int, int], ir.Value] | None:
    """Both sides of a constant matrix of a product and the value that holds it."""
    if (packed := sides(product)) is not None:
        return packed, value
    if (held := decoded(value)) is not None:
        plain = sides(product, held.sides)
        return None if plain is None else (plain, held.codes)
    while (node := value.producer()) is not None and node.op_type != "Constant":
        if node.op_type not in _MATRIX_VIEWS or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    tensor = tensor_of(value)
    plain = None if tensor is None else sides(product, tuple(int(side) for side in tensor.shape.numpy()))
    return None if plain is None else (plain, value)


def linears(found: Sequence[Product], flow: Flow) -> list[Linear]:
    """The products as `edgepack.backends.segments` matches them."""
    index = {product.node: i for i, product in enumerate(found)}
    linked = []
    for product in found:
        first = _path_back(product, flow, index)
        linked.append(Linear(product.sides, id(product.root), None if first is None else index[first[0]]))
    return linked


def _path_back(product: Product, flow: Flow, index: Mapping[ir.Node, int]) -> list[ir.Node] | None:
    """The nodes from the product that feeds this one, that one included, if nothing else takes what is between."""
    path: list[ir.Node] = []
    value: ir.Value | None = product.data
    while value is not None:
        node = value.producer()
        if node is None or (node.op_type != "DynamicQuantizeLinear" and len(set(flow.readers(value))) != 1):
            return None
        path.insert(0, node)
        if node in index:
            return path
        if node.op_type not in _PASSING:
            return None
        value = flow.data_input(node)
    return None


def own_nodes(found: Sequence[Product], placements: Sequence[Placement], flow: Flow) -> dict[ir.Node, int]:
    """The nodes of each placement, as node → index of its placement. Copied nodes belong to none."""
    index = {product.node: i for i, product in enumerate(found)}
    owner: dict[ir.Node, int] = {}
    for number, placement in enumerate(placements):
        nodes = {found[i].node for i in placement.linears}
        for i in placement.linears[1:]:
            nodes.update(_path_back(found[i], flow, index) or ())
        last = found[placement.linears[-1]]
        # A dense matrix with a pair beside it: the Add of both is their end.
        before = _path_back(last, flow, index) if len(placement.linears) == 3 else None
        in_a_row = before is not None and before[0] is found[placement.linears[1]].node
        both = flow.sole_reader(last.node.outputs[0]) if len(placement.linears) == 3 and not in_a_row else None
        if both is not None:
            nodes.add(both)
            last = replace(last, node=both)
        nodes.update(_tail(last, flow))
        owner.update({node: number for node in nodes if node not in flow.copied and node not in owner})
    for number in range(len(placements)):
        _add_heads(owner, number, flow)
    return owner


def _tail(product: Product, flow: Flow) -> list[ir.Node]:
    """The nodes after a product that belong to it: up to the last one whose result the runtime still computes."""
    tail = _followers(product, flow)
    end = tail[-1] if tail else product.node
    follower = flow.sole_reader(end.outputs[0])
    folded = [follower] if follower is not None and _may_fold(follower, flow) else []
    ends = [*range(len(tail), -1, -1), *([len(tail) + 1] if folded else [])]
    whole = [*tail, *folded]
    for end_index in ends:
        last = whole[end_index - 1] if end_index else product.node
        if _may_end(last, flow):
            return whole[:end_index]
    return tail


def _may_end(node: ir.Node, flow: Flow) -> bool:
    value = node.outputs[0]
    if node.op_type == "QuantizeLinear":
        return True  # by structure: the runtime may rename it on its way to another sign
    follower = flow.sole_reader(value)
    if follower is not None and follower.op_type == "QuantizeLinear" and flow.meets_quantizer(value):
        return False
    return node not in flow.copied and flow.survives(value)


def _may_fold(node: ir.Node, flow: Flow) -> bool:
    """Whether the runtime may make a node a property of the product beside it: a view, or one factor for all."""
    if flow.data_input(node) is None:
        return False
    factors = [flow.shape(value) for value in node.inputs if value is not None and flow.is_constant(value)]
    return node.op_type in VIEWS or (
        node.op_type in _SCALING and all(set(shape or ()) <= {1} and shape is not None for shape in factors)
    )


def _followers(product: Product, flow: Flow) -> list[ir.Node]:
    """The chain after a product: scale, bias, activation, and the QuantizeLinear that ends an integer kernel."""
    tail: list[ir.Node] = []
    allowed = {"Cast", *_SCALING} if product.node.op_type.endswith("Integer") else set()
    allowed |= _ADDING | ACTIVATIONS | {"DequantizeLinear", "Identity"}
    value = product.node.outputs[0]
    while (node := flow.sole_reader(value)) is not None and node.domain in ("", "com.microsoft"):
        if node.op_type == "QuantizeLinear":
            if not flow.meets_quantizer(value):
                break
        elif node.op_type == "Cast" and _is_float_cast(node):
            pass
        elif node.op_type not in allowed or flow.data_input(node) is not value:
            break
        if node.op_type in _ADDING:
            if not _is_vector(node, value, flow):
                break
            allowed -= _ADDING | _SCALING
        elif node.op_type in _SCALING:
            allowed -= _SCALING
        elif node.op_type in ACTIVATIONS:
            allowed = {"DequantizeLinear"} if flow.meets_quantizer(node.outputs[0]) else set()
        tail.append(node)
        value = node.outputs[0]
    while tail and tail[-1].op_type == "DequantizeLinear":
        tail.pop()
    return tail


def _is_vector(node: ir.Node, value: ir.Value, flow: Flow) -> bool:
    """Whether what a node adds to `value` has one axis, all others 1, as a bias has."""
    for other in node.inputs:
        if other is None or other is value:
            continue
        if sum(side != 1 for side in flow.shape(other) or ()) > 1:
            return False
    return True


def _is_float_cast(node: ir.Node) -> bool:
    """From one float type to another, as between a float16 model and its float32 products."""
    import onnx_ir as ir

    value = node.inputs[0]
    known = value is not None and value.dtype is not None and value.dtype.name in FLOATS
    return known and ir.DataType(node.attributes.get_int("to", 0)).name in FLOATS


def _add_heads(owner: dict[ir.Node, int], number: int, flow: Flow) -> None:
    """Claim the nodes before a placement that work for it alone: quantizers, scales, casts, folded views."""
    waiting = [node for node, held in owner.items() if held == number]
    while waiting:
        for value in waiting.pop().inputs:
            node = None if value is None else value.producer()
            while node is not None and node in flow.copied and node not in flow.constant:
                value = node.inputs[0]
                node = None if value is None else value.producer()
            if node is None or value is None or node in flow.constant or node in owner:
                continue
            exclusive = all(owner.get(r) == number if r else False for v in node.outputs for r in flow.readers(v))
            if exclusive and _serves(node, value, flow):
                owner[node] = number
                waiting.append(node)


def _serves(node: ir.Node, value: ir.Value, flow: Flow) -> bool:
    """Whether a node whose result one layer takes is a part of the layer and not of what comes before."""
    if node.op_type == "QuantizeLinear":
        x = node.inputs[0]
        return x is None or flow.sole_reader(x) is not node or not flow.meets_quantizer(x)
    if node.op_type == "DynamicQuantizeLinear" or flow.is_scale(value):
        return True
    if _may_fold(node, flow) and not flow.survives(value):
        return True
    return node.op_type == "Cast" and _is_float_cast(node)


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
        if node.op_type in CLIPPING and node.inputs[0] is not None and not self.is_dequantized(node.inputs[0]):
            return self.sole_reader(node.inputs[0]) is node and self.meets_quantizer(node.inputs[0])
        return any(self.is_dequantized(v) and not self.is_constant(v) for v in node.inputs if v is not None)
