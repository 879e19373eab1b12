"""A model file alone: there whole or not at all, and only ever in the place of an earlier one of the same model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.errors import OutputError
from edgepack.pack.folder import file_format, writing_file
from edgepack.workspace import Cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "models" / "small.onnx"


def write(out: Path, content: bytes, cache: Cache, source: str = "points.onnx") -> None:
    with writing_file(out, "onnx", source, cache) as folder:
        (folder / "model.onnx").write_bytes(content)
        (folder / "manifest.json").write_text("{}")


def test_the_suffix_says_the_format() -> None:
    named = {"small.onnx": "onnx", "a/small.TFLite": "tflite", "dist/model.rpi4": None, "onnx": None, ".onnx": None}
    assert {name: file_format(Path(name)) for name in named} == named
    assert file_format(None) is None


def test_only_the_file_is_left(out: Path, cache: Cache) -> None:
    write(out, b"first", cache)
    assert out.read_bytes() == b"first"
    assert [path.name for path in out.parent.iterdir()] == ["small.onnx"]


def test_a_file_of_the_same_model_is_replaced_whatever_is_computed_again(out: Path, cache: Cache) -> None:
    write(out, b"first", cache, "here/points.onnx")
    write(out, b"second", Cache(cache.root, fresh=True), "there/points.onnx")
    write(out, b"third", cache)
    assert out.read_bytes() == b"third"


@pytest.mark.parametrize("of", ["another model", "nobody"])
def test_any_other_file_stays(of: str, out: Path, cache: Cache) -> None:
    if of == "nobody":
        out.parent.mkdir()
        out.write_bytes(b"first")
    else:
        write(out, b"first", cache, "other.onnx")
    with pytest.raises(OutputError, match=r"small.onnx exists, and no earlier build of points.onnx wrote it") as err:
        write(out, b"second", cache)
    assert err.value.hint == "give another name with -o, or remove it"
    assert out.read_bytes() == b"first"


def test_a_file_that_was_changed_since_stays(out: Path, cache: Cache) -> None:
    write(out, b"first", cache)
    out.write_bytes(b"first, and trained further")
    with pytest.raises(OutputError, match=r"no earlier build of points.onnx wrote it"):
        write(out, b"second", cache)


def test_the_model_itself_and_a_folder_stay(tmp_path: Path, cache: Cache) -> None:
    source = tmp_path / "small.onnx"
    source.write_bytes(b"model")
    with pytest.raises(OutputError, match=r"small.onnx is the model itself"):
        write(source, b"second", cache, str(source))
    (tmp_path / "b.onnx").mkdir()
    with pytest.raises(OutputError, match=r"b.onnx is a folder"):
        write(tmp_path / "b.onnx", b"second", cache)
    assert source.read_bytes() == b"model"


def test_a_failure_leaves_what_was_there(out: Path, cache: Cache) -> None:
    write(out, b"first", cache)
    with pytest.raises(ValueError, match="bad model"), writing_file(out, "onnx", "points.onnx", cache):
        raise ValueError("bad model")
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == {"small.onnx": b"first"}


def test_a_part_of_the_path_that_is_a_file_is_named(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        write(tmp_path / "file" / "small.onnx", b"", cache)
