"""Makes the inputs of linear layers outputs of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.promote import Tap, Wanted, promote, start
from edgepack.backends.onnx.sites import Placement, callers, find_sites, inline
from edgepack.errors import ModelError
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

_TAG = "edgepack.observed"


@dataclass(frozen=True)
class ObservedInput:
    """Where a layer's input is seen.

    Attributes:
        layer: the layer's name.
        in_features: its number of input features.
        taps: one per place that applies the layer, each value once.
    """

    layer: str
    in_features: int
    taps: tuple[Tap, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs to fetch, in the order in which `rows` takes them."""
        return tuple(tap.output for tap in self.taps)

    def rows(self, *arrays: Array) -> Array:
        """The observed arrays, one per name in `outputs`, as rows (N, in); N = 0 where a branch was not taken."""
        if len(arrays) != len(self.taps):
            raise ValueError(
                f"layer {self.layer!r}: found {len(arrays)} arrays, expected one for each of {self.outputs}"
            )
        parts = [self._rows(array, tap) for array, tap in zip(arrays, self.taps, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rows(self, array: Array, tap: Tap) -> Array:
        if array.size == 0:
            return np.zeros((0, self.in_features), array.dtype)
        axis = tap.axis if array.ndim - tap.scans >= -tap.axis else -1  # a vector has its features on its only axis
        return np.moveaxis(array, axis, -1).reshape(-1, self.in_features)


def with_observed_inputs(model: ir.Model, layer_names: Iterable[str]) -> tuple[ir.Model, dict[str, ObservedInput]]:
    """A new model with further outputs that give the input of each named layer.

    Layers that share an input share an output. A branch that is not taken gives no rows; a loop gives the rows of all
    its rounds. Functions around a named layer are inlined in the new model. A layer whose input cannot be led to the
    outside is left out of the dict.

    Raises:
        ModelError: no layer has that name.
    """
    copy = model.clone()
    sites = {site.layer.name: site for site in find_sites(copy)}
    wanted = list(dict.fromkeys(layer_names))
    for name in wanted:
        if name not in sites:
            raise ModelError(f"the model has no linear layer {name!r}")
        for placement in sites[name].placements:
            features = sites[name].layer.in_features
            seen = Wanted(sites[name].dtype, _axis(placement), features, placement.rank)
            placement.node.meta[_TAG] = (name, placement.x_index, seen)
    _open_functions(copy)
    promotion = start(copy)
    taps: dict[str, dict[str, Tap]] = {name: {} for name in wanted}
    for node in list(copy.graph.all_nodes()):
        if _TAG in node.meta:
            name, x_index, seen = node.meta[_TAG]
            tap = promote(promotion, node.inputs[x_index], seen)
            if tap is not None:
                taps[name].setdefault(tap.output, tap)
    return copy, {
        name: ObservedInput(name, sites[name].layer.in_features, tuple(found.values()))
        for name, found in taps.items()
        if found
    }


def _axis(placement: Placement) -> int:
    if placement.kind == "conv":
        return -1 - placement.spatial
    return -2 if (placement.kind == "columns") != placement.swapped else -1


def _open_functions(model: ir.Model) -> None:
    """Inline the functions around tagged nodes; where that fails their layers stay unobserved."""
    tagged = {
        function.identifier()
        for function in model.functions.values()
        if any(_TAG in node.meta for node in function.all_nodes())
    }
    if tagged:
        around = callers(model, tagged)
        inline(model, lambda function: function.identifier() in around)
