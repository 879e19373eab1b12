"""Covariances of layers' inputs: one pass over the data, the same bits from it and from the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_builds import points, write_classifier

from edgepack.data import Samples
from edgepack.onnxgraph.sites import find_sites
from edgepack.pipeline import covariances as module
from edgepack.pipeline.activations import Covariances
from edgepack.workspace import Cache, silent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return ir.load(write_classifier(tmp_path_factory.mktemp("model")))


def covariances(model: ir.Model, cache: Cache, *, data: bool = True) -> Covariances:
    names = [site.layer.name for site in find_sites(model.clone())]
    samples = Samples({"x": points(300, 7)[0]}) if data else None
    return Covariances(model, names, samples, "key", cache, silent, None)


@pytest.mark.parametrize("fresh", [False, True])
def test_one_pass_whatever_is_asked_and_the_same_bits(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    passes = []
    observe = module.observe
    monkeypatch.setattr(module, "observe", lambda *args: passes.append(1) or observe(*args))
    first = covariances(model, Cache(tmp_path, fresh=fresh))
    found = {name: first.of(name) for name in first.names}
    assert len(passes) == 1
    later = covariances(model, Cache(tmp_path))
    for name, moments in found.items():
        again = later.of(name)
        assert moments is not None
        assert again is not None
        np.testing.assert_array_equal(moments.second, again.second)
        np.testing.assert_array_equal(moments.mean, again.mean)
        assert moments.count == again.count == 300
    assert len(passes) == 1


def test_they_are_those_of_the_data(model: ir.Model, tmp_path: Path) -> None:
    made = covariances(model, Cache(tmp_path))
    x = points(300, 7)[0].astype(np.float64)
    moments = made.of(made.names[0])
    assert moments is not None
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, bias=True), atol=1e-5)


def test_without_data_there_are_none(model: ir.Model, tmp_path: Path) -> None:
    made = covariances(model, Cache(tmp_path), data=False)
    assert made.of(made.names[0]) is None
    assert made.observe() == {}


def test_a_layer_never_seen_is_asked_for_once(model: ir.Model, tmp_path: Path) -> None:
    made = covariances(model, Cache(tmp_path))
    made.names = [*made.names[:1], "gone"]
    made.observe = lambda: made.__dict__.update(_unseen={"gone"}, _observed=True) or {}  # type: ignore[method-assign]
    assert made.of("gone") is None
    made.observe = lambda: pytest.fail("observed again")  # type: ignore[method-assign]
    assert made.of("gone") is None
