"""`edgepack clean` removes what dead processes left, and of the cache what was asked for."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgepack.cache import PARTS, Cache, entries
from edgepack.cli import app
from edgepack.scratch import held_folder
from edgepack.workspace import Step, Workspace


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With ten results, of which each is a day older than the next."""
    folder = tmp_path / "cache"
    (tmp_path / "work" / "dist").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("EDGEPACK_CACHE", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "work")
    workspace = Workspace(Cache(folder), tmp_path)
    for value in range(10):
        workspace.cached(Step("numbers", 1, lambda value: value), value)
    for days, entry in enumerate(entries(folder)):
        os.utime(entry.path, (time.time() - 86400 * (days + 0.5),) * 2)
    return folder


def cleaned(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(app, ["clean", "--json", *arguments])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_what_dead_processes_left_goes_and_what_a_living_one_holds_stays(tmp_path: Path, cache: Path) -> None:
    places = [tmp_path / "tmp", tmp_path / "work", tmp_path / "work" / "dist", cache / PARTS]
    left = [place / ".some.1234.edgepack" for place in places]
    for folder in left:
        folder.mkdir(parents=True)
    with held_folder(tmp_path / "work") as held:
        found = cleaned()
        assert held.exists()
    assert sorted(found["left"]) == sorted(map(str, left))  # type: ignore[call-overload]
    assert not any(folder.exists() for folder in left)
    size = sum(entry.size_bytes for entry in entries(cache))
    assert found["cache"] == {
        "folder": str(cache), "entries": 10, "size_bytes": size, "removed": 0, "removed_bytes": 0
    }  # fmt: skip
    assert cleaned()["left"] == []


def test_the_cache_is_trimmed_by_age_and_by_size(cache: Path) -> None:
    each = entries(cache)[0].size_bytes
    assert cleaned("--unused-days", "7")["cache"]["removed"] == 3  # type: ignore[index]
    assert cleaned("--max-cache", f"{each * 4 + 1}B")["cache"]["entries"] == 4  # type: ignore[index]
    assert cleaned("--max-cache", "0B")["cache"]["size_bytes"] == 0  # type: ignore[index]


def test_folders_that_are_none(cache: Path) -> None:
    result = CliRunner().invoke(app, ["clean", "nowhere"])
    assert result.exit_code == 2
    assert "nowhere is no folder" in result.stderr
    assert len(entries(cache)) == 10
