"""Where the layers of a model are in its float32 .tflite file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.emit.tflite_fold import Fold, fold, shifts_by_size
from edgepack.emit.tflite_match import Found, Wanted, match
from edgepack.emit.tflite_thin import can_replace, thin
from edgepack.tflitegraph import linear_ops
from edgepack.types import Array, Factors, LinearLayer, Replacement


@dataclass(frozen=True)
class Places:
    """The layers of a file.

    Attributes:
        path: the file.
        layers: of the model.
        operators: by layer name, what its operators write; layers without an operator are absent.
        folds: by layer name, its dense operators where each of them is fully understood.
    """

    path: Path
    layers: tuple[LinearLayer, ...]
    operators: Mapping[str, tuple[str, ...]]
    folds: Mapping[str, tuple[Fold, ...]]

    def takes(self, factors: Mapping[str, Replacement]) -> bool:
        """Whether `replace` can put all of these into the file."""
        dense = {layer.name: layer for layer in self.layers}
        return all(
            name in self.folds and all(can_replace(place, dense[name], part) for place in self.folds[name])
            for name, part in factors.items()
        )

    def replace(self, path: Path, factors: Mapping[str, Replacement]) -> dict[str, tuple[str, ...]]:
        """Write the file with these in the place of the named layers; returns the `operators` of that file."""
        return {**self.operators, **thin(self.path, path, self.layers, factors, self.folds)}


def find_places(
    path: Path,
    layers: Sequence[LinearLayer],
    vectors: Sequence[Array],
    factors: Mapping[str, Factors] | None = None,
) -> Places:
    """Find every layer's operators by their weights.

    Args:
        path: a float32 file from the converter.
        layers: of the source model, in its order.
        vectors: one-dimensional constants of the source model, which the converter may have folded into biases.
        factors: by layer name, of the layers that are pairs in the file.

    Raises:
        ModelError: unreadable file.
    """
    pairs = factors or {}
    wanted = [want for layer in layers for want in _wanted(layer, pairs.get(layer.name))]
    found = match(linear_ops(path), wanted)
    operators = {layer.name: _operators(layer, pairs, found) for layer in layers}
    shifts = shifts_by_size(vectors)
    folds = {}
    for layer in layers:
        places = [fold(place, layer, shifts) for place in found.get(layer.name, ())]
        known = tuple(place for place in places if place is not None)
        if places and len(known) == len(places):
            folds[layer.name] = known
    return Places(path, tuple(layers), {name: names for name, names in operators.items() if names}, folds)


def _wanted(layer: LinearLayer, pair: Factors | None) -> list[Wanted]:
    if pair is None:
        return [Wanted(layer.name, layer.weight, layer.uses)]
    return [Wanted(f"{layer.name}\0B", pair.B, layer.uses), Wanted(f"{layer.name}\0A", pair.A, layer.uses)]


def _operators(
    layer: LinearLayer, pairs: Mapping[str, Factors], found: Mapping[str, Sequence[Found]]
) -> tuple[str, ...]:
    """Both halves of a pair, or none of them."""
    keys = [f"{layer.name}\0B", f"{layer.name}\0A"] if layer.name in pairs else [layer.name]
    parts = [found.get(key, ()) for key in keys]
    return tuple(place.op.output for part in parts for place in part) if all(parts) else ()
