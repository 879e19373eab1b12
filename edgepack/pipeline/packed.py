"""What a pack's manifest says, read with care: a pack may come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.errors import PackError
from edgepack.model.scheme import Format
from edgepack.report.compare import file_entry
from edgepack.segments import LayerShape

MAX_NAME = 400
MAX_LAYERS = 10_000
_HINT = "build the pack again"


def model_name(manifest: Mapping[str, Any], pack_dir: Path) -> str:
    """The model's name; the folder's where the manifest gives none."""
    name = _name_of(manifest, "model")
    return name if name is not None else pack_dir.resolve().name


def target_name(manifest: Mapping[str, Any], pack_dir: Path) -> str:
    """The target that the pack was built for.

    Raises:
        PackError: the manifest names none.
    """
    name = _name_of(manifest, "target")
    if name is None:
        raise PackError(f"{pack_dir}: its manifest names no target", hint="say which with --target")
    return name


def layer_shapes(manifest: Mapping[str, Any], pack_dir: Path, variant: str, fmt: Format) -> tuple[LayerShape, ...]:
    """The linear layers of a variant's file in graph order: as planned in the packed one, dense in a baseline.

    Args:
        variant: "edgepack", "dense-fp32" or "dense-int8".

    Raises:
        PackError: the manifest lists no layers for the format, or an entry that is none.
    """
    planned = file_entry(manifest, "edgepack", fmt).get("layers")
    if not isinstance(planned, list) or len(planned) > MAX_LAYERS:
        raise PackError(f"{pack_dir}: its manifest lists no layers for model.{fmt}", hint=_HINT)
    shapes = tuple(_shape(entry, number, pack_dir, fmt) for number, entry in enumerate(planned))
    if variant == "edgepack":
        return shapes
    return tuple(LayerShape(s.name, s.out_features, s.in_features, None) for s in shapes)


def _shape(entry: Any, number: int, pack_dir: Path, fmt: Format) -> LayerShape:
    fields = entry if isinstance(entry, Mapping) else {}
    name, rank = fields.get("layer"), fields.get("rank")
    sides = fields.get("out_features"), fields.get("in_features")
    if not (isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME):
        raise PackError(f"{pack_dir}: layer {number} of model.{fmt} has no name that can be shown", hint=_HINT)
    if not all(map(_positive, sides)) or not (rank is None or _positive(rank)):
        found = f"{sides[0]}×{sides[1]}, rank {rank}"[:100]
        raise PackError(f"{pack_dir}: layer {name} of model.{fmt} is {found}; expected positive numbers", hint=_HINT)
    beside = rank is not None and fields.get("structure") == "low-rank-correction"
    return LayerShape(name, int(fields["out_features"]), int(fields["in_features"]), rank, beside)


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _name_of(manifest: Mapping[str, Any], what: str) -> str | None:
    entry = manifest.get(what)
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return name if isinstance(name, str) and name and name.isprintable() else None
