"""Packs that many tests look at, built once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.e2e_cli import Done, run
from tests.e2e.e2e_models import RECIPE, mlp, samples
from tests.shared import shared_folder


@dataclass(frozen=True)
class Built:
    """A pack, how its build ended, and the cache that it filled."""

    path: Path
    done: Done
    cache: Path

    @property
    def manifest(self) -> Mapping[str, Any]:
        return json.loads((self.path / "manifest.json").read_text())


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier as a recipe. Read-only."""

    def fill(folder: Path) -> None:
        (folder / "points.py").write_text(RECIPE)

    return shared_folder(tmp_path_factory, "recipe", fill) / "points.py"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier as ONNX. Read-only."""
    return mlp(tmp_path_factory.mktemp("onnx") / "points.onnx")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its calibration points, without labels. Read-only."""
    return samples(tmp_path_factory.mktemp("data") / "points.npz")


@pytest.fixture(scope="session")
def rpi4_pack(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Built:
    """Both formats from the recipe, for another machine than this, with a cache of its own. Read-only."""

    def fill(folder: Path) -> None:
        asked = ("build", f"{recipe_file}:recipe", "--target", "rpi4", "--max-drop", "1")
        done = run(*asked, "--out", folder / "dist" / "points.rpi4", env={"EDGEPACK_CACHE": str(folder / "cache")})
        assert done.code == 0, done.err
        (folder / "done.json").write_text(json.dumps(asdict(done)))

    folder = shared_folder(tmp_path_factory, "rpi4", fill)
    done = Done(**json.loads((folder / "done.json").read_text()))
    return Built(folder / "dist" / "points.rpi4", done, folder / "cache")
