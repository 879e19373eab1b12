"""Containers that are damaged or lie: refused with a ModelError, before much is allocated."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from containers import changed, put_together, sample, taken_apart
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import ModelError
from edgepack.transport.codecs import zstd
from edgepack.transport.container import MAX_HEADER_BYTES, MAX_TOTAL_BYTES
from edgepack.transport.unpacking import unpack

CONTENT, CONTAINER = sample()
HEADER, PAYLOAD = taken_apart(CONTAINER)


def refused(container: bytes, says: str | None = None) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        unpack(container, "far/model.epk")
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("far/model.epk: ")
    assert caught.value.hint


def test_the_sample_is_good() -> None:
    assert unpack(CONTAINER, "x") == {"model.onnx": CONTENT}
    assert unpack(put_together(HEADER, PAYLOAD), "x") == {"model.onnx": CONTENT}
    assert [part[0] for part in HEADER["files"][0]["parts"]] == ["rest", "bytes", "rest", "planes", "rest"]


@given(st.integers(0, len(CONTAINER) - 1))
def test_a_cut_container(end: int) -> None:
    refused(CONTAINER[:end])


@given(st.integers(0, len(CONTAINER) - 1), st.integers(1, 255))
def test_a_changed_byte(place: int, change: int) -> None:
    damaged = bytearray(CONTAINER)
    damaged[place] ^= change
    refused(bytes(damaged))


@given(st.integers(0, len(PAYLOAD) - 1), st.integers(1, 255))
def test_a_changed_byte_behind_a_right_checksum(place: int, change: int) -> None:
    damaged = bytearray(PAYLOAD)
    damaged[place] ^= change
    container = put_together(HEADER, bytes(damaged))
    try:
        found = unpack(container, "x")
    except ModelError:
        return
    assert found == {"model.onnx": CONTENT}, "a bit that says nothing, such as padding"


@given(st.binary(max_size=200))
def test_noise(data: bytes) -> None:
    refused(data, "expected a container")
    refused(put_together(data, data))


@pytest.mark.parametrize(
    ("container", "says"),
    [
        (b"", "found 0 bytes"),
        (b"PK\x03\x04" + bytes(100), "expected a container of edgepack"),
        (CONTAINER.replace(b"\r\n", b"\n"), "expected a container of edgepack"),
        (put_together(HEADER, PAYLOAD, version=9), "found version 9, this edgepack reads 1"),
        (CONTAINER[:-1], "damaged or cut short"),
        (CONTAINER[:40], "it is cut short"),
        (CONTAINER + b"x", "damaged or cut short"),
        (put_together(HEADER, PAYLOAD, size=MAX_HEADER_BYTES + 1), "found a header of"),
        (put_together(HEADER, PAYLOAD, size=10), "frame of .* expected 10"),
        (put_together(HEADER, PAYLOAD + b"x"), "speaks of .* coded bytes"),
        (put_together(b"[" * 100_000, PAYLOAD), "no JSON object with files"),
        (put_together(b"[]", PAYLOAD), "no JSON object with files"),
        (put_together(b'{"files": 3}', PAYLOAD), "does not list"),
        (put_together(b'{"files": []}', PAYLOAD), "does not list"),
        (put_together({"files": HEADER["files"] * 65}, PAYLOAD * 65), "does not list"),
        (put_together({"files": HEADER["files"] * 2}, PAYLOAD * 2), "have the same name"),
        (put_together({"files": [{"name": "x"}]}, b""), "in an unknown way"),
        (put_together({"files": [1]}, b""), "in an unknown way"),
    ],
)
def test_bad_fronts_and_headers(container: bytes, says: str) -> None:
    refused(container, says)


def put(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda file: file.update(fields)


def put_part(number: int, part: Any) -> Callable[[dict[str, Any]], None]:
    return lambda file: file["parts"].__setitem__(number, part)


SIZE = HEADER["files"][0]["parts"][1][1]
CODED = HEADER["files"][0]["parts"][1][2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put(name="../x"), "expected one without a folder"),
        (put(name="/etc/passwd"), "expected one without a folder"),
        (put(name="a\\b"), "expected one without a folder"),
        (put(name=".."), "expected one without a folder"),
        (put(name="\ud800"), "expected one without a folder"),
        (put(name=7), "expected one without a folder"),
        (put(sha256="0" * 64), "expected 0{64}"),
        (put(sha256="zz"), "its SHA-256 is none"),
        (put(size=-1), "for a number of bytes"),
        (put(size=1.5), "for a number of bytes"),
        (put(size=True), "for a number of bytes"),
        (put(size=MAX_TOTAL_BYTES + 1), "for a number of bytes"),
        (put(size=10**4000), "for a number of bytes"),
        (put(size=5), "do not add up to 5 bytes"),
        (put(rest="lzma"), "expected zstd or stored"),
        (put(rest="stored"), "stored bytes, expected"),
        (put(parts=3), "expected zstd or stored and at most"),
        (put(parts=[["rest", 0, 0]] * 100_001), "at most 100000 parts"),
        (put_part(1, "bytes"), "in an unknown way"),
        (put_part(1, ["bytes", SIZE]), "in an unknown way"),
        (put_part(1, ["bytes", SIZE, CODED]), "cannot decode"),
        (put_part(1, ["pickle", SIZE, CODED, 0]), "cannot decode"),
        (put_part(1, ["delta", SIZE, CODED, 0]), "cannot decode"),
        (put_part(1, ["planes", SIZE, CODED, 0]), "cannot decode"),
        (put_part(1, ["planes", SIZE, CODED, 4]), r"part 1 \(planes\): .*zstandard frame"),
        (put_part(1, ["nibbles", SIZE, CODED, 0]), r"part 1 \(nibbles\): "),
        (put_part(1, ["jpeg", SIZE, CODED, 24, 100, 0, 1]), "cannot decode"),
        (put_part(1, ["jpeg", SIZE, CODED, 24, 101, 0, 0]), "cannot decode"),
        (put_part(1, ["jpeg", SIZE, CODED, 24, 100, 2, 0]), "cannot decode"),
        (put_part(1, ["jpeg", SIZE, CODED, 24, 100, 0, 0]), r"part 1 \(jpeg\): "),
        (put_part(0, ["rest", 100, 1]), "cannot decode"),
    ],
)
def test_lies_in_the_header(change: Callable[[dict[str, Any]], None], says: str) -> None:
    refused(changed(CONTAINER, change), says)


def one_part(part: list[Any], payload: bytes, *, rest: int = 0) -> bytes:
    """A container of one file with one part."""
    file = {"name": "m", "size": part[1], "sha256": "0" * 64, "rest": "zstd", "rest_coded": rest, "parts": [part]}
    return put_together({"files": [file]}, payload)


def bomb_frame(declared: int) -> bytes:
    """A zstandard frame that says it holds so much, and holds nothing."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", declared) + b"\x01\x00\x00"


