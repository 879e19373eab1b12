"""Covariances of layers' inputs: one pass over the data, the same bits from it and from the cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgepack.data import Samples
from edgepack.model.model import Model
from edgepack.model.types import Moments
from edgepack.pipeline import activations
from edgepack.pipeline.activations import Covariances, Subject
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace
from tests.pipeline.small_builds import points, write_classifier


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    return open_model(str(write_classifier(folder)), folder)


def covariances(model: Model, cache: Cache, *, data: bool = True) -> Covariances:
    samples = Samples({"x": points(300, 7)[0]}) if data else None
    return Covariances(Subject(model, samples, "key"), Workspace(cache, cache.root))


def passes_over(monkeypatch: pytest.MonkeyPatch, *, lacks: Collection[str] = ()) -> list[int]:
    """How many samples each pass over the data sees from now on; layers that `lacks` names are never seen."""
    passes: list[int] = []
    observe = activations.observe

    def counted(model: Model, names: Sequence[str], samples: Samples, workspace: Workspace) -> dict[str, Moments]:
        passes.append(len(samples))
        return {name: one for name, one in observe(model, names, samples, workspace).items() if name not in lacks}

    monkeypatch.setattr(activations, "observe", counted)
    return passes


@pytest.mark.parametrize("fresh", [False, True])
def test_one_pass_whatever_is_asked_and_the_same_bits(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    passes = passes_over(monkeypatch)
    first = covariances(model, Cache(tmp_path, fresh=fresh))
    found = {layer.name: first.of(layer.name) for layer in model.layers}
    assert passes.count(300) == 1
    seen = len(passes)
    later = covariances(model, Cache(tmp_path))
    for name, moments in found.items():
        again = later.of(name)
        assert moments is not None
        assert again is not None
        np.testing.assert_array_equal(moments.second, again.second)
        np.testing.assert_array_equal(moments.mean, again.mean)
        assert moments.count == again.count == 300
    assert len(passes) == seen


def test_they_are_those_of_the_data(model: Model, tmp_path: Path) -> None:
    made = covariances(model, Cache(tmp_path))
    x = points(300, 7)[0].astype(np.float64)
    moments = made.of(model.layers[0].name)
    assert moments is not None
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, bias=True), atol=1e-5)


def test_without_data_there_are_none(model: Model, tmp_path: Path) -> None:
    made = covariances(model, Cache(tmp_path), data=False)
    assert made.of(model.layers[0].name) is None
    assert made.observe() == {}


def test_a_layer_never_seen_is_asked_for_once(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = passes_over(monkeypatch, lacks=["w2"])
    made = covariances(model, Cache(tmp_path))
    assert made.of("w2") is None
    assert passes.count(300) == 1
    seen = len(passes)
    assert made.of("w2") is None
    assert made.of("w1") is not None
    assert len(passes) == seen
