"""Put two thin matmuls in the place of a dense one in an fx graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import ModelError
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.torchgraph.linears import TorchLinear
from edgepack.torchgraph.match import LayerKey, layer_key, match_layers

if TYPE_CHECKING:
    from torch import dtype
    from torch.fx import Graph, GraphModule, Node


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
    import torch

    keys = {layer.name: layer if isinstance(layer, LayerKey) else layer_key(layer) for layer in layers}
    copy = torch.fx.GraphModule(module, _copied(module), class_name="Factored")
    matches = match_layers(copy, list(keys.values()))
    lost = [name for name in factors if name not in matches.nodes]
    if lost:
        raise ModelError(
            f"no torch layer has the weights of {', '.join(lost)}",
            hint="keep this layer dense, or build only the ONNX file",
        )
    for index, (name, pair) in enumerate(factors.items()):
        for site in matches.nodes[name]:
            _replace(copy, site, keys[name], pair, f"edgepack_{index}")
    copy.graph.eliminate_dead_code()
    copy.graph.lint()
    # A second construction keeps only the parameters that the graph still uses.
    return torch.fx.GraphModule(copy, copy.graph, class_name="Factored")


def _copied(module: GraphModule) -> Graph:
    from torch.fx import Graph

    graph = Graph()
    result = graph.graph_copy(module.graph, val_map={}, return_output_node=True)
    if result is not None:
        outputs, old = result
        graph.output(outputs).meta.update(old.meta)
    return graph


def _replace(module: GraphModule, site: TorchLinear, key: LayerKey, pair: Replacement, prefix: str) -> None:
    """Swap one node for two. `prefix` names the factors: uses of the same layer share them."""
    import torch

    out_features, in_features = site.weight.shape
    if pair.A.shape[0] != out_features or pair.B.shape[1] != in_features or pair.A.shape[1] != pair.B.shape[0]:
        raise ModelError(
            f"{key.name}: factors {pair.A.shape} × {pair.B.shape} do not fit a layer of {(out_features, in_features)}"
        )
    aten = torch.ops.aten
    kept, bias = _new_bias(site, key, pair)
    dtype = _dtype(site.node)
    with module.graph.inserting_before(site.node):
        if site.kind == "conv":
            ones = (1,) * (len(_shape(site.node)) - 2)
            b = _parameter(module, f"{prefix}_B", pair.B.reshape(*pair.B.shape, *ones), dtype)
            a = _parameter(module, f"{prefix}_A", pair.A.reshape(*pair.A.shape, *ones), dtype)
            target = site.node.target
            latent = module.graph.call_function(target, (site.input, b, None, *site.node.args[3:]))
            new = module.graph.call_function(target, (latent, a, _bias(module, prefix, bias, dtype)))
        else:
            b = _parameter(module, f"{prefix}_B", pair.B, dtype)
            a = _parameter(module, f"{prefix}_A", pair.A, dtype)
            if site.kind == "left":
                latent = module.graph.call_function(aten.matmul.default, (b, site.input))
                new = module.graph.call_function(aten.matmul.default, (a, latent))
                if bias is not None:
                    column = bias if len(_shape(site.input)) == 1 else bias[:, None]
                    new = module.graph.call_function(aten.add.Tensor, (new, _bias(module, prefix, column, dtype)))
            else:
                latent = module.graph.call_function(aten.linear.default, (site.input, b))
                new = module.graph.call_function(aten.linear.default, (latent, a, _bias(module, prefix, bias, dtype)))
        if kept is not None:
            new = module.graph.call_function(aten.add.Tensor, (new, kept))
    for node in (latent, new):
        node.meta.update({k: v for k, v in site.node.meta.items() if k in ("nn_module_stack", "stack_trace")})
    new.meta.update({k: v for k, v in site.node.meta.items() if k in ("val", "tensor_meta")})
    site.node.replace_all_uses_with(new)
    module.graph.erase_node(site.node)


def _new_bias(site: TorchLinear, key: LayerKey, pair: Replacement) -> tuple[Node | None, Array | None]:
    """(the old bias node if it has to be added apart, the bias of the second thin layer)."""
    own, theirs = site.bias, key.bias
    kept = site.bias_input if own is None else None
    if own is not None and theirs is not None and np.array_equal(own, theirs):
        return kept, pair.bias
    if pair.bias is None and theirs is None:
        return kept, own
    change = _vector(pair.bias, site) - _vector(theirs, site)
    total = _vector(own, site) + change
    return kept, total.astype(np.float32) if own is not None or total.any() else None


def _vector(bias: Array | None, site: TorchLinear) -> Array:
    return np.zeros(site.weight.shape[0]) if bias is None else bias.astype(np.float64)


def _bias(module: GraphModule, prefix: str, bias: Array | None, dtype: dtype) -> Node | None:
    return None if bias is None else _parameter(module, f"{prefix}_bias", bias, dtype)


def _parameter(module: GraphModule, name: str, value: Array, dtype: dtype) -> Node:
    """A get_attr node for `value`; an equal parameter of the same name is reused."""
    import torch

    tensor = torch.from_numpy(np.array(value, dtype=np.float32)).to(dtype)
    unique, number = name, 0
    while (old := getattr(module, unique, None)) is not None and not torch.equal(old, tensor):
        number += 1
        unique = f"{name}_{number}"
    if old is None:
        module.register_parameter(unique, torch.nn.Parameter(tensor, requires_grad=False))
    return module.graph.get_attr(unique)


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _dtype(node: Node) -> dtype:
    return node.meta["val"].dtype
