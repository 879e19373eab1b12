"""Puts other nodes in the place of a layer and leaves everything else as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from edgepack.backends.onnx.constants import VIEWS
from edgepack.backends.onnx.decoded import SUFFIX, decoded
from edgepack.backends.onnx.kinds import KINDS
from edgepack.backends.onnx.sites import Placement, Site, find_sites
from edgepack.backends.onnx.values import Names, take_over
from edgepack.errors import ModelError
from edgepack.model.kinds import linear
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import INT8_BITS
from edgepack.model.types import Array
from edgepack.quantize.grids import PAIRS, pack_pairs

if TYPE_CHECKING:
    import onnx_ir as ir


Stored = dict[str, list[tuple[Array, "ir.Value"]]]
Latents = dict[tuple[object, ...], "ir.Value"]
"""What first factors give that several layers have in common, by what they take and hold."""

PAIRS_NAME = "pairs"
"""Of the table by which bytes of two codes are taken apart; all layers share it."""
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
        latents: of layers that were rewritten before.
    """

    def __init__(
        self,
        model: ir.Model,
        anchor: ir.Node,
        *,
        home: ir.Value,
        prefix: str,
        names: Names,
        stored: Stored,
        latents: Latents,
    ) -> None:
        self._model, self._anchor, self._home = model, anchor, home
        self.prefix, self._names, self._stored = prefix, names, stored
        self.latents = latents
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

    def decoded(self, codes: Array, scales: Array, name: str, dtype: np.dtype[Any], bits: int) -> ir.Value:
        """Integers times their scales, which a runtime folds at load, once for all placements of the layer.

        Args:
            codes: int8 of so many bits.
            scales: float32; they broadcast against the codes.
            name: of the layer's matrix.
            dtype: of the result. The runtime multiplies in float32 alone: another type takes a Cast more.
            bits: 8, or 4 for two codes a byte.
        """
        import onnx_ir as ir

        packed = codes if bits == INT8_BITS else pack_pairs(codes)
        weight = self.constant(packed, f"{name}.int{bits}")
        for _, value in self._stored.get(f"{weight.name}{SUFFIX}", ()):
            return value
        nodes: list[ir.Node] = []

        def step(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
            nodes.append(ir.node(op_type, inputs, attributes))
            nodes[-1].name = nodes[-1].outputs[0].name = self._names.unique(f"{self.prefix}/{op_type}")
            return nodes[-1].outputs[0]

        value = weight if bits == INT8_BITS else self._unpacked(step, weight, codes.shape)
        value = step("Mul", step("Cast", value, to=int(ir.DataType.FLOAT)), self.constant(scales, f"{name}.scale"))
        wanted = ir.DataType.from_numpy(dtype)
        if wanted != ir.DataType.FLOAT:
            value = step("Cast", value, to=int(wanted))
        value.name = self._names.unique(f"{weight.name}{SUFFIX}")
        graph = self._graph(self._home)
        graph.insert_before(self._home.producer() or graph[0], nodes)
        value.type, value.shape = ir.TensorType(wanted), ir.Shape(codes.shape)
        self._stored[f"{weight.name}{SUFFIX}"] = [(codes, value)]
        return value

    def _unpacked(self, step: Callable[..., ir.Value], packed: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """Both codes of every byte are looked up in a table: no operator of old opsets takes a byte apart."""
        import onnx_ir as ir

        known = self._graph(self._home).initializers.get(PAIRS_NAME)
        same = known is not None and known.const_value is not None and np.array_equal(known.const_value.numpy(), PAIRS)
        table = known if known is not None and same else self.constant(PAIRS, PAIRS_NAME)
        pairs = step("Gather", table, step("Cast", packed, to=int(ir.DataType.INT32)))
        size = int(np.prod(shape))
        if size % 2:
            flat = step("Reshape", pairs, self.constant(np.array([size + 1]), "flat"))
            pairs = step("Slice", flat, self.constant(np.array([0]), "start"), self.constant(np.array([size]), "size"))
        return step("Reshape", pairs, self.constant(np.array(shape, np.int64), "sides"))

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


Build = Callable[[Builder, "ir.Value", Placement], "ir.Value"]


def rewrite(
    model: ir.Model, site: Site, build: Build, *, names: Names | None = None, latents: Latents | None = None
) -> None:
    """Replace a layer in all its places, in the given model.

    The output keeps its name, type and shape. The old weight goes unless something else uses it, and so do the views
    that led to it.

    Args:
        model: changed in place.
        site: one of `find_sites(model)`; each can be rewritten once, in any order.
        build: `build(builder, x, placement)` adds the nodes for one placement and returns W x + b, the layer's bias
            included. `x` is in the orientation of the placement's kind.
        names: the names in use, for a caller that rewrites many layers of a large model.
        latents: for one that rewrites layers with a first factor in common, in graph order.
    """
    names = names or Names(model)
    stored: Stored = {}
    for placement in site.placements:
        builder = Builder(
            model,
            placement.node,
            home=site.root,
            prefix=site.layer.name,
            names=names,
            stored=stored,
            latents={} if latents is None else latents,
        )
        _replace(builder, placement, build)


def with_factors(model: ir.Model, factors: Mapping[str, Replacement]) -> ir.Model:
    """A new model in which each named layer is what its kind makes of its factors: two thin ones, `<layer>.B` and then
    `<layer>.A`, in the place of a linear one.

    With a `base` a third one, `<layer>.base`, stands beside the two, and an Add puts them together. Layers whose parts
    are `is_shared` and have the same B on one input have that of the first of them. The given model is
    unchanged; tensors that do not change are shared with it. Factors are stored in the layer's own type. A bias of None
    keeps the layer's own bias.

    Args:
        model: any model.
        factors: by layer name, as in `find_sites(model)`.

    Raises:
        ModelError: no layer has that name, or the factors do not fit it.
    """
    copy = model.clone()
    sites = {site.layer.name: site for site in find_sites(copy)}
    builds = {name: KINDS[_site(sites, name).layer.kind].replace(sites[name], part) for name, part in factors.items()}
    names, latents = Names(copy), Latents()
    for name, site in sites.items():
        if name in builds:
            rewrite(copy, site, builds[name], names=names, latents=latents)
    return copy


def share(sites: Sequence[Site]) -> bool:
    """Whether layers can have the first of their low-rank factors in common: each is a product in one place, of the
    same vectors as they are."""
    places = [site.placements[0] for site in sites]
    first = (places[0].x, places[0].graph, places[0].kind, sites[0].dtype)
    return all(
        site.layer.kind == linear.NAME
        and len(site.placements) == 1
        and not place.swapped
        and (place.x, place.graph, place.kind, site.dtype) == first
        and site.stored_dtype == site.dtype
        for site, place in zip(sites, places, strict=True)
    )


def latent_key(placement: Placement, part: Replacement) -> tuple[object, ...]:
    """Equal for layers with one B and one input."""
    return placement.x, placement.graph, placement.kind, placement.swapped, part.B.shape, part.B.tobytes()


def names_after(model: ir.Model, thin: ir.Model, factors: Mapping[str, Replacement]) -> dict[str, tuple[str, ...]]:
    """What each layer is called in `with_factors(model, factors)`: its own name, or those of B, A and its base.

    A B that layers have in common is called after the first of them.

    By their order in the graph, as a half gets a number where its name is taken, and a layer may get a simpler name
    where another one that shared its weight is gone.
    """
    after = iter(site.layer.name for site in find_sites(thin.clone()))
    names: dict[str, tuple[str, ...]] = {}
    first: dict[tuple[object, ...], str] = {}
    for site in find_sites(model.clone()):
        part = factors.get(site.layer.name)
        key = latent_key(site.placements[0], part) if part is not None and part.structure.is_shared else None
        if key in first:
            names[site.layer.name] = (first[key], *islice(after, 1))
            continue
        names[site.layer.name] = tuple(islice(after, _matrices(part)))
        if key is not None:
            first[key] = names[site.layer.name][0]
    return names


def _matrices(pair: Replacement | None) -> int:
    if pair is None:
        return 1
    return len(pair.tensors)


def _site(sites: Mapping[str, Site], name: str) -> Site:
    if name not in sites:
        close = get_close_matches(name, sites, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"its layers are: {', '.join(sites) or 'none'}"
        raise ModelError(f"the model has no linear layer {name!r}", hint=hint)
    return sites[name]


def _replace(builder: Builder, placement: Placement, build: Build) -> None:
    y, extra = placement.y, placement.extra
    x = _swapped(builder, placement.x) if placement.swapped else placement.x
    out = build(builder, x, placement)
    if extra is not None:
        out = builder.op("Add", [out, _scaled_extra(builder, extra, placement)])
    if out.producer() not in builder.nodes or out.is_graph_output():
        out = builder.op("Identity", [out])
    take_over(y, out)
    old_inputs = [value for old in placement.absorbed for value in old.inputs]
    placement.graph.remove(placement.absorbed, safe=True)
    for value in old_inputs:
        if value is not None:
            drop_unused(value)


def drop_unused(value: ir.Value) -> None:
    """Remove a constant that nothing uses any more, and the views that led to it, or what decoded it."""
    if value.uses() or value.is_graph_output():
        return
    if value.is_initializer():
        graph = value.graph
        if graph is not None and value.name is not None:
            if value.is_graph_input():
                graph.inputs.remove(value)
            del graph.initializers[value.name]
        return
    node = value.producer()
    if node is None or node.graph is None or node.domain != "":
        return
    if node.op_type not in VIEWS | {"Constant"} and decoded(value) is None:
        return
    inputs = node.inputs
    node.graph.remove(node, safe=True)
    for behind in inputs:
        if behind is not None:
            drop_unused(behind)


def _swapped(builder: Builder, x: ir.Value) -> ir.Value:
    import onnx_ir as ir

    swapped = builder.op("Transpose", [x], {"perm": [1, 0]})
    swapped.type = x.type
    if x.shape is not None and len(x.shape) == 2:
        swapped.shape = ir.Shape([x.shape[1], x.shape[0]])
    return swapped


def _scaled_extra(builder: Builder, extra: ir.Value, placement: Placement) -> ir.Value:
    import onnx_ir as ir

    if placement.kind == "conv":
        shape = builder.constant(np.array([-1, *(1,) * placement.spatial], np.int64), f"{builder.prefix}.bias_shape")
        return builder.op("Reshape", [extra, shape])
    if placement.scale == 1.0:
        return extra
    dtype = extra.dtype or ir.DataType.FLOAT
    factor = builder.constant(np.asarray(placement.scale, dtype.numpy()), f"{builder.prefix}.beta")
    return builder.op("Mul", [extra, factor])
