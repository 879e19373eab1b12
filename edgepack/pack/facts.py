"""What a bench and a comparison need of any pack's manifest: what it lacks, or says nonsense of, is None.

A pack may come from a stranger, or lack what this edgepack would write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack.backends.segments import LayerShape
from edgepack.errors import PackError
from edgepack.model.scheme import Format
from edgepack.pack.manifest import BUILD_AGAIN, MAX_LAYERS, MAX_NAME, file_path, read_document

MOST_PRODUCTS = 8
"""In the place of one layer."""


@dataclass(frozen=True)
class LayerFacts:
    """What a manifest says of a layer, as far as it makes sense.

    Attributes:
        shape: None with `problem` saying what is wrong.
    """

    name: str | None
    rank: int | None
    shape: LayerShape | None
    problem: str = ""


@dataclass(frozen=True)
class FileFacts:
    """What a manifest says of one model file; None where it does not, or says nonsense.

    Attributes:
        drop: of dense fp32's metric, in the metric's unit.
        layers: None where it lists none.
        least: metric that it has at the bound of its drop.
    """

    scheme: str | None = None
    metric: float | None = None
    drop: float | None = None
    layers: tuple[LayerFacts, ...] | None = None
    least: float | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every factored layer by its name; a dense layer has none."""
        return {one.name: one.rank for one in self.layers or () if one.name is not None and one.rank is not None}


@dataclass(frozen=True)
class TrialFacts:
    """What a manifest says of one plan that was tried: its drop is of the metric on the validation samples."""

    format: str
    scheme: str
    size_bytes: int
    drop: float


@dataclass(frozen=True)
class PackFacts:
    """What a bench and a comparison need to know of a pack.

    Attributes:
        folder: of the pack.
        model, target, metric: their names; None where there is none that can be shown.
        files: by path in the pack.
        trials: plans that were tried, where they make sense.
    """

    folder: Path
    model: str | None = None
    target: str | None = None
    metric: str | None = None
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    trials: tuple[TrialFacts, ...] = ()

    @property
    def model_name(self) -> str:
        """The model's name; the folder's where the manifest gives none."""
        return self.folder.resolve().name if self.model is None else self.model

    @property
    def target_name(self) -> str:
        """The target that the pack was built for.

        Raises:
            PackError: the manifest names none.
        """
        if self.target is None:
            raise PackError(f"{self.folder}: its manifest names no target", hint="say which with --target")
        return self.target

    def file(self, variant: str, fmt: Format) -> FileFacts:
        """Of a variant's file: "edgepack", "dense-fp32" or "dense-int8"."""
        return self.files.get(file_path(variant, fmt), FileFacts())

    def layer_shapes(self, variant: str, fmt: Format) -> tuple[LayerShape, ...]:
        """The linear layers of a variant's file in graph order: as planned in the packed one, dense in a baseline.

        Raises:
            PackError: the manifest lists no layers for the format, or an entry that is none.
        """
        planned = self.file("edgepack", fmt).layers
        if planned is None or len(planned) > MAX_LAYERS:
            raise PackError(f"{self.folder}: its manifest lists no layers for model.{fmt}", hint=BUILD_AGAIN)
        shapes = []
        for number, layer in enumerate(planned):
            if layer.shape is None:
                named = number if layer.name is None else layer.name
                raise PackError(f"{self.folder}: layer {named} of model.{fmt} {layer.problem}", hint=BUILD_AGAIN)
            shapes.append(layer.shape)
        if variant == "edgepack":
            return tuple(shapes)
        return tuple(LayerShape(shape.name, shape.out_features, shape.in_features, None) for shape in shapes)


def read_facts(pack: Path) -> PackFacts:
    """What can be read of any pack's manifest.

    Raises:
        PackError: no pack, a manifest that is no JSON object, or of another schema version.
    """
    return facts_of(read_document(pack), pack)


def facts_of(document: Mapping[str, Any], folder: Path) -> PackFacts:
    """The same of a document that was read already."""
    files = _mapping(document.get("files"))
    return PackFacts(
        folder,
        _name_of(document, "model"),
        _name_of(document, "target"),
        _name_of(document, "metric"),
        {str(path): _file_facts(str(path), files) for path in files},
        tuple(trial for trial in map(_trial, _list(document.get("trials"))) if trial is not None),
    )


def _file_facts(path: str, files: Mapping[str, Any]) -> FileFacts:
    entry = _mapping(files[path])
    metric, drop = _number(entry.get("metric")), _number(entry.get("drop"))
    best = _number(_mapping(files.get(f"baseline/fp32.{path.rpartition('.')[2]}")).get("metric"))
    if drop is None and metric is not None and best is not None:
        drop = best - metric
    layers = entry.get("layers")
    listed = tuple(map(_layer_facts, layers)) if isinstance(layers, list) else None
    return FileFacts(_text(entry.get("scheme")), metric, drop, listed, _least(entry, metric))


def _least(entry: Mapping[str, Any], metric: float | None) -> float | None:
    """Where the metric is on the samples that the bound is of."""
    drop = _mapping(entry.get(str(entry.get("scored_on"))))
    emitted, dense, bound = (_number(drop.get(key)) for key in ("emitted", "dense", "bound"))
    if metric is None or emitted is None or dense is None or bound is None:
        return None
    return metric - max(0.0, bound - (dense - emitted))


def _trial(entry: Any) -> TrialFacts | None:
    known = _mapping(entry)
    fmt, scheme, size = _text(known.get("format")), _text(known.get("scheme")), _number(known.get("size_bytes"))
    drop = _number(_mapping(known.get("drop")).get("drop"))
    if fmt is None or scheme is None or size is None or size < 1 or drop is None:
        return None
    return TrialFacts(fmt, scheme, round(size), drop)


def _layer_facts(entry: Any) -> LayerFacts:
    known = _mapping(entry)
    name, rank = known.get("layer"), known.get("rank")
    sides = known.get("out_features"), known.get("in_features")
    if not (isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME):
        return LayerFacts(None, None, None, "has no name that can be shown")
    good = _positive(rank)
    if not all(map(_positive, sides)) or not (rank is None or good):
        found = f"{sides[0]}×{sides[1]}, rank {rank}"[:100]
        return LayerFacts(name, rank if good else None, None, f"is {found}; expected positive numbers")
    beside = rank is not None and known.get("structure") == "low-rank-correction"
    products = _products(known.get("products"))
    shape = LayerShape(name, known["out_features"], known["in_features"], rank, beside, products)
    return LayerFacts(name, rank, shape)


def _products(value: Any) -> tuple[tuple[int, int], ...]:
    """Sides of a few products; none where it is anything else."""
    if not isinstance(value, list) or len(value) > MOST_PRODUCTS:
        return ()
    good = all(isinstance(sides, list) and len(sides) == 2 and all(map(_positive, sides)) for sides in value)
    return tuple((sides[0], sides[1]) for sides in value) if good else ()


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _name_of(document: Mapping[str, Any], what: str) -> str | None:
    return _text(_mapping(document.get(what)).get("name"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value[:MAX_LAYERS] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value and value.isprintable() else None
