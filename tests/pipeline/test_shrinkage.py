"""Shrinkage of few rows: chosen on held-out samples, used by spectra and rounding, and better there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack.data import Samples
from edgepack.factorize import whitened
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.kinds import views_of
from edgepack.model.layer import View
from edgepack.model.model import Model
from edgepack.model.types import Moments
from edgepack.pipeline import activations
from edgepack.pipeline.activations import FEW, FEWEST, Covariances, Subject
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace
from tests.pipeline.small_builds import FEATURES, HIDDEN, points, write_classifier


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    return open_model(str(write_classifier(folder)), folder)


def correlated(count: int, seed: int) -> np.ndarray:
    """Inputs that vary in a few directions: the rule by their number alone shrinks them too far."""
    directions = np.random.default_rng(5).normal(size=(12, FEATURES))
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 12)) @ directions + 0.05 * rng.normal(size=(count, FEATURES))).astype(np.float32)


def moments_of(model: Model, x: np.ndarray, cache: Path) -> dict[str, Moments]:
    made = Covariances(Subject(model, Samples({"x": x}), f"key {len(x)}"), Workspace(Cache(cache), cache))
    return {layer.name: seen for layer in model.layers if (seen := made.of(layer.name)) is not None}


def test_few_rows_get_a_choice_that_loses_less_on_other_rows(model: Model, tmp_path: Path) -> None:
    seen = moments_of(model, correlated(120, 1), tmp_path)["w1"]
    assert seen.shrinkage is not None
    assert 0 <= seen.shrinkage <= 1
    layer = next(view for view in views_of(model.layers) if view.name == "w1")
    other = (correlated(2000, 2) - seen.mean) @ layer.weight.T
    lost = []
    for value in (seen.shrinkage, None):
        basis = whitened.spectrum(View("w1", layer.weight, layer.bias, replace(seen, shrinkage=value))).basis[:, :20]
        lost.append(float(np.square(other - other @ basis @ basis.T).sum()))
    assert lost[0] < lost[1]


def test_it_is_what_the_covariance_is_shrunk_by_and_survives_the_cache(model: Model, tmp_path: Path) -> None:
    first = moments_of(model, correlated(120, 1), tmp_path)["w1"]
    again = moments_of(model, correlated(120, 1), tmp_path)["w1"]
    assert first.shrinkage == again.shrinkage is not None
    unit = np.trace(first.covariance) / FEATURES
    expected = (1 - first.shrinkage) * first.covariance + first.shrinkage * unit * np.eye(FEATURES)
    np.testing.assert_allclose(shrunk_covariance(first), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [FEWEST - 1, FEW * HIDDEN])
def test_too_few_or_enough_rows_go_by_the_rule(
    model: Model, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "chosen", lambda *_: pytest.fail("nothing to choose"))
    found = moments_of(model, points(count, 3)[0], tmp_path)
    assert found["w1"].shrinkage is None


def test_a_layer_that_is_too_wide_goes_by_the_rule(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "WIDEST", FEATURES)
    found = moments_of(model, correlated(80, 1), tmp_path)
    assert found["w1"].shrinkage is not None
    assert found["w2"].shrinkage is None
