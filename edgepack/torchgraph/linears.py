"""Where an fx graph multiplies by a constant matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgepack.model.kinds.conv import ConvGeometry, Patches
from edgepack.model.kinds.kind import EVERY_POSITION, Rows
from edgepack.model.types import Array

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule, Node

Kind = Literal["linear", "left", "addmm", "conv"]

MOST_AXES = 4
"""Of a kernel with several places: those that other graphs know as layers."""

LAYER = "edgepack.layer"
"""Where a node notes the name of the layer that it applies, in a graph whose layers are named."""


@dataclass(frozen=True)
class TorchLinear:
    """One node that computes y = W x + b with a constant W.

    Attributes:
        node: the fx node.
        name: the parameter that W comes from ("encoder.0.linear1.weight").
        kind: "linear": x Wᵀ (linear, mm, matmul); "left": W x; "addmm"; "conv": a convolution.
        weight: (out, in) float32; of a convolution (out, in · places of the kernel).
        bias: (out,) float32, or None where the node adds none or one that is not a constant vector.
        input: the node that gives x.
        bias_input: the node that gives the bias, None if there is none.
        kernel: sizes of a convolution's.
    """

    node: Node
    name: str
    kind: Kind
    weight: Array
    bias: Array | None
    input: Node
    bias_input: Node | None
    kernel: tuple[int, ...] = ()

    @property
    def axis(self) -> int:
        """Of the features, in the node's input and in its output."""
        if self.kind == "conv":
            return 1
        return -2 if self.kind == "left" and self.input.meta["val"].dim() > 1 else -1

    @property
    def geometry(self) -> ConvGeometry | None:
        """Of a convolution; None for what multiplies the features at every position, each once."""
        if self.kind != "conv":
            return None
        strides, dilations = (self._sizes(place, 1) for place in (3, 5))
        before, behind = self._pads(dilations)
        if set(self.kernel) | set(strides) == {1} and not any((*before, *behind)):
            return None
        return ConvGeometry("Conv", self.kernel, strides, dilations, (*before, *behind))

    @property
    def rows(self) -> Rows:
        """How the vectors are taken from its input."""
        geometry = self.geometry
        return EVERY_POSITION if geometry is None else Patches(geometry)

    def _pads(self, dilations: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Zeros before and behind each axis of a convolution's input."""
        given = self.node.args[4] if len(self.node.args) > 4 else 0
        if given == "same":
            totals = [(size - 1) * step for size, step in zip(self.kernel, dilations, strict=True)]
            return tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
        pads = (0,) * len(self.kernel) if given == "valid" else self._sizes(4, 0)
        return pads, pads

    def _sizes(self, place: int, default: int) -> tuple[int, ...]:
        """An argument of a convolution along each axis; one number stands for all."""
        value = self.node.args[place] if len(self.node.args) > place else default
        return tuple(int(one) for one in np.broadcast_to(np.ravel(value), len(self.kernel)))


def find_linears(module: GraphModule) -> list[TorchLinear]:
    """The layers of a graph that multiply by a matrix, in order of execution.

    Found: aten.linear, mm, matmul and addmm with a constant matrix (possibly transposed, sliced or chunked out of a
    packed parameter), and convolutions without groups, along three axes only those whose kernel has one element.
    """
    constants = Constants(module)
    found = (_linear_at(node, constants) for node in module.graph.nodes if node.op == "call_function")
    return [site for site in found if site is not None]


class Constants:
    """Values of the nodes that depend on nothing but the graph's own parameters; computed when asked for."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._values: dict[Node, Any] = {}

    def tensor(self, node: object) -> Tensor | None:
        """The node's constant tensor, None if it depends on an input or is not a tensor."""
        import torch

        value = self._value(node)
        return value if isinstance(value, torch.Tensor) else None

    def name(self, node: Node) -> str:
        """The first parameter that the constant is made from."""
        while node.op != "get_attr":
            node = node.all_input_nodes[0]
        return str(node.target)

    def _value(self, node: object) -> Any:
        import torch
        from torch.fx import Node

        if not isinstance(node, Node):
            return None
        if node not in self._values:
            with torch.no_grad():
                self._values[node] = self._compute(node)
        return self._values[node]

    def _compute(self, node: Node) -> Any:
        import operator

        import torch
        from torch.fx.node import map_arg

        if node.op == "get_attr":
            value = attribute(self._module, str(node.target))
            return value.detach() if isinstance(value, torch.Tensor) else None
        inputs = node.all_input_nodes
        if node.op != "call_function" or not inputs or any(self._value(n) is None for n in inputs):
            return None
        target: Callable[..., Any] = node.target
        if target is not operator.getitem and not _is_pure(target):
            return None
        return target(*map_arg(node.args, self._value), **map_arg(node.kwargs, self._value))


def _is_pure(target: object) -> bool:
    import torch

    if not isinstance(target, torch._ops.OpOverload) or target.namespace not in ("aten", "prims"):
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable


def attribute(module: GraphModule, path: str) -> object:
    """What a get_attr node of this target gives."""
    value: object = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _linear_at(node: Node, constants: Constants) -> TorchLinear | None:
    import torch

    aten = torch.ops.aten
    if node.target is aten.linear.default:
        return _site(node, constants, "linear", x=0, weight=1, bias=2)
    if node.target in (aten.mm.default, aten.matmul.default):
        return _site(node, constants, "linear", x=0, weight=1, transposed=True) or _site(
            node, constants, "left", x=1, weight=0
        )
    if node.target is aten.addmm.default and not node.kwargs:
        return _site(node, constants, "addmm", x=1, weight=2, bias=0, transposed=True)
    packets = (aten.conv1d, aten.conv2d, aten.conv3d)
    if any(node.target in (packet.default, packet.padding) for packet in packets):
        groups = node.args[6] if len(node.args) > 6 else 1
        return None if groups != 1 else _site(node, constants, "conv", x=0, weight=1, bias=2)
    return None


def _site(
    node: Node,
    constants: Constants,
    kind: Kind,
    *,
    x: int,
    weight: int,
    bias: int | None = None,
    transposed: bool = False,
) -> TorchLinear | None:
    from torch.fx import Node

    source, matrix = node.args[x], node.args[weight]
    value = constants.tensor(matrix)
    if value is None or not isinstance(source, Node) or not isinstance(matrix, Node) or not value.is_floating_point():
        return None
    kernel = tuple(value.shape[2:]) if kind == "conv" else ()
    if kind == "conv":
        if value.dim() > MOST_AXES and any(size != 1 for size in value.shape[2:]):
            return None
        value = value.flatten(1)
    if value.dim() != 2 or 0 in value.shape or constants.tensor(source) is not None:
        return None
    bias_node = node.args[bias] if bias is not None and len(node.args) > bias else None
    bias_value = _constant_bias(bias_node, constants, value.shape[1 if transposed else 0])
    if kind == "conv" and bias_node is not None and bias_value is None:
        return None
    return TorchLinear(
        node=node,
        name=constants.name(matrix),
        kind=kind,
        weight=_float32(value.T if transposed else value),
        bias=bias_value,
        input=source,
        bias_input=bias_node if isinstance(bias_node, Node) else None,
        kernel=kernel,
    )


def _constant_bias(node: object, constants: Constants, size: int) -> Array | None:
    value = constants.tensor(node)
    return _float32(value) if value is not None and tuple(value.shape) == (size,) else None


def _float32(value: Tensor) -> Array:
    array: Array = value.float().numpy()
    return array.astype(np.float32, copy=False)
