"""Factorizers by name, built in and from other distributions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgepack.errors import UsageError
from edgepack.factorize import svd, whitened
from edgepack.methods.registry import DEFAULT, FACTORIZERS, factorizer, needs_gradients, spectrum_of
from tests.factorize.layers import layer, weight

PLUGIN = """
import numpy as np
from edgepack.model.replacement import low_rank
from edgepack.model.types import Spectrum

needs_moments = False

def spectrum(layer):
    return Spectrum(np.eye(layer.out_features, dtype=np.float32), np.ones(layer.out_features))

def factors(layer, spectrum, rank):
    return low_rank(spectrum.basis[:, :rank], layer.weight[:rank], layer.bias)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution, as an installer leaves it."""
    (tmp_path / "first_rows.py").write_text(PLUGIN)
    info = tmp_path / "first_rows-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: first-rows\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgepack.factorizers]\nfirst-rows = first_rows\nsvd = first_rows\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("first_rows", None)


def test_built_in() -> None:
    assert factorizer("svd") is svd
    assert factorizer(DEFAULT) is whitened
    assert whitened.needs_moments
    assert not svd.needs_moments
    assert set(FACTORIZERS) == {"svd", "whitened", "two-sided", "fisher"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        UsageError, match="unknown method 'first-rows'; there are svd, whitened, two-sided, fisher, auto, kmeans"
    ):
        factorizer("first-rows")


@pytest.mark.usefixtures("plugin")
def test_plugin_is_found_and_works() -> None:
    algorithm = factorizer("first-rows")
    given_layer = layer(weight(6, 8, 0))
    assert not needs_gradients("first-rows")
    np.testing.assert_array_equal(spectrum_of("first-rows", given_layer).basis, np.eye(6))
    pair = algorithm.factors(given_layer, algorithm.spectrum(given_layer), 3)
    np.testing.assert_array_equal((pair.A @ pair.B)[:3], given_layer.weight[:3])
    assert not (pair.A @ pair.B)[3:].any()


@pytest.mark.usefixtures("plugin")
def test_a_plugin_does_not_displace_a_built_in_and_is_named_among_them() -> None:
    assert factorizer("svd") is svd
    with pytest.raises(UsageError, match=r"there are svd, whitened, two-sided, fisher, .*, first-rows"):
        factorizer("nope")
