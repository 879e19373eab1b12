"""The mosaic of a weight's codes: what it keeps, and that nothing hostile gets in."""

from __future__ import annotations

import builtins
import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgepack.errors import ModelError, UsageError
from edgepack.methods import mosaic
from edgepack.model.types import Array


def codes(shape: tuple[int, int], seed: int = 0) -> Array:
    drawn = np.random.default_rng(seed).integers(-127, 128, shape)
    return mosaic.full_scale(drawn)


def picture(array: Array, kind: str = "JPEG", **options: Any) -> bytes:
    written = io.BytesIO()
    Image.fromarray(array).save(written, kind, **options)
    return written.getvalue()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.sampled_from([1, 50, 95]), st.integers(0, 99))
def test_decoding_gives_full_scale_codes_of_the_shape(out: int, inn: int, quality: int, seed: int) -> None:
    given_codes = codes((out, inn), seed)
    data = mosaic.encode(given_codes, quality)
    assert data == mosaic.encode(given_codes, quality)
    found = mosaic.decode(data, (out, inn))
    assert found.dtype == np.int8
    assert found.shape == (out, inn)
    assert set(np.abs(found.astype(int)).max(axis=1)) <= {0, 127}


def test_tiles_lie_where_their_rows_say() -> None:
    rows = np.repeat(np.array([[-127], [127], [60], [-60], [0]], np.int8), 64, axis=1)
    found = mosaic.decode(mosaic.encode(rows, 95), (5, 64))
    assert np.array_equal(np.sign(found.astype(int).sum(axis=1))[:4], [-1, 1, 1, -1])
    with Image.open(io.BytesIO(mosaic.encode(rows, 95))) as image:
        assert image.mode == "L"
        assert image.size == (16, 24)
        assert np.asarray(image)[4, 4] < 5
        assert np.asarray(image)[4, 12] > 250


def test_high_quality_keeps_the_codes() -> None:
    given_codes = codes((30, 64))
    found = mosaic.decode(mosaic.encode(given_codes, 95), (30, 64))
    assert np.abs(found.astype(int) - given_codes).max() <= 8


@settings(max_examples=80)
@given(st.lists(st.integers(-128, 127), min_size=1, max_size=9))
def test_full_scale_is_rounding_in_whole_numbers(row: list[int]) -> None:
    found = mosaic.full_scale(np.array([row]))[0].astype(int)
    peak = max(abs(value) for value in row)
    if peak == 0:
        assert not found.any()
        return
    assert np.abs(found).max() == 127
    for value, code in zip(row, found, strict=True):
        assert abs(code - value * 127 / peak) <= 0.5
    assert np.array_equal(mosaic.full_scale(found[None])[0], found)


GREY = np.full((64, 64), 99, np.uint8)
BAD = {
    "nothing": b"",
    "no image": b"weights",
    "another format": picture(GREY, "PNG"),
    "colours": picture(np.full((64, 64, 3), 9, np.uint8)),
    "progressive": picture(GREY, progressive=True),
    "another size": picture(GREY[:, :32]),
    "cut": picture(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))[:900],
    "too long": picture(GREY) + b"\0" * (1 << 20),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_such_image_is_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        mosaic.decode(data, (64, 64))
    assert mosaic.decode(picture(GREY), (64, 64)).shape == (64, 64)


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    data = bytearray(picture(GREY))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(ModelError):
        mosaic.decode(bytes(data), (64, 64))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (-3, 4), (1 << 20, 1 << 20), (1, 65_521), (4,)])
def test_shapes_that_fit_no_image_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError):
        mosaic.decode(picture(GREY), shape)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_files_are_a_model_error_or_some_codes(damage: list[tuple[int, int]]) -> None:
    data = bytearray(mosaic.encode(codes((16, 64)), 60))
    for position, value in damage:
        data[position % len(data)] = value
    try:
        found = mosaic.decode(bytes(data), (16, 64))
    except ModelError:
        return
    assert found.shape == (16, 64)
    assert np.abs(found.astype(int)).max() <= 127


def test_codes_too_large_are_refused() -> None:
    with pytest.raises(UsageError, match="pixels"):
        mosaic.encode(np.zeros((1, 65_521), np.int8), 50)


def test_without_pillow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def none(name: str, *rest: Any, **more: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(UsageError) as caught:
        mosaic.encode(codes((2, 4)), 50)
    assert caught.value.hint is not None
    assert ".[methods]" in caught.value.hint
