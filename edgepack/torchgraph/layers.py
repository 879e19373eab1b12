"""The layers of a torch program, named by their parameters; each of their nodes knows which layer it applies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.model.kinds.conv import ConvGeometry, conv_layer
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.kinds.matrix import linear_ops
from edgepack.model.kinds.recurrent import RecurrentGeometry, recurrent_layer
from edgepack.model.kinds.stages import roles
from edgepack.model.layer import Geometry, Layer, distinct
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.torchgraph.factor import Site, copied, product_name, replaced
from edgepack.torchgraph.linears import LAYER, MOST_AXES, Constants, attribute, find_linears
from edgepack.torchgraph.match import weight_digest
from edgepack.torchgraph.recurrent import TorchRecurrent, find_recurrent

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule, Node

_Key = tuple[int, int, str, Geometry | None]


def name_layers(module: GraphModule) -> tuple[Layer, ...]:
    """Every layer in order of execution; its name is noted on each node that applies it.

    A weight that several nodes use on the same axis is one layer. Biases that differ between them stay outside of it. A
    constant that is added to a node's result, which nothing else sees, is its bias.

    A convolution along three axes that skips inputs, or pads them, is left alone.

    Returns:
        Layers with the name of their parameter where it is theirs alone, else with that of the first node.
    """
    constants = Constants(module)
    groups: dict[_Key, list[Site]] = {}
    for site in _sites(module):
        if not isinstance(site.geometry, ConvGeometry) or len(site.kernel) < MOST_AXES - 1:
            groups.setdefault(_key(module, site), []).append(site)
    names = _names(list(groups.values()))
    for name, group in zip(names, groups.values(), strict=True):
        for site in group:
            site.node.meta[LAYER] = name
    tables = _tables(module, constants)
    return tuple(
        replace(_layer(name, group, constants), tied=key[0] in tables)
        for name, (key, group) in zip(names, groups.items(), strict=True)
    )


def _tables(module: GraphModule, constants: Constants) -> set[int]:
    """Where the parameters lie whose rows are looked up."""
    import torch

    lookups = (node for node in module.graph.nodes if node.target is torch.ops.aten.embedding.default)
    found = (constants.tensor(node.args[0]) for node in lookups)
    return {table.data_ptr() for table in found if table is not None}


def _sites(module: GraphModule) -> list[Site]:
    """The nodes that apply a layer, in order of execution."""
    places = {node: place for place, node in enumerate(module.graph.nodes)}
    return sorted([*find_linears(module), *find_recurrent(module)], key=lambda site: places[site.node])


def placed(module: GraphModule) -> dict[str, list[Site]]:
    """The nodes of every layer of a graph whose layers are named, by name and in order of execution."""
    found: dict[str, list[Site]] = {}
    for site in _sites(module):
        if (name := site.node.meta.get(LAYER)) is not None:
            found.setdefault(name, []).append(site)
    return found


def with_parts(
    module: GraphModule, layers: Sequence[Layer], parts: Mapping[str, Replacement]
) -> tuple[GraphModule, Mapping[str, tuple[str, ...]]]:
    """A copy of a graph whose layers are named, with parts in the place of some; its products are layers again.

    Args:
        module: not changed.
        layers: of the graph.
        parts: by layer name.

    Returns:
        The copy, and the names in it of each layer: its own, or those of its products in order of execution.
    """
    copy = copied(module)
    sites = placed(copy)
    made = replaced(copy, sites, {layer.name: layer.bias for layer in layers}, parts)
    return made, {name: _products(name, parts.get(name)) for name in sites}


def _products(name: str, part: Replacement | None) -> tuple[str, ...]:
    if part is None or not part.structure.ranks:
        return (name,)
    if not part.structure.of_a_matrix:
        return tuple(product_name(name, role) for role in roles(part.structure))
    ops = linear_ops(len(part.A), part.B.shape[1], part.structure, 1)
    return tuple(product_name(name, op.role) for op in ops)


def depths(module: GraphModule, names: Collection[str]) -> dict[str, int]:
    """By layer name: the most of the named layers that lie on a path from the graph's inputs to this one.

    Layers of one depth do not feed each other. A layer that is used in several places counts where it lies deepest.

    Args:
        names: of layers of a graph whose layers are named.
    """
    from torch.fx import GraphModule

    found: dict[str, int] = {}
    behind: dict[Node, int] = {}
    deepest = 0
    for node in module.graph.nodes:
        # A branch or a loop may read anything that stands before it.
        inner = any(isinstance(getattr(module, str(n.target), None), GraphModule) for n in node.all_input_nodes)
        depth = deepest if inner else max((behind[n] for n in node.all_input_nodes), default=0)
        name = node.meta.get(LAYER)
        if name in names:
            found[name] = max(found.get(name, 0), depth)
            depth += 1
        behind[node] = depth
        deepest = max(deepest, depth)
    return found


def vectors(module: GraphModule) -> list[Array]:
    """The float vectors among the constants of a graph, as float64."""
    import torch

    tensors = _constants(module)
    flat = [t for t in tensors if t.is_floating_point() and t.numel() == max((*t.shape, 0))]
    return [t.detach().to(torch.float64).reshape(-1).numpy() for t in flat]


def weight_bytes(module: GraphModule) -> int:
    """Bytes of all constants of a graph."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _constants(module))


