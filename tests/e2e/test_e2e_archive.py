"""build --archive and extract, both formats, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.e2e_cli import assert_fails, invoke


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Path:
    out = tmp_path_factory.mktemp("transport") / "pack"
    done = invoke(
        *("build", f"{recipe_file}:recipe", "--target", "rpi4", "--rank", "0.25", "--precision", "int8"),
        *("--no-baseline", "--archive", "--out", out),
    )
    assert done.code == 0, done.err
    assert "on the wire" in done.out
    return out


@pytest.mark.parametrize("fmt", ["onnx", "tflite"])
def test_extracted_files_are_the_packs_to_the_byte(pack: Path, tmp_path: Path, fmt: str) -> None:
    entry = json.loads((pack / "manifest.json").read_text())["files"][f"model.{fmt}"]
    archive = pack / "archive" / f"model.{fmt}.tar.xz"
    assert archive.stat().st_size == entry["archive_bytes"] < entry["size_bytes"]
    done = invoke("extract", archive, "--out", tmp_path)
    assert done.code == 0, done.err
    assert f"{entry['sha256'][:16]}… ok" in done.out
    assert (tmp_path / f"model.{fmt}").read_bytes() == (pack / f"model.{fmt}").read_bytes()
    found = json.loads(invoke("extract", archive, "--out", tmp_path, "--json").out)
    assert found["archive_bytes"] == entry["archive_bytes"]
    assert found["files"] == [
        {
            "path": str(tmp_path / f"model.{fmt}"),
            "sha256": entry["sha256"],
            "size_bytes": entry["size_bytes"],
            "written": False,
        }
    ]


def test_a_different_file_and_a_damaged_archive(pack: Path, tmp_path: Path) -> None:
    archive = pack / "archive" / "model.onnx.tar.xz"
    (tmp_path / "model.onnx").write_text("mine")
    assert_fails(invoke("extract", archive, "--out", tmp_path), 2, ["exists and is not what model.onnx.tar.xz holds"])
    assert invoke("extract", archive, "--out", tmp_path, "--force").code == 0
    damaged = tmp_path / "cut.tar.xz"
    damaged.write_bytes(archive.read_bytes()[:-9])
    assert_fails(invoke("extract", damaged), 3, [r"cut\.tar\.xz: found .* it is cut short"])