EMPTY = zstd(b"")


@pytest.mark.parametrize(
    ("container", "says"),
    [
        (one_part(["bytes", 2**32, 5, 0], b"\0\0\x01\x01\0"), "expected at most"),
        (one_part(["rest", 2**32, 0], bomb_frame(2**32), rest=16), "expected at most"),
        (one_part(["rest", 1000, 0], bomb_frame(2**60), rest=16), f"frame of {2**60} bytes, expected 1000"),
        (one_part(["rest", 1000, 0], zstd(bytes(1 << 24)), rest=len(zstd(bytes(1 << 24)))), "expected 1000"),
        (one_part(["planes", 64, 16, 4], EMPTY + bomb_frame(2**50)), "found|speaks"),
        (put_together(b" " * (MAX_HEADER_BYTES + 1), b""), "found a header of"),
    ],
)
def test_bombs_are_refused_before_they_are_held(container: bytes, says: str) -> None:
    tracemalloc.start()
    try:
        refused(container, says)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_holds_less_than_it_says() -> None:
    refused(one_part(["rest", 1000, 0], bomb_frame(1000), rest=16), "zstandard")


def test_range_coded_noise_of_any_kind_is_refused() -> None:
    rng = np.random.default_rng(0)
    for size in range(0, 400, 7):
        noise = bytes([0, 255, 16]) + rng.bytes(size)
        refused(one_part(["bytes", 2000, len(noise), 0], EMPTY + noise, rest=len(EMPTY)))
