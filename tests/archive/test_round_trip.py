"""Model files through an archive: the very bytes, whatever they are, and readable without edgepack."""

from __future__ import annotations

import io
import json
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.archive import archive as archiving
from edgepack.archive import tarxz
from edgepack.archive.archive import extract, pack
from edgepack.archive.images import JpegImage, laid
from edgepack.errors import ProofError, UsageError
from edgepack.methods import mosaic
from tests.archive.archives import CONTENT, archive, as_files, gaussian_codes, sums

contents = st.binary(max_size=200) | st.builds(
    lambda seed, size, most: np.random.default_rng(seed).integers(0, most, size, np.uint8).tobytes(),
    st.integers(0, 99),
    st.integers(0, 40_000),
    st.sampled_from([1, 4, 200]),
)


@given(contents)
def test_any_bytes(content: bytes) -> None:
    packed = pack("model.onnx", content)
    assert extract(packed, "x") == {"model.onnx": content}
    assert pack("model.onnx", content) == packed
    assert as_files(packed) == {"SHA256SUMS": sums({"model.onnx": content}), "model.onnx": content}


def test_files_without_times_and_owners() -> None:
    packed = tarxz.write({"b": b"1", "a": b"2"})
    with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
        infos = opened.getmembers()
    assert [info.name for info in infos] == ["SHA256SUMS", "b", "a"]
    assert {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in infos} == {
        (0, 0, 0, "", "", 0o644)
    }


@pytest.mark.system
@pytest.mark.skipif(not all(map(shutil.which, ("tar", "xz", "sha256sum"))), reason="tar, xz and sha256sum are missing")
def test_other_tools_open_and_check_it(tmp_path: Path) -> None:
    (tmp_path / "m.tar.xz").write_bytes(pack("model.onnx", CONTENT))
    subprocess.run(["tar", "-xf", "m.tar.xz"], cwd=tmp_path, check=True)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == "model.onnx: OK\n"
    assert (tmp_path / "model.onnx").read_bytes() == CONTENT


@pytest.mark.system
@pytest.mark.skipif(not all(map(shutil.which, ("tar", "xz"))), reason="tar and xz are missing")
def test_what_other_tools_pack_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(CONTENT)
    (tmp_path / "SHA256SUMS").write_bytes(sums({"model.onnx": CONTENT}))
    subprocess.run(["tar", "-cJf", "m.tar.xz", "model.onnx", "SHA256SUMS"], cwd=tmp_path, check=True)
    assert extract((tmp_path / "m.tar.xz").read_bytes(), "x") == {"model.onnx": CONTENT}


@pytest.mark.parametrize(
    ("content", "share"),
    [
        (gaussian_codes(64, 512).tobytes(), 0.95),
        (np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32).tobytes(), 0.88),
    ],
    ids=["int8", "float32"],
)
def test_no_larger_than_xz_makes_it(content: bytes, share: float) -> None:
    """Floats are the ones that xz by itself does not see as numbers of four bytes."""
    alone = len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    packed = len(pack("m", content))
    assert packed <= alone + 250, "header and hash"
    assert packed < share * len(content)


def test_a_small_file_asks_for_little_memory() -> None:
    decoder = lzma.LZMADecompressor(memlimit=1 << 20)
    assert CONTENT in decoder.decompress(pack("m", CONTENT))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("zero_point", [0, 128])
def test_codes_of_a_jpeg_travel_as_the_jpeg(transposed: bool, zero_point: int) -> None:
    jpeg = mosaic.encode(gaussian_codes(40, 256), 40)
    codes = mosaic.decode(jpeg, (40, 256))
    content = b"before" + laid(codes, transposed=transposed, zero_point=zero_point) + b"after"
    packed = pack("m", content, [JpegImage(codes, jpeg)])
    files = as_files(packed)
    assert set(files) == {"SHA256SUMS", "images.json", "m.rest", "0.jpg"}
    assert files["0.jpg"] == jpeg
    assert files["m.rest"] == b"before" + bytes(40 * 256) + b"after"
    (place,) = json.loads(files["images.json"])["images"]
    assert place == {"offset": 6, "rows": 40, "columns": 256, "transposed": transposed, "zero_point": zero_point}
    assert len(jpeg) < len(packed) < len(pack("m", content))
    assert extract(packed, "x") == {"m": content}


def test_two_layers_of_the_same_codes_have_a_place_each() -> None:
    jpeg = mosaic.encode(gaussian_codes(40, 256), 40)
    image = JpegImage(mosaic.decode(jpeg, (40, 256)), jpeg)
    content = image.codes.tobytes() + b"between" + image.codes.tobytes()
    packed = pack("m", content, [image, image])
    assert [place["offset"] for place in json.loads(as_files(packed)["images.json"])["images"]] == [0, 40 * 256 + 7]
    assert extract(packed, "x") == {"m": content}


def test_a_jpeg_of_other_codes_is_not_used() -> None:
    codes = gaussian_codes(40, 256)
    packed = pack("m", codes.tobytes(), [JpegImage(codes, mosaic.encode(codes, 40))])
    assert set(as_files(packed)) == {"SHA256SUMS", "m"}


def test_codes_that_the_file_does_not_hold_are_left_out() -> None:
    jpeg = mosaic.encode(gaussian_codes(40, 256), 40)
    packed = pack("m", CONTENT, [JpegImage(mosaic.decode(jpeg, (40, 256)), jpeg)])
    assert set(as_files(packed)) == {"SHA256SUMS", "m"}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "/etc/x", "c:x", ".hidden", "a\0b", "x" * 300])
def test_paths_are_not_packed(name: str) -> None:
    with pytest.raises(UsageError, match="expected one without a folder"):
        pack(name, b"x")


def test_more_than_an_archive_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarxz, "MAX_BYTES", 10)
    with pytest.raises(UsageError, match="expected at most 10"):
        pack("a", b"123456")


def test_an_archive_that_gives_other_bytes_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving.tarxz, "write", lambda files: archive({"m": b"other"}))
    with pytest.raises(ProofError, match="does not give it back"):
        pack("m", CONTENT)
