"""Which torch node is which layer of elsewhere: exporters rename and transpose weights, but keep their values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.model.layer import Layer
from edgepack.model.types import Array
from edgepack.torchgraph.linears import TorchLinear, find_linears

if TYPE_CHECKING:
    from torch.fx import GraphModule


@dataclass(frozen=True)
class LayerKey:
    """A linear layer without its weight: all that is needed to find it again in another graph.

    Attributes:
        name: the layer's name in the graph it comes from.
        digest: of the shape and the float32 values of its weight as a matrix.
        bias: (out,) float32 or None, as that graph has it.
        uses: how many nodes share the weight there.
    """

    name: str
    digest: str
    bias: Array | None
    uses: int = 1


@dataclass(frozen=True)
class Matches:
    """Torch nodes by layer name, and the names of the layers that no node matches."""

    nodes: dict[str, tuple[TorchLinear, ...]]
    missing: tuple[str, ...]


def layer_key(layer: Layer) -> LayerKey:
    """The key of a layer."""
    return LayerKey(layer.name, weight_digest(layer.weight), layer.bias, layer.uses)


def weight_digest(weight: Array) -> str:
    """SHA-256 of a matrix' shape and float32 values; negative zero counts as zero."""
    values = np.ascontiguousarray(weight, dtype=np.float32)
    values = values + np.float32(0.0)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def match_layers(module: GraphModule, layers: Sequence[Layer | LayerKey]) -> Matches:
    """Pair each layer with the nodes that multiply by its weight.

    Layers with equal weights (a shared weight, or clones before training) are told apart by name where a parameter's
    name shows in the layer's name, then by order of appearance, each taking as many nodes as it has uses.
    """
    keys = [layer_key(layer) if isinstance(layer, Layer) else layer for layer in layers]
    sites: dict[str, list[TorchLinear]] = {}
    for site in find_linears(module):
        sites.setdefault(weight_digest(site.weight), []).append(site)
    nodes: dict[str, tuple[TorchLinear, ...]] = {}
    for digest in dict.fromkeys(key.digest for key in keys):
        alike = [key for key in keys if key.digest == digest]
        nodes.update(_share_out(alike, sites.get(digest, [])))
    ordered = {key.name: nodes[key.name] for key in keys if nodes.get(key.name)}
    return Matches(ordered, tuple(key.name for key in keys if key.name not in ordered))


def _share_out(keys: Sequence[LayerKey], sites: Sequence[TorchLinear]) -> dict[str, tuple[TorchLinear, ...]]:
    if len(keys) == 1:
        return {keys[0].name: tuple(sites)}
    left = list(sites)
    taken: dict[str, list[TorchLinear]] = {key.name: [] for key in keys}
    for key in keys:
        for site in [s for s in left if _same_name(key.name, s.name)][: key.uses]:
            taken[key.name].append(site)
            left.remove(site)
    for key in keys:
        room = max(0, key.uses - len(taken[key.name]))
        taken[key.name] += left[:room]
        del left[:room]
    # More nodes than uses: the exporter merged equal nodes. Their weights are equal, so any of the layers will do.
    taken[keys[-1].name] += left
    return {name: tuple(found) for name, found in taken.items()}


def _same_name(layer: str, parameter: str) -> bool:
    stem = parameter.removesuffix(".weight").removesuffix("_weight")
    return layer in (parameter, stem) or layer.startswith(f"{stem}.") or layer.endswith((f"/{stem}", f".{stem}"))
