"""Streams the inputs of layers out of a running torch program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import ModelError
from edgepack.model.kinds.kind import Rows
from edgepack.model.types import Array
from edgepack.torchgraph.factor import copied
from edgepack.torchgraph.layers import placed
from edgepack.torchgraph.run import run

if TYPE_CHECKING:
    from torch.fx import GraphModule


@dataclass(frozen=True)
class Tap:
    """A value that layers take as their input, by its place among the outputs.

    Attributes:
        name: of the node that gives the value.
        axis: of the features.
        way: how vectors are taken from it.
    """

    name: str
    output: int
    axis: int
    way: Rows


@dataclass(frozen=True)
class Observed:
    """A graph whose outputs are the inputs of layers.

    Attributes:
        taps: by layer name, one per value that the layer takes.
        features: by layer name, the width of its vectors.
    """

    module: GraphModule
    taps: Mapping[str, tuple[Tap, ...]]
    features: Mapping[str, int]

    def rows(self, feed: Mapping[str, Array], *, threads: int) -> dict[tuple[Tap, ...], Array]:
        """The vectors (N, features) of one run, by the taps that they come from.

        Raises:
            ModelError: the program does not run on this feed.
        """
        found = {}
        for taps, inputs in self._inputs(feed, threads).items():
            parts = [tap.way(value) for tap, value in zip(taps, inputs, strict=True)]
            found[taps] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found

    def counts(self, feed: Mapping[str, Array], *, threads: int) -> dict[tuple[Tap, ...], int]:
        """Vectors that the layers multiply in one run, by the taps that they come from.

        Raises:
            ModelError: the program does not run on this feed.
        """
        return {
            taps: sum(tap.way.count(value) for tap, value in zip(taps, inputs, strict=True))
            for taps, inputs in self._inputs(feed, threads).items()
        }

    def _inputs(self, feed: Mapping[str, Array], threads: int) -> dict[tuple[Tap, ...], list[Array]]:
        """What layers take in one run, features on the last axis, by the taps that it comes from."""
        values = run(self.module, feed, threads=threads)
        return {
            taps: [values[tap.output].movedim(tap.axis, -1).float().numpy() for tap in taps]
            for taps in dict.fromkeys(self.taps.values())
        }


def with_observed_inputs(module: GraphModule, names: Iterable[str]) -> Observed:
    """A copy of a graph whose layers are named, that gives their inputs and computes nothing behind the last of them.

    Raises:
        ModelError: no layer has that name.
    """
    import torch

    copy = copied(module)
    sites = placed(copy)
    wanted = list(dict.fromkeys(names))
    if strangers := [name for name in wanted if name not in sites]:
        raise ModelError(f"the model has no linear layer {strangers[0]!r}")
    graph = copy.graph
    inputs = dict.fromkeys(site.input for name in wanted for site in sites[name])
    places = {node: index for index, node in enumerate(inputs)}
    takers = {site.node: site.input for name in wanted for site in sites[name]}
    first = {takers[node]: node for node in reversed(graph.nodes) if node in takers}
    copies = []
    for node in inputs:
        # An operator behind the layer may work in place.
        with graph.inserting_before(first[node]):
            copies.append(graph.call_function(torch.ops.aten.clone.default, (node,)))
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (tuple(copies),)
    graph.eliminate_dead_code()
    made = torch.fx.GraphModule(copy, graph, class_name="Observed")
    taps = {
        name: tuple(
            dict.fromkeys(Tap(site.input.name, places[site.input], site.axis, site.rows) for site in sites[name])
        )
        for name in wanted
    }
    return Observed(made, taps, {name: sites[name][0].weight.shape[1] for name in wanted})