def _constants(module: GraphModule) -> list[Tensor]:
    """Each once, in order of first use."""
    import torch

    targets = dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr")
    values = [value for target in targets if isinstance(value := attribute(module, target), torch.Tensor)]
    return list({value.data_ptr() or id(value): value for value in values}.values())


def _key(module: GraphModule, site: Site) -> _Key:
    root = attribute(module, site.name)
    return root.data_ptr(), site.axis, weight_digest(site.weight), site.geometry  # type: ignore[attr-defined]


def _names(groups: Sequence[Sequence[Site]]) -> list[str]:
    """The parameter's name if it is one layer's alone, else the node's."""
    roots = Counter(group[0].name for group in groups)
    firsts = [group[0] for group in groups]
    return distinct(first.name if roots[first.name] == 1 else first.node.name for first in firsts)


def _layer(name: str, group: Sequence[Site], constants: Constants) -> Layer:
    biases = [_bias(site, constants) for site in group]
    shared = all(_equal(biases[0], other) for other in biases)
    first = group[0]
    bias = biases[0] if shared else None
    match first.geometry:
        case ConvGeometry() as geometry:
            return conv_layer(name, first.weight, bias, geometry, len(group))
        case RecurrentGeometry() as cells:
            return recurrent_layer(name, first.weight, bias, cells, len(group))
    rows = first.input.meta["val"].dim()
    operator = "Conv" if first.kind == "conv" else "Gemm" if rows == 2 else "MatMul"
    return linear_layer(name, first.weight, bias, operator, len(group))


def _equal(a: Array | None, b: Array | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _bias(site: Site, constants: Constants) -> Array | None:
    """The node's own constant bias, or one that is added to its result alone."""
    import torch

    if isinstance(site, TorchRecurrent) or site.bias_input is not None or len(site.node.users) != 1:
        return site.bias
    (add,) = site.node.users
    if add.target not in (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor) or add.kwargs:
        return None
    value = constants.tensor(next((arg for arg in add.args if arg is not site.node), None))
    if value is None or not value.is_floating_point():
        return None
    rank, out = site.node.meta["val"].dim(), len(site.weight)
    axis = site.axis % rank - rank
    for place, size in enumerate(reversed(value.shape), start=1):
        if place > rank or size not in ((1, out) if place == -axis else (1,)):
            return None
    bias: Array = value.detach().float().reshape(-1).expand(out).contiguous().numpy()
    return bias
