"""Makes the inputs of layers outputs of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.promote import Tap, Wanted, promote, start
from edgepack.backends.onnx.sites import Placement, callers, find_sites, inline
from edgepack.errors import ModelError
from edgepack.model.kinds import kind_of, view_name
from edgepack.model.kinds.kind import EVERY_POSITION, Rows
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

_TAG = "edgepack.observed"


@dataclass(frozen=True)
class ObservedInput:
    """Where the vectors are seen that a view of a layer multiplies.

    Attributes:
        view: its name.
        in_features: length of the vectors.
        taps: one per place that applies the layer, each value once.
        way: how the vectors are taken from the layer's input.
    """

    view: str
    in_features: int
    taps: tuple[Tap, ...]
    way: Rows = EVERY_POSITION

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for views that multiply the same vectors."""
        return self.outputs if self.way == EVERY_POSITION else (*self.outputs, repr(self.way))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs to fetch, in the order in which `rows` takes them."""
        return tuple(tap.output for tap in self.taps)

    def rows(self, *arrays: Array) -> Array:
        """The observed arrays, one per name in `outputs`, as rows (N, in); N = 0 where a branch was not taken."""
        if len(arrays) != len(self.taps):
            raise ValueError(
                f"layer {self.view!r}: found {len(arrays)} arrays, expected one for each of {self.outputs}"
            )
        parts = [self._rows(array, tap) for array, tap in zip(arrays, self.taps, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def count(self, *arrays: Array) -> int:
        """Vectors that the layer multiplies, of the arrays that `rows` takes."""
        seen = ((array, tap) for array, tap in zip(arrays, self.taps, strict=True) if array.size)
        return sum(self.way.count(_features_last(array, tap)) for array, tap in seen)

    def _rows(self, array: Array, tap: Tap) -> Array:
        if array.size == 0:
            return np.zeros((0, self.in_features), array.dtype)
        return self.way(_features_last(array, tap))


def _features_last(array: Array, tap: Tap) -> Array:
    axis = tap.axis if array.ndim - tap.scans >= -tap.axis else -1  # a vector has its features on its only axis
    return np.moveaxis(array, axis, -1)


def with_observed_inputs(model: ir.Model, view_names: Iterable[str]) -> tuple[ir.Model, dict[str, ObservedInput]]:
    """A new model with further outputs that give the input of the layer of each named view.

    Layers that share an input share an output. A branch that is not taken gives no rows; a loop gives the rows of all
    its rounds. Functions around a named layer are inlined in the new model. A layer whose input cannot be led to the
    outside is left out of the dict.

    Raises:
        ModelError: no layer has that name.
    """
    copy = model.clone()
    known = {
        view_name(site.layer.name, view): (site, kind_of(site.layer).rows(site.layer, view), matrix.shape[1])
        for site in find_sites(copy)
        for view, matrix in kind_of(site.layer).views(site.layer).items()
    }
    wanted = list(dict.fromkeys(view_names))
    for name in wanted:
        if name not in known:
            raise ModelError(f"the model has no linear layer {name!r}")
        site, way, features = known[name]
        for placement in site.placements:
            # Inside of a loop only the features at every position can be cut from a value.
            inside = features if way == EVERY_POSITION else 0
            seen = Wanted(site.dtype, _axis(placement), inside, placement.rank)
            placement.node.meta.setdefault(_TAG, []).append((name, placement.x_index, seen))
    _open_functions(copy)
    promotion = start(copy)
    taps: dict[str, dict[str, Tap]] = {name: {} for name in wanted}
    for node in list(copy.graph.all_nodes()):
        for name, x_index, seen in node.meta.get(_TAG, ()):
            tap = promote(promotion, node.inputs[x_index], seen)
            if tap is not None:
                taps[name].setdefault(tap.output, tap)
    return copy, {
        name: ObservedInput(name, known[name][2], tuple(found.values()), known[name][1])
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
