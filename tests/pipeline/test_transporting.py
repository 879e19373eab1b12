"""A pack with containers, and what unpacking leaves on the disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from small_builds import options

from edgepack.cache import Cache
from edgepack.errors import ModelError, OutputError, UsageError
from edgepack.pipeline import build as building
from edgepack.pipeline.build import build
from edgepack.pipeline.transporting import packed, unpack_file
from edgepack.transport.packing import pack
from edgepack.transport.parts import Source


def asked(classifier: Path, out: Path, **changes: Any) -> Any:
    return options(classifier, rank=32, precision="int8", transport=True, baseline=False, out=out, **changes)


def test_a_build_with_transport(classifier: Path, warm_cache: Path, tmp_path: Path) -> None:
    made = build(asked(classifier, tmp_path / "p"), cache=Cache(warm_cache))
    entry = made.manifest.record()["files"]["model.onnx"]
    container = tmp_path / "p" / entry["transport"]["file"]
    assert container == tmp_path / "p" / "transport" / "model.onnx.epk"
    assert entry["wire_bytes"] == container.stat().st_size < 0.95 * entry["size_bytes"]
    assert entry["transport"]["sha256"] == hashlib.sha256(container.read_bytes()).hexdigest()
    parts = entry["transport"]["parts"]
    assert sum(part["size_bytes"] for part in parts) == entry["size_bytes"]
    assert {part["name"]: part["codec"] for part in parts}["w2.B.int8"] == "bytes"
    (file,) = unpack_file(container, tmp_path / "out")
    assert file.path.read_bytes() == (tmp_path / "p" / "model.onnx").read_bytes()
    assert (file.sha256, file.size_bytes, file.written) == (entry["sha256"], entry["size_bytes"], True)
    again = build(asked(classifier, tmp_path / "q"), cache=Cache(warm_cache))
    assert again.manifest.record()["files"] == made.manifest.record()["files"]


def test_missing_libraries_are_said_before_any_work(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UsageError("compressed model files need constriction")

    monkeypatch.setattr(building, "need_all", missing)
    with pytest.raises(UsageError, match="need constriction"):
        build(asked(classifier, tmp_path / "p"), cache=Cache(tmp_path / "cache"))
    assert not (tmp_path / "p").exists()
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def container(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "two.epk"
    path.write_bytes(pack([Source("a.onnx", b"first" * 50), Source("b.tflite", b"second" * 50)]).content)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_land_beside_the_container_or_where_asked(container: Path, tmp_path: Path) -> None:
    unpack_file(container)
    assert names(container.parent) == ["a.onnx", "b.tflite", "two.epk"]
    unpack_file(container, tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "b.tflite").read_bytes() == b"second" * 50
    assert os.stat(tmp_path / "new" / "folder" / "b.tflite").st_mode & 0o777 == 0o644


def test_the_same_file_is_left_alone(container: Path) -> None:
    unpack_file(container)
    before = (container.parent / "a.onnx").stat().st_mtime_ns
    assert [file.written for file in unpack_file(container)] == [False, False]
    assert (container.parent / "a.onnx").stat().st_mtime_ns == before


def test_a_different_file_is_replaced_only_by_force(container: Path) -> None:
    (container.parent / "b.tflite").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"b\.tflite exists and is not what two\.epk holds") as caught:
        unpack_file(container)
    assert "--force" in (caught.value.hint or "")
    assert names(container.parent) == ["b.tflite", "two.epk"], "nothing was written"
    assert (container.parent / "b.tflite").read_bytes() == b"mine"
    unpack_file(container, force=True)
    assert (container.parent / "b.tflite").read_bytes() == b"second" * 50


def test_a_folder_in_the_way(container: Path) -> None:
    (container.parent / "b.tflite").mkdir()
    with pytest.raises(OutputError, match="exists and is not"):
        unpack_file(container, force=True)


def test_a_failed_write_leaves_nothing(container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgepack.pipeline.transporting.os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        unpack_file(container, tmp_path / "out")
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("kind", ["missing", "folder", "noise"])
def test_no_container(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.epk"
    if kind == "folder":
        path.mkdir()
    elif kind == "noise":
        path.write_bytes(b"PK" * 100)
    with pytest.raises(ModelError, match=r"x\.epk: found") as caught:
        unpack_file(path)
    assert caught.value.hint


def test_a_container_larger_than_any(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.pipeline.transporting.MAX_TOTAL_BYTES", 10)
    with pytest.raises(ModelError, match="expected at most 10"):
        unpack_file(container)


def test_a_file_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="not a TFLite file"):
        packed(tmp_path / "m.tflite", "tflite")
