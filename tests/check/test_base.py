"""Where a base may be, and what is said where it is not."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgepack.check.base import opened_base
from edgepack.check.figures import KIND, PackFigures
from edgepack.errors import PackError
from tests.check.test_changes import BASE


def git(folder: Path, *arguments: str) -> None:
    who = {f"GIT_{one}_{what}": "x@y" for one in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), *arguments]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **who})


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack in a repository, changed since its one commit, `main`."""
    folder = tmp_path / "work" / "dist" / "mlp.rpi4"
    (folder / "results").mkdir(parents=True)
    for name, text in (("manifest.json", "{}"), ("model.onnx", "old"), ("results/x.json", "{}")):
        (folder / name).write_text(text)
    git(tmp_path / "work", "init", "-q", "-b", "main")
    git(tmp_path / "work", "add", "-A")
    git(tmp_path / "work", "commit", "-q", "-m", "first")
    (folder / "model.onnx").write_text("new")
    return folder


def contents(against: str, pack: Path) -> dict[str, str]:
    with opened_base(against, pack) as base:
        assert isinstance(base, Path)
        return {str(path.relative_to(base)): path.read_text() for path in base.rglob("*") if path.is_file()}


@pytest.mark.parametrize("against", ["main", "HEAD", "main:dist/mlp.rpi4", "main:dist/mlp.rpi4/"])
def test_of_a_revision_the_files_are_taken_that_a_check_reads(
    against: str, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(pack.parent.parent / ".git"))  # as in a hook
    assert contents(against, pack) == {"manifest.json": "{}", "model.onnx": "old"}
    assert (pack / "model.onnx").read_text() == "new"


def test_a_folder_is_a_pack_or_holds_one_of_the_same_name(pack: Path, tmp_path: Path) -> None:
    assert contents(str(pack), pack)["model.onnx"] == "new"
    other = tmp_path / "other" / pack.name
    other.mkdir(parents=True)
    (other / "manifest.json").write_text("[]")
    assert contents(str(other.parent), pack) == {"manifest.json": "[]"}
    with pytest.raises(PackError, match=r"found neither manifest\.json nor a pack mlp\.rpi4"):
        contents(str(pack / "results"), pack)


@pytest.mark.parametrize(
    ("against", "says"),
    [
        ("mian", "mian: no such file or folder, and not in git: "),
        ("--all", "--all: no such file or folder, and not in git: "),
        (":dist", ":dist: no such file or folder, and not in git: "),
        ("main:dist", r"main:dist: found no dist/manifest\.json in that revision"),
        ("main:../x", r"main:\.\./x: "),
    ],
)
def test_a_revision_that_has_no_such_pack(against: str, says: str, pack: Path) -> None:
    with pytest.raises(PackError, match=says):
        contents(against, pack)


def test_no_repository_and_pointers_are_said(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="not in git: not a git repository"):
        contents("main", tmp_path)
    (pack / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n")
    git(pack, "commit", "-q", "-a", "-m", "second")
    with pytest.raises(PackError, match=r"dist/mlp\.rpi4/model\.onnx is a pointer of Git LFS"):
        contents("main", pack)


def recorded(figures: PackFigures) -> dict[str, Any]:
    return {"kind": KIND, "schema_version": 1, "figures": asdict(figures), "changes": []}


def test_figures_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_text(json.dumps(recorded(BASE), sort_keys=True))
    with opened_base(str(path), tmp_path) as base:
        assert base == BASE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "found no document"),
        ("{", "found no JSON"),
        ("[1]", "found no document"),
        (json.dumps({"kind": "edgepack-bench"}), "found no document"),
        (json.dumps(recorded(replace(BASE, model="\x1b[2J"))), "control characters"),
        (json.dumps(recorded(replace(BASE, files=()))), "its files are none"),
        (json.dumps({"kind": KIND, "figures": {**asdict(BASE), "files": [{}]}}), "not figures of this edgepack: files"),
        (json.dumps({"kind": KIND, "figures": {**asdict(BASE), "more": 1}}), "not figures of this edgepack: more"),
    ],
)
def test_what_is_no_such_file_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (path := tmp_path / "base.json").write_text(text)
    with pytest.raises(PackError, match=says), opened_base(str(path), tmp_path):
        pass
