"""What extracting leaves on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgepack.archive import tarxz
from edgepack.archive.archive import extract_file
from edgepack.errors import ModelError, OutputError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "two.tar.xz"
    path.write_bytes(tarxz.write({"a.onnx": b"first" * 50, "b.tflite": b"second" * 50}))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_land_beside_the_archive_or_where_asked(archive: Path, tmp_path: Path) -> None:
    extract_file(archive)
    assert names(archive.parent) == ["a.onnx", "b.tflite", "two.tar.xz"]
    extract_file(archive, tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "b.tflite").read_bytes() == b"second" * 50
    assert os.stat(tmp_path / "new" / "folder" / "b.tflite").st_mode & 0o777 == 0o644


def test_the_same_file_is_left_alone(archive: Path) -> None:
    extract_file(archive)
    before = (archive.parent / "a.onnx").stat().st_mtime_ns
    assert [file.written for file in extract_file(archive)] == [False, False]
    assert (archive.parent / "a.onnx").stat().st_mtime_ns == before


def test_a_different_file_is_replaced_only_by_force(archive: Path) -> None:
    (archive.parent / "b.tflite").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"b\.tflite exists and is not what two\.tar\.xz holds") as caught:
        extract_file(archive)
    assert "--force" in (caught.value.hint or "")
    assert names(archive.parent) == ["b.tflite", "two.tar.xz"], "nothing was written"
    assert (archive.parent / "b.tflite").read_bytes() == b"mine"
    extract_file(archive, force=True)
    assert (archive.parent / "b.tflite").read_bytes() == b"second" * 50


def test_a_folder_in_the_way(archive: Path) -> None:
    (archive.parent / "b.tflite").mkdir()
    with pytest.raises(OutputError, match="exists and is not"):
        extract_file(archive, force=True)


def test_a_failed_write_leaves_nothing(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgepack.archive.archive.os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        extract_file(archive, tmp_path / "out")
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("kind", ["missing", "folder", "noise"])
def test_no_archive(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.tar.xz"
    if kind == "folder":
        path.mkdir()
    elif kind == "noise":
        path.write_bytes(b"PK" * 100)
    with pytest.raises(ModelError, match=r"x\.tar\.xz: (found|no such file)") as caught:
        extract_file(path)
    assert caught.value.hint


def test_a_archive_larger_than_any(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.archive.tarxz.MAX_BYTES", 10)
    with pytest.raises(ModelError, match="expected at most 10"):
        extract_file(archive)


@pytest.mark.parametrize("name", ["two.epk", "two", "two.tar.zst"])
def test_a_file_of_another_suffix(archive: Path, name: str) -> None:
    found = archive.rename(archive.with_name(name))
    with pytest.raises(ModelError, match=r"expected a file whose name ends in \.tar\.xz") as caught:
        extract_file(found)
    assert caught.value.exit_code == 3
    assert "build --archive" in (caught.value.hint or "")
    assert names(found.parent) == [name]
