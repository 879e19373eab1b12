"""Archives that are damaged or lie: refused with a ModelError, before much is allocated."""

from __future__ import annotations

import json
import lzma
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.archive import tarxz
from edgepack.archive.archive import extract, pack
from edgepack.archive.images import JpegImage
from edgepack.errors import ModelError
from edgepack.methods import mosaic
from tests.archive.archives import CONTENT, archive, as_files, gaussian_codes, member, sums, tar, with_field, xz

PACKED = pack("model.onnx", CONTENT)
FILES = {"model.onnx": CONTENT}
LISTED = member("SHA256SUMS", sums(FILES))
MODEL = member("model.onnx", CONTENT)
JPEG = mosaic.encode(gaussian_codes(40, 256), 40)
CODES = mosaic.decode(JPEG, (40, 256))
HOLDING = b"before" + CODES.tobytes() + b"after"
WITH_IMAGE = as_files(pack("m", HOLDING, [JpegImage(CODES, JPEG)]))


def refused(content: bytes, says: str | None = None) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        extract(content, "far/model.tar.xz")
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("far/model.tar.xz: ")
    assert caught.value.hint


def test_the_samples_are_good() -> None:
    assert extract(PACKED, "x") == FILES
    assert extract(xz(tar([LISTED, MODEL])), "x") == FILES
    assert extract(archive(FILES), "x") == FILES
    assert extract(with_images(lambda index: None), "x") == {"m": HOLDING}


@given(st.integers(0, len(PACKED) - 1))
def test_a_cut_archive(end: int) -> None:
    refused(PACKED[:end])


@given(st.integers(0, len(PACKED) - 1), st.integers(1, 255))
def test_a_changed_byte(place: int, change: int) -> None:
    damaged = bytearray(PACKED)
    damaged[place] ^= change
    refused(bytes(damaged))


@given(st.integers(0, 2 * 512 + len(CONTENT)), st.integers(1, 255))
def test_a_changed_byte_behind_a_right_checksum_of_xz(place: int, change: int) -> None:
    damaged = bytearray(tar([LISTED, MODEL]))
    damaged[place] ^= change
    try:
        found = extract(xz(bytes(damaged)), "x")
    except ModelError:
        return
    assert found == FILES, "a byte that says nothing, such as padding"


@given(st.binary(max_size=200))
def test_noise(data: bytes) -> None:
    refused(data)
    refused(xz(data))
    refused(xz(data + bytes(1024)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "found 0 bytes"),
        (b"PK\x03\x04" + bytes(100), "expected an xz file"),
        (b"\x89EPK\r\n\x1a\n" + bytes(100), "expected an xz file"),
        (lzma.compress(tar([LISTED, MODEL]), format=lzma.FORMAT_ALONE), "expected an xz file"),
        (PACKED[:-1], "it is cut short"),
        (PACKED[:40], "it is cut short"),
        (PACKED + b"x", "found 1 bytes behind its end"),
        (PACKED + PACKED, f"found {len(PACKED)} bytes behind its end"),
        (xz(b""), "expected zeros to the end"),
        (xz(bytes(1024)), "found no SHA256SUMS"),
        (xz(tar([LISTED, MODEL], end=b"")), "expected zeros to the end"),
        (xz(tar([LISTED, MODEL], end=bytes(512))), "expected zeros to the end"),
        (xz(tar([LISTED, MODEL]) + b"x"), "expected zeros to the end"),
        (xz(tar([LISTED, MODEL], end=bytes(512)) + tar([MODEL])), "expected zeros to the end"),
        (xz(tar([LISTED, MODEL])[:900]), "SHA256SUMS|found no header|expected"),
        (xz(tar([LISTED, (MODEL[0], b"x")])), "model.onnx: found 1536 bytes, expected 2503"),
        (xz(tar([LISTED, MODEL, MODEL])), "model.onnx: found it twice"),
        (xz(tar([LISTED, LISTED, MODEL])), "SHA256SUMS: found it twice"),
        (xz(tar([MODEL])), "found no SHA256SUMS"),
        (xz(tar([LISTED])), "found the files none, expected those in SHA256SUMS: model.onnx"),
        (archive({**FILES, "more": b""}, sums(FILES)), "found the files model.onnx, more, expected"),
        (archive(FILES, sums({"model.onnx": b"another"})), "model.onnx: found the SHA-256"),
        (archive(FILES, b""), "expected those in SHA256SUMS: none"),
        (archive(FILES, b"\xff\xfe"), "SHA256SUMS: found the line"),
        (archive(FILES, 2 * sums(FILES)), "SHA256SUMS: found the line"),
        (archive(FILES, sums(FILES).upper()), "SHA256SUMS: found the line"),
        (archive(FILES, sums(FILES).replace(b"  ", b" *")), "SHA256SUMS: found the line"),
    ],
)
def test_bad_archives(content: bytes, says: str) -> None:
    refused(content, says)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a\\b", "..", ".", ".bashrc", "a/b", "c:x", "x ", "a\nb", "", "\udcff", "x" * 101],
)
def test_names_that_leave_the_folder(name: str) -> None:
    refused(xz(tar([member("SHA256SUMS", b""), member(name, b"x")])), "without a folder|in it|expected a file")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        b"Z",
    ],
)
def test_anything_but_files(kind: bytes) -> None:
    refused(xz(tar([LISTED, member("model.onnx", kind=kind, target="/etc/passwd")])), "link, folder, device")


