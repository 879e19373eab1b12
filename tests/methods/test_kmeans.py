from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import UsageError, install_hint
from edgepack.factorize.leastsquares import metric
from edgepack.methods.kmeans import MOST_CENTROIDS, kmeans, quantized, recoded, sized
from edgepack.model.constexpr import is_decoded
from edgepack.model.replacement import Replacement
from tests.factorize import layers
from tests.methods.constexpr_layers import blind, check_consistent, check_same, loss, share_stored, trained_like


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("block", "bands"), [(4, 1), (4, 3), (7, 2), (40, 1)])
def test_the_code_is_what_it_says(known, block, bands):
    layer = trained_like(24, 40, 1, known=known)
    constexpr = quantized(layer, block, 6, bands=bands)
    check_consistent(layer, constexpr)
    assert is_decoded(constexpr)
    codes, book = constexpr.tensors["codes"].astype(int), constexpr.tensors["codebook"]
    assert codes.max() < 6
    assert constexpr.tensors["codes"].dtype == np.uint8
    for place in range(codes.shape[1]):
        pieces = book[place * bands // codes.shape[1] * 6 :][codes[:, place]]
        found = constexpr.weight[:, place * block : (place + 1) * block]
        np.testing.assert_array_equal(found, pieces[:, : found.shape[1]])


def test_without_data_every_piece_takes_the_nearest():
    layer = trained_like(30, 24, 2, known=False)
    constexpr = quantized(layer, 4, 10)
    pieces = layer.weight.reshape(-1, 4)
    distances = np.square(pieces[:, None] - constexpr.tensors["codebook"]).sum(axis=2)
    nearest = distances[np.arange(len(pieces)), constexpr.tensors["codes"].reshape(-1)]
    np.testing.assert_allclose(nearest, distances.min(axis=1), atol=1e-5)


def test_as_many_pieces_as_there_are_lose_nothing():
    layer = trained_like(12, 8, 2, known=False)
    np.testing.assert_allclose(quantized(layer, 4, 24).weight, layer.weight, atol=1e-6)
    same = layers.layer(np.tile(layer.weight[:1], (12, 1)))
    np.testing.assert_allclose(quantized(same, 4, 24).weight, same.weight, atol=1e-6)


def test_an_input_that_never_reaches_a_layer_is_no_trouble():
    x = layers.inputs(200, 12, 0, still=4)
    layer = layers.layer(layers.weight(16, 12, 1), None, layers.seen(x))
    seen = replace(layer.moments, shrinkage=0.0)
    check_consistent(layer, quantized(replace(layer, moments=seen), 4, 5))
    assert not quantized(layers.layer(layers.weight(16, 12, 1, "zero")), 4, 5).weight.any()


@pytest.mark.parametrize(("out", "inn"), [(64, 100), (200, 60), (300, 129)])
@pytest.mark.parametrize("share", [0.05, 0.125, 0.25, 0.5, 0.8])
def test_the_budget_is_used_up(share, out, inn):
    layer = trained_like(out, inn, 2, known=False)
    constexpr = kmeans(layer, share)
    assert isinstance(constexpr, Replacement)
    assert constexpr.structure.is_constexpr
    assert share_stored(layer, constexpr) <= share
    assert share_stored(layer, constexpr) > 0.85 * share


@given(st.integers(1, 5000), st.integers(1, 3000), st.floats(0.001, 0.999))
def test_sizes_make_sense(out, inn, share):
    found = sized(out, inn, int(share * out * inn))
    if found is not None:
        block, centroids, bands = found
        assert 1 <= block <= inn
        assert 2 <= centroids <= MOST_CENTROIDS
        assert 1 <= bands <= min(256, -(-inn // block))


def test_too_few_bytes_are_a_reason():
    assert "two pieces of 10 weights" in str(kmeans(trained_like(8, 10, 2), 0.1))
    with pytest.raises(UsageError, match="1 bands of 257 pieces"):
        quantized(trained_like(8, 10, 2), 2, 257)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 3))
def test_codes_are_never_worse_than_those_before(seed, block, bands):
    layer = trained_like(7, 9, seed, rows=60)
    places = -(-9 // block)
    random = layers.rng(seed)
    bases = np.arange(places) * min(bands, places) // places * 4
    codebook = random.standard_normal((int(bases[-1]) + 4, block)).astype(np.float32)
    codes = random.integers(0, 4, (7, places))
    covariance = metric(layer)
    assert covariance is not None
    found = recoded(layer.weight, codes, codebook, bases, 4, covariance)

    def lost(some):
        return loss(layer, codebook[some + bases].reshape(7, -1)[:, :9])

    assert lost(found) <= lost(codes) * (1 + 1e-4)
    last = found.copy()  # the last place was chosen beside all the others as they are now
    for code in range(4):
        last[3, -1] = code
        assert lost(found) <= lost(last) * (1 + 1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_data_help(seed):
    layer = trained_like(64, 48, seed)
    assert loss(layer, quantized(layer, 4, 16).weight) < 0.9 * loss(layer, quantized(blind(layer), 4, 16).weight)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    layer = trained_like(64, 40, 4)
    check_same(quantized(layer, 4, 16, 5), quantized(layer, 4, 16, 5))
    assert not np.array_equal(quantized(layer, 4, 16, 5).weight, quantized(layer, 4, 16, 6).weight)


def test_a_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match="scikit-learn") as caught:
        quantized(trained_like(8, 10, 2), 2, 4)
    assert caught.value.hint == install_hint("methods")
