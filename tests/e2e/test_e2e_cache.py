"""Caches that went wrong, several builds at once, a disk that is full: the same pack, or one clear error."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack.cache import PARTS, entries
from tests.e2e.conftest import Built
from tests.e2e.e2e_cli import command, invoke


def contents(pack: Path) -> dict[str, bytes]:
    return {str(path.relative_to(pack)): path.read_bytes() for path in sorted(pack.rglob("*")) if path.is_file()}


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob("*.edgepack"))


def test_one_bit_flipped_in_every_entry_of_every_kind(rpi4_pack: Built, recipe_file: Path, tmp_path: Path) -> None:
    cache, out, draw = tmp_path / "cache", tmp_path / "pack", random.Random(21)
    shutil.copytree(rpi4_pack.cache, cache)
    found = entries(cache)
    whole = {entry.path: entry.path.read_bytes() for entry in found}
    flipped = {}
    for path, raw in whole.items():
        bit = draw.randrange(8 * len(raw))
        flipped[path] = raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]
        path.write_bytes(flipped[path])
    asked = ("build", f"{recipe_file}:recipe", "--target", "rpi4", "--max-drop", "1", "--out", out)
    done = invoke(*asked, env={"EDGEPACK_CACHE": str(cache)})
    assert done.code == 0, done.err
    assert contents(out) == contents(rpi4_pack.path)
    # What other builds of these tests left in the cache is not looked at.
    used = [path for path in whole if path.read_bytes() != flipped[path]]
    assert {path.relative_to(cache).parts[0] for path in used} >= {
        *("moments", "spectra", "losses", "trials", "tflite", "tflite-quantized"),
    }
    assert [path.relative_to(cache) for path in used if path.read_bytes() != whole[path]] == []


def test_builds_at_once_in_one_cache_and_one_place(model: Path, data: Path, tmp_path: Path) -> None:
    out, cache, temporary = tmp_path / "dist" / "pack", tmp_path / "cache", tmp_path / "tmp"
    temporary.mkdir()
    asked = ("build", model, "--target", "rpi4", "--formats", "onnx", "--data", data, "--out")
    env = {**os.environ, "EDGEPACK_CACHE": str(cache), "TMPDIR": str(temporary)}
    builds = [subprocess.Popen(command(*asked, out), env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [build.communicate(timeout=300)[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], errors
    alone = tmp_path / "alone"
    assert invoke(*asked, alone, env={"EDGEPACK_CACHE": str(tmp_path / "other")}).code == 0
    assert contents(out) == contents(alone)
    assert [path.name for path in out.parent.iterdir()] == ["pack"]
    assert list(temporary.iterdir()) == list((cache / PARTS).iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.system
@pytest.mark.parametrize("place", ["EDGEPACK_CACHE", "TMPDIR"])
def test_a_disk_that_fills_in_mid_write(small_disk: Path, model: Path, data: Path, tmp_path: Path, place: str) -> None:
    (small_disk / "filler").write_bytes(bytes(240 << 10))
    out = tmp_path / "pack"
    env = {**os.environ, "EDGEPACK_CACHE": str(tmp_path / "cache"), place: str(small_disk)}
    asked = ("build", model, "--target", "rpi4", "--formats", "onnx", "--data", data, "--out", out, "--json")
    done = subprocess.run(command(*asked), env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "OutputError"
    assert str(small_disk) in error["message"]
    assert error["hint"]
    assert not out.exists()
    assert hidden(small_disk) == hidden(tmp_path) == []
