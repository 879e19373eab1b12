"""Where the layers of a model are in its float32 .tflite file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.emit.tflite_coded import encode
from edgepack.emit.tflite_fold import Fold, fold, shifts_by_size
from edgepack.emit.tflite_match import Found, Wanted, match
from edgepack.emit.tflite_thin import refuses, thin
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.tflitegraph.linear import linear_ops
from edgepack.types import Array


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
    layers: tuple[Layer, ...]
    operators: Mapping[str, tuple[str, ...]]
    folds: Mapping[str, tuple[Fold, ...]]

    def takes(self, factors: Mapping[str, Replacement]) -> bool:
        """Whether `replace` can put all of these into the file."""
        return all(self.refuses(name, part) is None for name, part in factors.items())

    def refuses(self, name: str, part: Replacement) -> str | None:
        """Why `replace` cannot put this into the file, in a few words; None if it can."""
        if name not in self.folds:
            return "its operators are not in the file, or their biases are not understood"
        layer = next(layer for layer in self.layers if layer.name == name)
        reasons = (refuses(place, layer, part) for place in self.folds[name])
        return next((reason for reason in reasons if reason is not None), None)

    def replace(self, path: Path, factors: Mapping[str, Replacement]) -> dict[str, tuple[str, ...]]:
        """Write the file with these in the place of the named layers; returns the `operators` of that file.

        Layers in code have their effective weights there, which a quantizer must leave in float32; `encode` comes last.
        """
        return {**self.operators, **thin(self.path, path, self.layers, factors, self.folds)}

    def encode(self, source: Path, path: Path, factors: Mapping[str, Replacement]) -> None:
        """Write a file of `replace`, or an integer scheme of it, with the code of those layers that are stored in code.

        Raises:
            ModelError: an operator is not in the file, or not in float32.
        """
        coded = {name: part for name, part in factors.items() if part.structure.is_constexpr}
        encode(source, path, coded, self.folds)


def find_places(
    path: Path,
    layers: Sequence[Layer],
    vectors: Sequence[Array],
    factors: Mapping[str, Replacement] | None = None,
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


def _wanted(layer: Layer, pair: Replacement | None) -> list[Wanted]:
    if pair is None:
        return [Wanted(layer.name, layer.weight, layer.uses)]
    return [Wanted(f"{layer.name}\0B", pair.B, layer.uses), Wanted(f"{layer.name}\0A", pair.A, layer.uses)]


def _operators(layer: Layer, pairs: Mapping[str, Replacement], found: Mapping[str, Sequence[Found]]) -> tuple[str, ...]:
    """Both halves of a pair, or none of them."""
    keys = [f"{layer.name}\0B", f"{layer.name}\0A"] if layer.name in pairs else [layer.name]
    parts = [found.get(key, ()) for key in keys]
    return tuple(place.op.output for part in parts for place in part) if all(parts) else ()
