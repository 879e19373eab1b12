"""The pack folder: there whole or not at all, and never on top of something else."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack.errors import OutputError, PackError
from edgepack.pack.facts import read_facts
from edgepack.pack.folder import MANIFEST, writing
from edgepack.pack.manifest import read_manifest, write_manifest
from tests.manifests import whole


def build(out: Path, models: dict[str, bytes], name: str = "some") -> None:
    with writing(out) as folder:
        for file, content in models.items():
            (folder / file).write_bytes(content)
        write_manifest(folder, whole({"model": {"name": name}}))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def bench(pack: Path) -> None:
    (pack / "results").mkdir()
    (pack / "results" / "run.json").write_text("{}")


def test_the_pack_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "dist" / "a.rpi4"
    with writing(out) as folder:
        assert not out.exists()
        assert folder.parent == out.parent, "a rename within one file system"
        (folder / "model.onnx").write_bytes(b"m")
        write_manifest(folder, whole({"seed": 3}))
        assert not out.exists()
    assert read_manifest(out) == whole({"seed": 3})
    assert [p.name for p in out.parent.iterdir()] == ["a.rpi4"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_an_earlier_pack_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "p"
    build(out, {"model.onnx": b"1", "model.tflite": b"1"}, "old")
    build(out, {"model.onnx": b"2"}, "new")
    assert set(tree(out)) == {"model.onnx", MANIFEST}
    assert read_manifest(out).model.name == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("failure", [ValueError("bad model"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_changes_nothing(tmp_path: Path, failure: BaseException, existing: bool) -> None:
    out = tmp_path / "p"
    if existing:
        build(out, {"model.onnx": b"1"})
    before = tree(tmp_path)

    def broken() -> None:
        with writing(out) as folder:
            (folder / "model.onnx").write_bytes(b"half")
            raise failure

    with pytest.raises(type(failure)):
        broken()
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["p"] if existing else [])


def test_a_failed_rename_brings_the_old_pack_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "p"
    build(out, {"model.onnx": b"1"}, "old")
    before, replace = tree(tmp_path), os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target) == out and Path(source).name.startswith(".p.") and (Path(source) / "model.onnx").exists():
            raise OSError(errno.ENOSPC, "no space")
        replace(source, target)

    monkeypatch.setattr("edgepack.pack.folder.exchange", lambda one, other: False)
    monkeypatch.setattr("edgepack.pack.folder.os.replace", failing)
    with pytest.raises(OutputError, match="the disk is full"):
        build(out, {"model.onnx": b"2"}, "new")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_is_not_replaced(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "p"
    if kind == "file":
        out.write_text("thesis")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("thesis")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"exists and is not a pack") as caught:
        build(out, {"model.onnx": b"1"})
    assert caught.value.exit_code == 2
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    build(tmp_path / "p", {"model.onnx": b"1"})
    assert read_manifest(tmp_path / "p")


@pytest.mark.parametrize(
    ("second", "kept"),
    [
        ({"model.onnx": b"1", "model.tflite": b"2"}, True),
        ({"model.onnx": b"1", "model.tflite": b"3"}, False),
        ({"model.onnx": b"1"}, False),
        ({"model.onnx": b"1", "model.tflite": b"2", "model.extra": b"4"}, False),
    ],
)
def test_results_stay_only_with_the_very_same_models(tmp_path: Path, second: dict[str, bytes], kept: bool) -> None:
    out = tmp_path / "p"
    build(out, {"model.onnx": b"1", "model.tflite": b"2"}, "old")
    bench(out)
    build(out, second, "new")
    assert (out / "results" / "run.json").exists() is kept
    assert read_manifest(out).model.name == "new"


def test_a_part_of_the_path_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "p", tmp_path / "file" / "deep" / "p"):
        with pytest.raises(OutputError, match="a part of the path is a file"):
            build(out, {})


def test_errors_about_other_files_are_not_blamed_on_the_pack(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "secret.onnx"

    def reading() -> None:
        with writing(tmp_path / "dist" / "p"):
            raise PermissionError(errno.EACCES, "Permission denied", str(elsewhere))

    with pytest.raises(PermissionError, match=r"secret\.onnx"):
        reading()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"this kernel does not let us mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.system
def test_a_full_disk(mounted: Path) -> None:
    build(mounted / "p", {"model.onnx": b"1"}, "old")
    before = tree(mounted)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        build(mounted / "p", {"model.onnx": bytes(1 << 20)}, "new")
    assert str(mounted / "p") in caught.value.message
    assert caught.value.hint == "choose another place with --out"
    assert tree(mounted) == before
    assert [p.name for p in mounted.iterdir()] == ["p"]


@pytest.mark.system
def test_a_read_only_folder(mounted: Path) -> None:
    build(mounted / "p", {"model.onnx": b"1"}, "old")
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    for out in (mounted / "p", mounted / "new", mounted / "deep" / "er"):
        with pytest.raises(OutputError, match="the file system is read-only"):
            build(out, {"model.onnx": b"2"})
    assert read_manifest(mounted / "p").model.name == "old"


def test_manifests_are_stable(tmp_path: Path) -> None:
    write_manifest(tmp_path, whole({"versions": {"b": "1", "a": "2"}, "warnings": ["d", "c"]}))
    first = (tmp_path / MANIFEST).read_text()
    write_manifest(tmp_path, whole({"warnings": ["d", "c"], "versions": {"a": "2", "b": "1"}}))
    assert (tmp_path / MANIFEST).read_text() == first
    assert first.endswith("}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a pack, there is no manifest.json"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[1]", "schema version None, this edgepack reads 1"),
        (b"{}", "schema version None"),
        (b'{"schema_version": 2}', "schema version 2, this edgepack reads 1"),
        (b'{"schema_version": "1"}', "schema version 1"),
    ],
)
def test_bad_manifests(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    for read in (read_manifest, read_facts):
        with pytest.raises(PackError) as caught:
            read(tmp_path)
        assert message in caught.value.message
        assert str(tmp_path) in caught.value.message


def test_a_manifest_too_large_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path, whole({}))
    monkeypatch.setattr("edgepack.pack.manifest.MAX_MANIFEST_BYTES", 50)
    with pytest.raises(PackError, match="a manifest has at most 50"):
        read_manifest(tmp_path)
