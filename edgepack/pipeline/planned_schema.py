"""The part of a manifest that `inspect PACK` shows, judged by pydantic: a pack may come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from edgepack.errors import PackError
from edgepack.pipeline.packed import MAX_LAYERS, MAX_NAME

Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,2000}$")]
"""Printable: names and reasons end up on terminals."""


class _Candidate(BaseModel):
    size_bytes: NonNegativeInt
    latency_s: NonNegativeFloat
    loss: NonNegativeFloat


class _Layer(BaseModel):
    layer: Text
    out_features: PositiveInt
    in_features: PositiveInt
    rank: PositiveInt | None
    break_even_rank: NonNegativeInt
    form: Text | None
    reason: Text
    predicted: _Candidate | None


class _File(BaseModel):
    form: Text
    size_bytes: NonNegativeInt
    form_chosen_by: Text | None = None
    layers: Annotated[list[_Layer], Field(max_length=MAX_LAYERS)] = []


class _Named(BaseModel):
    name: Text


class _Planned(BaseModel):
    model: _Named
    target: _Named
    loss_weighted_by: Literal["output gradients", "output energy"]
    files: dict[Text, _File]


def check_planned(manifest: Mapping[str, Any], pack_dir: Path) -> None:
    """Sees to it that all that is shown of the packed files' layers is there, and can be shown.

    Raises:
        PackError: it is not a manifest that this edgepack wrote.
    """
    try:
        _Planned.model_validate(manifest, strict=True)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if str(part).isprintable())[:MAX_NAME]
        raise PackError(
            f"{pack_dir}: its manifest is not one of this edgepack: {where}: {first['msg']}",
            hint="build the pack again",
        ) from err
