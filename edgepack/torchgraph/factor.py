"""Put thin products, or another weight, in the place of a dense one in an fx graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import ModelError
from edgepack.model.kinds.conv import ConvGeometry
from edgepack.model.kinds.stages import Stage, kernels
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.torchgraph.linears import LAYER, TorchLinear
from edgepack.torchgraph.match import LayerKey, layer_key, match_layers
from edgepack.torchgraph.recurrent import LAYERS, TorchRecurrent

if TYPE_CHECKING:
    from torch import Tensor, dtype
    from torch.fx import Graph, GraphModule, Node

Site = TorchLinear | TorchRecurrent
"""A node that applies a layer."""


def with_factors(
    module: GraphModule, layers: Sequence[Layer | LayerKey], factors: Mapping[str, Replacement]
) -> GraphModule:
    """A copy of the graph in which the named layers are pairs of thin layers; untouched parameters are shared.

    The bias: a layer may carry its bias itself in one graph and in a following add in the other. So what goes into the
    torch node is its own bias plus what factoring changed, `factors.bias − layer.bias`; where both graphs have the same
    bias, `factors.bias` as it is.

    Args:
        module: a graph as `flat_module` gives it; not changed.
        layers: at least the layers named in `factors`.
        factors: by layer name.

    Raises:
        ModelError: a factored layer has no matching node, or its factors have other shapes.
    """
    keys = {layer.name: layer if isinstance(layer, LayerKey) else layer_key(layer) for layer in layers}
    copy = copied(module)
    matches = match_layers(copy, list(keys.values()))
    lost = [name for name in factors if name not in matches.nodes]
    if lost:
        raise ModelError(
            f"no torch layer has the weights of {', '.join(lost)}",
            hint="keep this layer dense, or build only the ONNX file",
        )
    return replaced(copy, matches.nodes, {name: keys[name].bias for name in factors}, factors)


def replaced(
    module: GraphModule,
    sites: Mapping[str, Sequence[Site]],
    biases: Mapping[str, Array | None],
    parts: Mapping[str, Replacement],
) -> GraphModule:
    """The graph with parts in the place of layers, all of whose places share them; what it no longer uses is gone.

    Args:
        module: changed.
        sites: at least those of the layers named in `parts`.
        biases: of these layers, as they are meant in `parts`.
        parts: by layer name.

    Raises:
        ModelError: a part has another shape than its layer.
    """
    import torch

    for index, (name, part) in enumerate(parts.items()):
        for site in sites[name]:
            _Place(module, site, f"edgepack_{index}").take(name, part, biases[name])
    module.graph.eliminate_dead_code()
    module.graph.lint()
    # A second construction keeps only the parameters that the graph still uses.
    return torch.fx.GraphModule(module, module.graph, class_name="Factored")


def product_name(layer: str, role: str) -> str:
    """What one of several products in the place of a layer is called."""
    return f"{layer}.{role}"


def copied(module: GraphModule) -> GraphModule:
    """A graph of its own; parameters are shared."""
    import torch

    return torch.fx.GraphModule(module, _copied(module), class_name="Factored")


def _copied(module: GraphModule) -> Graph:
    from torch.fx import Graph

    graph = Graph()
    result = graph.graph_copy(module.graph, val_map={}, return_output_node=True)
    if result is not None:
        outputs, old = result
        graph.output(outputs).meta.update(old.meta)
    return graph


@dataclass(frozen=True)
class _Place:
    """A node that other nodes take the place of.

    Attributes:
        prefix: names the new parameters: uses of the same layer share them.
    """

    module: GraphModule
    site: Site
    prefix: str

    def take(self, name: str, part: Replacement, bias: Array | None) -> None:
        """Put the products of a part there, and what is summed of them.

        Args:
            name: of the layer.
            part: with a bias for a layer that has the next.
            bias: of the layer as `part` means it.
        """
        found = self._checked(name, part)
        site, graph, structure = self.site, self.module.graph, part.structure
        kept, own = _new_bias(site, bias, part)
        with graph.inserting_before(site.node):
            if isinstance(site, TorchRecurrent):
                self._with_inputs(site, part, own)
                return
            if not structure.of_a_matrix:
                new = self._in_stages(found, own)
            elif structure.is_low_rank:
                new = self._product(self._product(site.input, "B", part.B), "A", part.A, own, first=False)
            elif structure.is_correction:
                beside = self._product(self._product(site.input, "B", part.B), "A", part.A, first=False)
                new = self._sum(self._product(site.input, "base", part.base, own), beside)
            else:
                new = self._product(site.input, "weight", part.weight, own)
            if kept is not None:
                new = self._sum(new, kept)
        site.node.replace_all_uses_with(new)
        graph.erase_node(site.node)

    def _checked(self, name: str, part: Replacement) -> tuple[tuple[Stage, Array], ...]:
        """The stages of a structure that takes a kernel apart, with their kernels; none for any other one.

        Raises:
            ModelError: the part does not fit the layer.
        """
        shape, structure, geometry = self.site.weight.shape, part.structure, self.site.geometry
        if not structure.of_a_matrix:
            if not isinstance(geometry, ConvGeometry):
                raise ModelError(f"{name}: found {structure}, but it is no convolution of a larger kernel")
            try:
                return kernels(part, shape[0], shape[1] // prod(geometry.kernel), geometry)
            except ValueError as err:
                raise ModelError(f"{name}: {err}") from err
        ranked = bool(structure.ranks)
        found = (len(part.A), part.B.shape[1]) if ranked else part.weight.shape
        if found != shape or (ranked and part.A.shape[1] != part.B.shape[0]):
            shapes = f"factors {part.A.shape} × {part.B.shape}" if ranked else f"a weight {found}"
            verb = "do" if ranked else "does"
            raise ModelError(f"{name}: {shapes} {verb} not fit a layer of {shape}")
        return ()

    def _in_stages(self, found: Sequence[tuple[Stage, Array]], bias: Array | None) -> Node:
        """Convolutions in a row, each along its own axes."""
        site, x = self.site, self.site.input
        padding = site.node.args[4] if len(site.node.args) > 4 else 0
        sizes, given = list(_shape(x)[2:]), _shape(site.node)[2:]
        for stage, kernel in found:
            own, last = stage.geometry, stage is found[-1][0]
            before = own.pads[: len(own.kernel)]
            pads = padding if isinstance(padding, str) else list(before)
            weight = self._parameter(stage.role, kernel)
            args = (x, weight, self._bias(bias if last else None), list(own.strides), pads, list(own.dilations))
            x = self.module.graph.call_function(site.node.target, (*args, own.groups))
            along = zip(own.kernel, own.strides, before, sizes, given, strict=True)
            sizes = [size if (k, step, pad) == (1, 1, 0) else to for k, step, pad, size, to in along]
            self._describe(x, stage.rows, sizes)
            if (name := site.node.meta.get(LAYER)) is not None:
                x.meta[LAYER] = product_name(name, stage.role)
        return x

    def _product(self, x: Node, role: str, weight: Array, bias: Array | None = None, *, first: bool = True) -> Node:
        """W x + b as the old node computes it. The first product on its input has its kernel's sizes, strides and
        paddings as well."""
        import torch

        aten, site = torch.ops.aten, self.site
        call = self.module.graph.call_function
        if site.kind == "conv":
            sizes = site.kernel if first else (1,) * len(site.kernel)
            kernel = weight.reshape(len(weight), -1, *sizes)
            geometry = site.node.args[3:] if first else ()
            new = call(site.node.target, (x, self._parameter(role, kernel), self._bias(bias), *geometry))
        elif site.kind == "left":
            new = call(aten.matmul.default, (self._parameter(role, weight), x))
            if bias is not None:
                column = bias if len(_shape(site.node)) == 1 else bias[:, None]
                new = call(aten.add.Tensor, (new, self._bias(column)))
        else:
            new = call(aten.linear.default, (x, self._parameter(role, weight), self._bias(bias)))
        self._describe(new, len(weight))
        if (name := site.node.meta.get(LAYER)) is not None:
            new.meta[LAYER] = name if role == "weight" else product_name(name, role)
        return new

    def _with_inputs(self, site: TorchRecurrent, part: Replacement, bias: Array | None) -> None:
        """Give cells other weights for their inputs, and for low-rank factors a product in front of them."""
        node, is_pair = site.node, part.structure.is_low_rank
        role, matrix = ("A", part.A) if is_pair else ("weight", part.weight)
        weights: list[Node] = []
        for place, way in enumerate(site.by_directions(matrix)):
            of_state, *biases = site.of_state(place)
            weights += [self._parameter(role, way), of_state]
            if bias is not None:
                own = site.by_directions(bias)[place]
                biases = [self._parameter("bias", own), *(biases[1:] or [self._parameter("zeros", np.zeros_like(own))])]
            weights += biases
        x = self._product(site.input, "B", part.B) if is_pair else site.input
        node.args = (x, node.args[1], weights, bias is not None, *node.args[LAYERS:])
        if is_pair and (name := node.meta.get(LAYER)) is not None:
            node.meta[LAYER] = product_name(name, role)

    def _sum(self, one: Node, other: Node) -> Node:
        import torch

        new = self.module.graph.call_function(torch.ops.aten.add.Tensor, (one, other))
        self._describe(new, len(self.site.weight))
        return new

    def _describe(self, node: Node, features: int, sizes: Sequence[int] = ()) -> None:
        """Notes of the old node, and the shape of one with so many features, and so many places along each axis."""
        meta = self.site.node.meta
        node.meta.update({k: v for k, v in meta.items() if k in ("nn_module_stack", "stack_trace", "tensor_meta")})
        value = _value(self.site.node)
        shape = list(value.shape)
        shape[self.site.axis] = features
        shape[len(shape) - len(sizes) :] = sizes
        if shape != list(value.shape):
            node.meta.pop("tensor_meta", None)
            value = value.new_empty(shape)
        node.meta["val"] = value

    def _bias(self, bias: Array | None) -> Node | None:
        return None if bias is None else self._parameter("bias", bias)

    def _parameter(self, role: str, value: Array) -> Node:
        """A get_attr node for `value`; an equal parameter of the same name is reused."""
        import torch

        tensor = torch.from_numpy(np.array(value, dtype=np.float32)).to(_dtype(self.site.node))
        name = unique = f"{self.prefix}_{role}"
        number = 0
        while (old := getattr(self.module, unique, None)) is not None and not torch.equal(old, tensor):
            number += 1
            unique = f"{name}_{number}"
        if old is None:
            self.module.register_parameter(unique, torch.nn.Parameter(tensor, requires_grad=False))
        return self.module.graph.get_attr(unique)


def _new_bias(site: Site, theirs: Array | None, part: Replacement) -> tuple[Node | None, Array | None]:
    """(the old bias node if it has to be added apart, the bias of the last product)."""
    own = site.bias
    kept = site.bias_input if own is None else None
    if own is not None and theirs is not None and np.array_equal(own, theirs):
        return kept, part.bias
    if part.bias is None and theirs is None:
        return kept, own
    change = _vector(part.bias, site) - _vector(theirs, site)
    total = _vector(own, site) + change
    return kept, total.astype(np.float32) if own is not None or total.any() else None


def _vector(bias: Array | None, site: Site) -> Array:
    return np.zeros(site.weight.shape[0]) if bias is None else bias.astype(np.float64)


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(_value(node).shape)


def _dtype(node: Node) -> dtype:
    return _value(node).dtype


def _value(node: Node) -> Tensor:
    """What a node gives, without its numbers; the first of several."""
    value = node.meta["val"]
    first: Tensor = value[0] if isinstance(value, Sequence) else value
    return first
