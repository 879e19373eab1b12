"""A model file whose integer weights were decoded from JPEG files, as these JPEG files and all the rest.

In place of `model.onnx` an archive then holds `model.onnx.rest`, the file with zeros where these weights are, `0.jpg`,
`1.jpg` … for them, and `images.json`, which says where they belong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgepack.archive.tarxz import MAX_BYTES, check_name
from edgepack.errors import ModelError
from edgepack.methods import mosaic
from edgepack.model.types import Array

INDEX = "images.json"


@dataclass(frozen=True)
class JpegImage:
    """Codes of a weight, and where they come from.

    Attributes:
        codes: (out, in) int8.
        jpeg: the file of which `mosaic.decode` makes these very codes.
    """

    codes: Array
    jpeg: bytes


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Place(_Strict):
    """Where the codes of an image are in the model file: its first byte, their shape, and how they lie there."""

    offset: Annotated[int, Field(ge=0, le=MAX_BYTES)]
    rows: Annotated[int, Field(gt=0, le=MAX_BYTES)]
    columns: Annotated[int, Field(gt=0, le=MAX_BYTES)]
    transposed: bool
    zero_point: Literal[0, 128]


class _Index(_Strict):
    """The model file's name and SHA-256, and the places of `0.jpg`, `1.jpg` …"""

    name: str
    sha256: str
    images: tuple[_Place, ...]


def take_out(name: str, content: bytes, images: Sequence[JpegImage]) -> dict[str, bytes]:
    """The files to archive in place of a model file; images whose codes it does not hold are left out."""
    rest = bytearray(content)
    places, jpegs = [], []
    for image in images:
        place = _found(rest, image.codes)
        if place is not None:
            rest[place.offset : place.offset + image.codes.size] = bytes(image.codes.size)
            places.append(place)
            jpegs.append(image.jpeg)
    index = _Index(name=name, sha256=hashlib.sha256(content).hexdigest(), images=tuple(places))
    named = {_jpeg(number): jpeg for number, jpeg in enumerate(jpegs)}
    return {INDEX: index.model_dump_json().encode(), _rest(name): bytes(rest), **named}


def put_back(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The model file, by its name, from what `take_out` made of it; it may come from anywhere.

    Raises:
        ValueError, ModelError: these are no such files.
        UsageError: Pillow is not installed.
    """
    index = _read(files[INDEX])
    check_name(index.name)
    jpegs = [_jpeg(number) for number in range(len(index.images))]
    expected = {INDEX, _rest(index.name), *jpegs}
    if set(files) != expected:
        raise ValueError(f"{INDEX} lists {len(expected)} files, found {len(files)} or others")
    content = bytearray(files[_rest(index.name)])
    # No two places overlap, so that no more is decoded than the file has bytes.
    end = 0
    for jpeg, place in sorted(zip(jpegs, index.images, strict=True), key=lambda one: one[1].offset):
        size = place.rows * place.columns
        if not end <= place.offset <= len(content) - size:
            raise ValueError(f"{jpeg}: found no room for {size} bytes at byte {place.offset}")
        end = place.offset + size
        codes = mosaic.decode(files[jpeg], (place.rows, place.columns))
        content[place.offset : end] = laid(codes, transposed=place.transposed, zero_point=place.zero_point)
    found = hashlib.sha256(content).hexdigest()
    if found != index.sha256:
        hint = "copy the file again; a JPEG library that decodes otherwise than the one that packed it may be the cause"
        raise ModelError(f"{index.name}: found the SHA-256 {found}, expected {index.sha256}", hint=hint)
    return {index.name: bytes(content)}


def laid(codes: Array, *, transposed: bool, zero_point: int) -> bytes:
    """Codes (out, in) int8 as they lie in a file: (in, out) where transposed, unsigned where the zero point is 128."""
    stored: Array = (codes.T if transposed else codes).astype(np.int8).view(np.uint8) ^ np.uint8(zero_point)
    return stored.tobytes()


def _found(rest: bytearray, codes: Array) -> _Place | None:
    rows, columns = codes.shape
    for transposed in (False, True):
        for zero_point in (0, 128):
            offset = rest.find(laid(codes, transposed=transposed, zero_point=zero_point))
            if offset >= 0:
                return _Place(offset=offset, rows=rows, columns=columns, transposed=transposed, zero_point=zero_point)
    return None


def _read(content: bytes) -> _Index:
    try:
        return _Index.model_validate_json(content)
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{INDEX}: {f'{place}: ' if place else ''}{first['msg']}") from err


def _rest(name: str) -> str:
    return f"{name}.rest"


def _jpeg(number: int) -> str:
    return f"{number}.jpg"
