"""`--metric recipe`: the recipe's own `evaluate` chooses the plan, and no more is said than one number can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import UsageError
from edgepack.pack.manifest import read_manifest
from edgepack.pipeline import prepare
from edgepack.pipeline.build import build
from edgepack.pipeline.explore import explore
from edgepack.pipeline.options import BuildOptions
from edgepack.report.build import build_report, explored_report
from edgepack.report.render.markdown import render
from edgepack.targets.file import get_target
from edgepack.workspace import Cache

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

RECIPE = """
import numpy as np
import torch
from torch import nn
from edgepack.model.types import Recipe


def recipe():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 6))
    x = torch.randn(600, 96) * torch.linspace(2, 0.1, 96)
    with torch.no_grad():
        model[2].bias -= model(x).mean(0)
        wanted = model(x).numpy()

    def evaluate(predict):
        # In percent of what varies, of the answers themselves: stricter than any count of classes.
        return 100.0 - 100.0 * float(np.square(predict(x.numpy()) - wanted).mean() / wanted.var())

    return Recipe(model, (torch.zeros(1, 96),), {"input": x.numpy(), "y": wanted.argmax(1)}, evaluate)


def without_evaluate():
    made = recipe()
    return Recipe(made.model, made.example_inputs, made.calibration)


def without_data():
    made = recipe()
    return Recipe(made.model, made.example_inputs, None, made.evaluate)
"""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "net.py"
    path.write_text(RECIPE)
    return path


def asked(spec: str, out: Path, **changes: Any) -> BuildOptions:
    chosen: dict[str, Any] = {"formats": ("onnx",), "metric": "recipe", **changes}
    return BuildOptions(spec, get_target("rpi4"), out=out, **chosen)


def test_its_score_holds_the_limit_and_is_said_to_have_no_interval(
    recipes: Path, warm_cache: Path, tmp_path: Path
) -> None:
    drops, sizes = [], []
    for limit in (0.005, 3.0):
        options = asked(f"{recipes}:recipe", tmp_path / str(limit), max_drop=limit, optimize="size")
        made = build(options, cache=Cache(warm_cache))
        manifest = read_manifest(made.out)
        entry = manifest.files["model.onnx"]
        assert (manifest.metric.name, manifest.metric.outputs) == ("recipe", ())
        assert (entry.scored_on, entry.confirmation, entry.test) == ("validation", None, None)
        assert entry.validation is not None
        assert entry.validation.drop == entry.validation.bound <= limit
        assert entry.validation.dense == pytest.approx(100.0, abs=1e-3)
        assert entry.metric == pytest.approx(100.0 - entry.validation.drop, abs=1e-2)
        text = " ".join(render(build_report(made.out, manifest)).split())
        assert "one number a file tells no interval" in text
        assert "metric: recipe" in text
        assert "at most" not in text
        drops.append(entry.validation.drop)
        sizes.append(entry.size_bytes)
    assert drops[0] < drops[1]
    assert sizes[0] > sizes[1]


def test_exploring_says_so_too(recipes: Path, warm_cache: Path, tmp_path: Path) -> None:
    found = explore(asked(f"{recipes}:recipe", tmp_path / "p"), cache=Cache(warm_cache))
    text = " ".join(render(explored_report(found.rows)).split())
    assert "one number a file tells no interval" in text
    assert "at most" not in text


def test_it_judges_a_model_without_data(recipes: Path, warm_cache: Path, tmp_path: Path) -> None:
    made = build(asked(f"{recipes}:without_data", tmp_path / "p", max_drop=1.0), cache=Cache(warm_cache))
    entry = made.manifest.files["model.onnx"]
    assert entry.validation is not None
    assert entry.validation.drop <= 1.0
    assert not any("no data" in line for line in made.manifest.warnings)


def test_what_has_no_evaluate_is_refused_before_any_work(
    recipes: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "load_data", None)
    with pytest.raises(UsageError, match="has no `evaluate`") as missing:
        build(asked(f"{recipes}:without_evaluate", tmp_path / "p"), cache=Cache(tmp_path / "c"))
    assert "another metric" in (missing.value.hint or "")
    monkeypatch.setattr(prepare, "open_model", None)
    with pytest.raises(UsageError, match="is no recipe"):
        build(asked(str(classifier), tmp_path / "p"), cache=Cache(tmp_path / "c"))
    with pytest.raises(UsageError, match="cannot be done with --test"):
        build(asked(f"{recipes}:recipe", tmp_path / "p", test=tmp_path / "t.npz"), cache=Cache(tmp_path / "c"))
    assert not (tmp_path / "p").exists()