def test_extensions_in_extensions() -> None:
    """A reader that follows them one in the other runs out of stack."""
    refused(xz(tar([member("x", b"x" * 20, tarfile.GNUTYPE_LONGNAME)] * 5000)), "link, folder, device")


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0", b"x" * 12, b"-0000000001\0"])
def test_sizes_that_cannot_be(size: bytes) -> None:
    refused(xz(tar([LISTED, (with_field(MODEL[0], 124, size), CONTENT)])), "expected|header")


def bomb(size: int, dictionary: int = 1 << 20) -> bytes:
    """Zeros without end, in a file that is made a piece at a time."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": dictionary}]
    coder = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
    piece = bytes(1 << 20)
    return b"".join([*(coder.compress(piece) for _ in range(size >> 20)), coder.flush()])


@pytest.mark.parametrize("head", [b"", tar([LISTED, MODEL], end=b"")], ids=["zeros", "behind a model"])
def test_bombs_are_refused_before_they_are_held(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarxz, "MAX_RATIO", 16)
    monkeypatch.setattr(tarxz, "SLACK_BYTES", 1 << 20)
    coder = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_CRC32, preset=0)
    content = coder.compress(head) + coder.compress(bytes(64 << 20)) + coder.flush()
    tracemalloc.start()
    try:
        refused(content, "it holds more than")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_what_an_archive_may_hold_is_bounded_by_its_size() -> None:
    assert tarxz.largest(0) == 64 << 20
    assert tarxz.largest(1 << 20) == (64 << 20) + (1 << 30)
    assert tarxz.largest(1 << 30) == 4 << 30
    refused(bomb(80 << 20), "it holds more than")


def test_a_decoder_that_wants_much_memory() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    content = bytearray(lzma.compress(tar([LISTED, MODEL]), filters=filters, check=lzma.CHECK_CRC32))
    # The block header, at byte 12: its size, flags, filter 0x21 with one byte of properties, which is the dictionary.
    assert content[12:16] == b"\x02\x00\x21\x01"
    content[16] = 40  # 4 GiB less one byte
    content[20:24] = zlib.crc32(content[12:20]).to_bytes(4, "little")
    refused(bytes(content), "[Mm]emory")


def with_images(change: Callable[[dict[str, Any]], object], **files: bytes) -> bytes:
    """The archive of a model file with one image, with another index and other files."""
    index = json.loads(WITH_IMAGE["images.json"])
    change(index)
    kept = {name: content for name, content in WITH_IMAGE.items() if name != "SHA256SUMS"}
    return archive({**kept, "images.json": json.dumps(index).encode(), **files})


def put(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index.update(fields)


def put_image(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["images"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put(name="../m"), "expected one without a folder"),
        (put(name="other"), "lists 3 files"),
        (put(name=7), "valid string"),
        (put(images=[]), "lists 2 files"),
        (put(images=3), "images: Input should be a valid array"),
        (put(more=1), "Extra inputs"),
        (put(sha256="0" * 64), "expected 0{64}"),
        (put_image(offset=-1), "greater than or equal to 0"),
        (put_image(offset=12), "found no room for 10240 bytes at byte 12"),
        (put_image(offset=10**4000), "images.0.offset: Input should be less than"),
        (put_image(offset=True), "valid integer"),
        (put_image(rows=41), "found no room"),
        (put_image(rows=0), "greater than 0"),
        (put_image(rows=2**32, columns=2**32), "found no room"),
        (put_image(rows=20), "expected a grey baseline JPEG|SHA-256"),
        (put_image(transposed=True), "found the SHA-256"),
        (put_image(zero_point=3), "0 or 128"),
        (put_image(zero_point=128), "found the SHA-256"),
        (lambda index: index["images"].append(index["images"][0]), "lists 4 files"),
    ],
)
def test_lies_in_the_index(change: Callable[[dict[str, Any]], object], says: str) -> None:
    refused(with_images(change), says)


def test_images_that_are_none() -> None:
    refused(with_images(lambda index: None, **{"0.jpg": b"noise"}), "JPEG image cannot be read")
    refused(with_images(lambda index: None, **{"images.json": b"[" * 100_000}), "images.json: Invalid JSON: recursion")
    refused(with_images(lambda index: None, **{"more.jpg": JPEG}), "lists 3 files, found 4")
    refused(archive({"images.json": b"{}"}), "images.json: name: Field required")


def test_images_on_top_of_each_other_are_not_decoded() -> None:
    """Else a small archive would decode the same bytes without end."""

    def twice(index: dict[str, Any]) -> None:
        index["images"].append({**index["images"][0], "offset": 0})

    refused(with_images(twice, **{"1.jpg": JPEG}), "found no room")


def test_noise_in_place_of_an_image() -> None:
    rng = np.random.default_rng(0)
    for size in range(0, 400, 37):
        refused(with_images(lambda index: None, **{"0.jpg": rng.bytes(size)}))
