"""Puts other nodes in the place of a linear layer and leaves everything else as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import ModelError
from edgepack.model.replacement import Replacement
from edgepack.onnxgraph.builder import Builder, Stored
from edgepack.onnxgraph.constants import VIEWS
from edgepack.onnxgraph.names import Names
from edgepack.onnxgraph.observe import ObservedInput, with_observed_inputs, with_outputs
from edgepack.onnxgraph.sites import Placement, Site, find_sites
from edgepack.onnxgraph.values import take_over
from edgepack.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Builder", "ObservedInput", "names_after", "rewrite", "with_factors", "with_observed_inputs", "with_outputs"]

Build = Callable[[Builder, "ir.Value", Placement], "ir.Value"]


def rewrite(model: ir.Model, site: Site, build: Build, *, names: Names | None = None) -> None:
    """Replace a layer in all its places, in the given model.

    The output keeps its name, type and shape. The old weight goes unless something else uses it, and so do the views
    that led to it.

    Args:
        model: changed in place.
        site: one of `find_sites(model)`; each can be rewritten once, in any order.
        build: `build(builder, x, placement)` adds the nodes for one placement and returns W x + b, the layer's bias
            included. `x` is in the orientation of the placement's kind.
        names: the names in use, for a caller that rewrites many layers of a large model.
    """
    names = names or Names(model)
    stored: Stored = {}
    for placement in site.placements:
        builder = Builder(model, placement.node, home=site.root, prefix=site.layer.name, names=names, stored=stored)
        _replace(builder, placement, build)


def with_factors(model: ir.Model, factors: Mapping[str, Replacement]) -> ir.Model:
    """A new model in which each named layer is two thin ones, `<layer>.B` and then `<layer>.A`.

    With a `base` a third one, `<layer>.base`, stands beside the two, and an Add puts them together. The given model is
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
    for name, pair in factors.items():
        _check(sites, name, pair)
    names = Names(copy)
    for name, pair in factors.items():
        build = _pair(sites[name], pair)
        if "base" in pair.tensors:
            build = _beside(sites[name], pair.base, build)
        rewrite(copy, sites[name], build, names=names)
    return copy


def names_after(model: ir.Model, thin: ir.Model, factors: Mapping[str, Replacement]) -> dict[str, tuple[str, ...]]:
    """What each layer is called in `with_factors(model, factors)`: its own name, or those of B, A and its base.

    By their order in the graph, as a half gets a number where its name is taken, and a layer may get a simpler name
    where another one that shared its weight is gone.
    """
    after = iter(site.layer.name for site in find_sites(thin.clone()))
    names = [site.layer.name for site in find_sites(model.clone())]
    return {name: tuple(islice(after, _matrices(factors.get(name)))) for name in names}


def _matrices(pair: Replacement | None) -> int:
    if pair is None:
        return 1
    return len(pair.tensors)


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
            _drop_unused(value)


def _drop_unused(value: ir.Value) -> None:
    """Remove a constant that nothing uses any more, and the views that led to it."""
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
    if node is None or node.graph is None or node.domain != "" or node.op_type not in VIEWS | {"Constant"}:
        return
    inputs = node.inputs
    node.graph.remove(node, safe=True)
    for behind in inputs:
        if behind is not None:
            _drop_unused(behind)


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


def _check(sites: Mapping[str, Site], name: str, pair: Replacement) -> None:
    if name not in sites:
        close = get_close_matches(name, sites, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"its layers are: {', '.join(sites) or 'none'}"
        raise ModelError(f"the model has no linear layer {name!r}", hint=hint)
    layer = sites[name].layer
    sides = layer.out_features, layer.in_features
    if (*pair.A.shape, *pair.B.shape) != (sides[0], pair.rank, pair.rank, sides[1]):
        raise ModelError(
            f"factors of layer {name!r}: found A {pair.A.shape} and B {pair.B.shape}, "
            f"expected ({sides[0]}, r) and (r, {sides[1]})"
        )
    if "base" in pair.tensors and pair.base.shape != sides:
        raise ModelError(f"factors of layer {name!r}: found a matrix {pair.base.shape} beside them, expected {sides}")
    if pair.bias is not None and pair.bias.shape != sides[:1]:
        raise ModelError(f"factors of layer {name!r}: found a bias {pair.bias.shape}, expected {sides[:1]}")


def _pair(site: Site, pair: Replacement) -> Build:
    """B, then A with the bias."""
    bias = site.layer.bias if pair.bias is None else pair.bias

    def put(builder: Builder, array: Array, suffix: str) -> ir.Value:
        return _put(builder, site, array, suffix)

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        latent = product(builder, x, pair.B, "B", placement, None)
        return product(builder, latent, pair.A, "A", placement, bias)

    def product(
        builder: Builder, x: ir.Value, matrix: Array, suffix: str, placement: Placement, bias: Array | None
    ) -> ir.Value:
        if placement.kind == "conv":
            weight = put(builder, matrix.reshape(*matrix.shape, *(1,) * placement.spatial), suffix)
            return builder.op("Conv", [x, weight] if bias is None else [x, weight, put(builder, bias, "bias")])
        if placement.kind == "columns":
            y = builder.op("MatMul", [put(builder, matrix, suffix), x])
            bias = bias if bias is None or placement.rank == 1 else bias[:, None]
        else:
            weight = put(builder, matrix.T, suffix)
            if bias is not None and placement.node.op_type == "Gemm":
                return builder.op("Gemm", [x, weight, put(builder, bias, "bias")])
            y = builder.op("MatMul", [x, weight])
        return y if bias is None else builder.op("Add", [y, put(builder, bias, "bias")])

    return build


def _beside(site: Site, base: Array, pair: Build) -> Build:
    """The pair, with the bias, and then a dense matrix on the same input."""

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        y = pair(builder, x, placement)
        if placement.kind == "conv":
            weight = _put(builder, site, base.reshape(*base.shape, *(1,) * placement.spatial), "base")
            return builder.op("Add", [y, builder.op("Conv", [x, weight])])
        if placement.kind == "columns":
            return builder.op("Add", [y, builder.op("MatMul", [_put(builder, site, base, "base"), x])])
        return builder.op("Add", [y, builder.op("MatMul", [x, _put(builder, site, base.T, "base")])])

    return build


def _put(builder: Builder, site: Site, array: Array, suffix: str) -> ir.Value:
    """A constant `<layer>.<suffix>`, stored and computed with as the layer's weight was."""
    import onnx_ir as ir

    stored = builder.constant(np.ascontiguousarray(array, site.stored_dtype), f"{site.layer.name}.{suffix}")
    if site.stored_dtype == site.dtype:
        return stored
    return builder.op("Cast", [stored], {"to": int(ir.DataType.from_numpy(site.dtype))})
