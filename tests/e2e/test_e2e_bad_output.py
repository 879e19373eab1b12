"""Where the pack cannot be written: the folder is something else, read-only, or full."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.e2e_cli import Done, assert_fails, invoke

Mount = Callable[[str], Path]


def build(model: Path, out: Path, **env: str) -> Done:
    return invoke("build", model, "--target", "rpi4", "--formats", "onnx", "--out", out, env=env)


def test_folder_that_is_no_pack_stays_as_it_is(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "cat.jpg").write_bytes(b"meow")
    assert_fails(build(model, out), 2, ["photos exists and is not a pack"])
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
    assert (out / "cat.jpg").read_bytes() == b"meow"


def test_file_in_the_way(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert_fails(build(model, tmp_path / "file"), 2, ["file exists and is not a pack"])
    assert_fails(build(model, tmp_path / "file" / "pack"), 2, ["a part of the path is a file"])
    assert (tmp_path / "file").read_text() == "x"


def test_empty_folder_and_earlier_pack_are_taken(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "pack"
    out.mkdir()
    for _ in range(2):
        done = build(model, out)
        assert done.code == 0, done.err
    assert [p.name for p in tmp_path.iterdir()] == ["pack"]


def test_failed_rebuild_leaves_the_earlier_pack(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "pack"
    assert build(model, out).code == 0
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    done = invoke("build", tmp_path / "nope.onnx", "--target", "rpi4", "--formats", "onnx", "--out", out)
    assert done.code == 3
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["pack"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a tmpfs with the given options on a new folder."""
    folders = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mount{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("mounting a file system takes root and mount")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.system
def test_read_only_folder(mounted: Mount, model: Path) -> None:
    folder = mounted("ro,size=1m")
    assert_fails(build(model, folder / "pack"), 2, ["cannot write .*pack: .*read-only"])
    assert list(folder.iterdir()) == []


@pytest.mark.system
def test_disk_full(mounted: Mount, model: Path) -> None:
    folder = mounted("size=32k")
    assert_fails(build(model, folder / "pack"), 2, ["cannot write .*pack: the disk is full"])
    assert list(folder.iterdir()) == []


@pytest.mark.system
def test_cache_on_a_read_only_disk(mounted: Mount, tmp_path: Path, model: Path) -> None:
    folder = mounted("ro,size=1m")
    done = build(model, tmp_path / "pack", EDGEPACK_CACHE=str(folder / "cache"))
    assert_fails(done, 2, ["cannot write to .*cache"], out=tmp_path / "pack")
    assert "EDGEPACK_CACHE" in done.err


@pytest.mark.system
def test_cache_on_a_full_disk(mounted: Mount, tmp_path: Path, model: Path) -> None:
    folder = mounted("size=8k")
    done = build(model, tmp_path / "pack", EDGEPACK_CACHE=str(folder / "cache"))
    assert_fails(done, 2, ["cannot write"], out=tmp_path / "pack")
    assert "EDGEPACK_CACHE" in done.err


@pytest.mark.system
def test_working_folder_on_a_full_disk(
    mounted: Mount, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mounted("size=16k")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    done = build(model, tmp_path / "pack")
    assert_fails(done, 2, [str(folder)], out=tmp_path / "pack")
    assert list(folder.iterdir()) == []
