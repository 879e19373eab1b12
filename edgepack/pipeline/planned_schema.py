"""The part of a manifest that `inspect PACK` shows, judged by pydantic: a pack may come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, ValidationError, model_validator

from edgepack.errors import PackError
from edgepack.pipeline.packed import MAX_LAYERS, MAX_NAME


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it cannot be shown")
    return text


Text = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_printable)]
"""Printable: names and reasons end up on terminals."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Side = Annotated[int, Field(ge=1, lt=1 << 31)]
Figure = Annotated[FiniteFloat, Field(ge=0)]


class _Candidate(BaseModel):
    size_bytes: Count
    latency_s: Figure
    loss: Figure


class _Shares(BaseModel):
    truncation: Figure
    rounding: Figure
    latent: Figure


class _Alternative(BaseModel):
    method: Text
    share: Figure
    parameters: Count


class _Layer(BaseModel):
    layer: Text
    out_features: Side
    in_features: Side
    rank: Side | None
    break_even_rank: Count
    weight_parameters: Count
    scheme: Text | None
    structure: Text
    reason: Text
    predicted: _Candidate | None
    lost_shares: _Shares | None = None
    alternative: _Alternative | None = None


class _File(BaseModel):
    scheme: Text
    size_bytes: Count
    scheme_chosen_by: Text | None = None
    layers: Annotated[list[_Layer], Field(max_length=MAX_LAYERS)] = []

    @model_validator(mode="after")
    def _planned(self) -> _File:
        if "layers" in self.model_fields_set and self.scheme_chosen_by is None:
            raise ValueError("scheme_chosen_by is missing")
        return self


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
