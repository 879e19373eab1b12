from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack.factorize.leastsquares import metric
from edgepack.methods import pruning as methods
from edgepack.methods.pruning import pruned, pruning, rank_pruned, rank_pruning
from edgepack.model.constexpr import is_decoded
from edgepack.model.replacement import Replacement
from tests.factorize import layers
from tests.methods.constexpr_layers import blind, check_consistent, check_same, loss, share_stored, trained_like


@pytest.mark.parametrize("known", [True, False])
def test_the_code_is_what_it_says(known):
    layer = trained_like(24, 40, 1, known=known)
    constexpr = pruned(layer, 200)
    check_consistent(layer, constexpr)
    assert is_decoded(constexpr)
    assert np.count_nonzero(constexpr.weight) == 200


def test_without_data_the_largest_are_kept_as_they_are():
    layer = trained_like(24, 40, 1, known=False)
    least = np.sort(np.abs(layer.weight), axis=None)[-100]
    expected = np.where(np.abs(layer.weight) >= least, layer.weight, 0)
    np.testing.assert_allclose(pruned(layer, 100).weight, expected, rtol=1e-6)


def test_few_weights_far_apart():
    layer = trained_like(40, 300, 5)
    assert np.count_nonzero(pruned(layer, 5).weight) == 5
    check_consistent(layer, pruned(layer, 5))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_the_budget_is_used_up(share, known):
    layer = trained_like(64, 100, 2, known=known)
    constexpr = pruning(layer, share)
    assert isinstance(constexpr, Replacement)
    assert constexpr.structure.is_constexpr
    assert 0.85 * share < share_stored(layer, constexpr) <= share


def test_what_is_stored_on_the_way_is_not_wasted():
    layer = trained_like(64, 400, 2)
    constexpr = pruning(layer, 0.01)
    assert isinstance(constexpr, Replacement)
    assert constexpr.structure.is_constexpr
    assert np.count_nonzero(constexpr.tensors["kept.values"]) == len(constexpr.tensors["kept.values"])


def test_too_few_bytes_are_a_reason():
    assert "scales of its 64 rows" in str(pruning(trained_like(64, 10, 2), 0.1))
    assert rank_pruning(trained_like(64, 10, 2), 0.1) == "0.1 of its bytes do not hold factors of rank 1"
    with pytest.raises(UsageError, match="0 weights to keep of 20"):
        pruned(trained_like(4, 5, 2), 0)


@given(st.integers(0, 1000), st.floats(0.05, 0.9))
def test_refitting_loses_no_more_and_is_least_squares(seed, share):
    layer = trained_like(5, 8, seed, rows=100)
    kept = layers.rng(seed).random((5, 8)) < share
    covariance = metric(layer)
    assert covariance is not None
    found = methods.refitted(layer.weight, kept, covariance)
    assert not found[~kept].any()
    assert loss(layer, found) <= loss(layer, np.where(kept, layer.weight, 0)) * (1 + 1e-9) + 1e-12
    slope = (layer.weight - found) @ covariance  # nothing that is kept could make up for more
    assert np.abs(slope[kept]).max(initial=0) <= 1e-6 * np.trace(covariance)


def test_layers_too_large_to_refit_keep_their_weights(monkeypatch):
    layer = trained_like(12, 20, 1)
    monkeypatch.setattr(methods, "LARGEST_REFIT", 10)
    kept = pruned(layer, 60).weight
    np.testing.assert_allclose(kept[kept != 0], layer.weight[kept != 0], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_data_help(seed):
    layer = trained_like(32, 48, seed)
    assert loss(layer, pruned(layer, 300).weight) < loss(layer, pruned(blind(layer), 300).weight)


@pytest.mark.parametrize("seed", range(4))
def test_exchanges_help_and_never_harm(seed, monkeypatch):
    layer = trained_like(32, 48, seed)
    losses = []
    for count in range(4):
        monkeypatch.setattr(methods, "EXCHANGES", count)
        losses.append(loss(layer, pruned(layer, 300).weight))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


def test_rows_that_matter_more_keep_more():
    layer = trained_like(8, 30, 1)
    gradient = np.diag([100.0] * 4 + [0.01] * 4)
    kept = pruned(layer, 60, gradient=gradient).weight != 0
    assert kept[:4].sum() > 50
    assert pruned(layer, 60).weight[4:].any()


def test_the_same_bits_again():
    layer = trained_like(24, 40, 4)
    one, other = pruning(layer, 0.3), pruning(layer, 0.3)
    assert isinstance(one, Replacement)
    assert one.structure.is_constexpr
    assert isinstance(other, Replacement)
    assert other.structure.is_constexpr
    check_same(one, other)


@given(st.integers(0, 1000), st.integers(1, 8))
def test_components_without_data_are_the_largest(seed, rank):
    layer = trained_like(9, 12, seed, known=False)
    u, s, v = np.linalg.svd(layer.weight.astype(np.float64))
    pair = rank_pruned(layer, rank)
    np.testing.assert_allclose(layers.product(pair), u[:, :rank] * s[:rank] @ v[:rank], atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_components_are_chosen_by_the_output(seed):
    layer = trained_like(20, 30, seed)
    x = layers.inputs(600, 30, seed + 1)
    aware, plain = rank_pruned(layer, 6), rank_pruned(blind(layer), 6)
    assert layers.output_error(layer.weight, aware, layer.bias, x) < layers.output_error(
        layer.weight, plain, layer.bias, x
    )


def test_components_that_matter_more_are_kept():
    layer = layers.layer(np.diag([3.0, 2.0, 1.0]).astype(np.float32))
    weighed = rank_pruned(layer, 1, gradient=np.diag([0.01, 0.01, 100.0]))
    np.testing.assert_allclose(layers.product(weighed), np.diag([0, 0, 1]), atol=1e-6)
    np.testing.assert_allclose(layers.product(rank_pruned(layer, 1)), np.diag([3, 0, 0]), atol=1e-6)


def test_components_fit_their_budget():
    pair = rank_pruning(replace(trained_like(20, 30, 1), bias=None), 0.4)
    assert isinstance(pair, Replacement)
    assert pair.structure.is_low_rank
    assert pair.rank == 4
    assert pair.bias is not None
