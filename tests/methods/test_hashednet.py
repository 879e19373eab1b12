from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack.methods.budget import bytes_in_8_bits, in_8_bits
from edgepack.methods.hashednet import hashed, hashednet, initial
from edgepack.model.constexpr import is_decoded, stored_bytes, values
from edgepack.model.replacement import Replacement, constexpr
from tests.factorize import layers
from tests.methods.constexpr_layers import blind, check_consistent, check_same, loss, share_stored, trained_like


def test_every_entry_is_the_number_that_xxh32_of_its_place_says():
    part = hashed(blind(trained_like(7, 11, 0)), 20, seed=3)
    shared = part.tensors["shared"]
    for i in range(7):
        for j in range(11):
            place = (i * 11 + j).to_bytes(4, "little")
            found = xxhash.xxh32(place, seed=3).intdigest() % 40
            number, sign = shared[found // 2], (-1, 1)[found % 2]
            assert part.weight[i, j] == sign * number


@pytest.mark.parametrize("known", [True, False])
def test_the_code_is_what_it_says(known):
    layer = trained_like(24, 40, 1, known=known)
    part = hashed(layer, 100)
    check_consistent(layer, part)
    assert is_decoded(part)


def test_a_layer_without_bias_gets_one_from_the_data():
    layer = replace(trained_like(24, 40, 1), bias=None)
    check_consistent(layer, hashed(layer, 100))


@pytest.mark.parametrize("share", [0.02, 0.068, 0.125, 0.5, 0.9])
def test_the_budget_is_used_up(share):
    layer = trained_like(24, 40, 2)
    part = hashednet(layer, share)
    assert isinstance(part, Replacement)
    assert part.structure.is_constexpr
    assert share_stored(layer, part) <= share
    assert share_stored(layer, part) > 0.85 * share or share < 0.1


def test_too_few_bytes_are_a_reason():
    assert hashednet(trained_like(4, 5, 2), 0.4) == "0.4 of its bytes do not hold one shared number"
    with pytest.raises(UsageError, match="share of 1"):
        hashednet(trained_like(4, 5, 2), 1.0)


@given(layers.SEEDS, st.integers(1, 40))
def test_without_data_no_other_numbers_are_nearer(seed, buckets):
    layer = layers.layer(layers.weight(6, 9, seed))
    best = hashed(layer, buckets, seed=seed)
    other = best.tensors["shared"] + 0.1 * layers.rng(seed).standard_normal(buckets)
    unit = _design(layer.weight.shape, buckets, seed)
    assert loss(layer, best.weight) <= loss(layer, (unit @ other).reshape(6, 9)) + 1e-5


@given(st.integers(0, 50))
def test_with_data_the_fit_is_least_squares_on_the_outputs(seed):
    layer = trained_like(6, 9, seed, rows=200)
    found = hashed(layer, 5, seed=seed)
    root = np.linalg.cholesky(_covariance(layer))
    design = _design((6, 9), 5, seed).reshape(6, 9, 5)
    exact, *_ = np.linalg.lstsq(
        np.einsum("ijk,jl->ilk", design, root).reshape(-1, 5), (layer.weight @ root).reshape(-1), rcond=None
    )
    best = loss(layer, (design @ exact).astype(np.float32))
    assert best - 1e-5 <= loss(layer, found.weight) <= best * 1.0001 + 1e-5


@pytest.mark.parametrize("seed", [0, 1])
def test_data_help(seed):
    layer = trained_like(32, 48, seed)
    assert loss(layer, hashed(layer, 200).weight) < loss(layer, hashed(blind(layer), 200).weight)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    layer = trained_like(24, 40, 4)
    check_same(hashed(layer, 90, seed=5), hashed(layer, 90, seed=5))
    assert not np.array_equal(hashed(layer, 90, seed=5).weight, hashed(layer, 90, seed=6).weight)


def test_a_layer_to_train_keeps_the_scale_of_its_input():
    part = initial(256, 512, 2000, seed=1)
    assert np.square(part.weight).mean() * 512 == pytest.approx(2, rel=0.15)
    x = layers.rng(2).standard_normal((64, 512)).astype(np.float32)
    assert np.square(np.maximum(x @ part.weight.T, 0)).mean() == pytest.approx(1, rel=0.2)
    assert part.bias is not None
    assert not part.bias.any()
    check_same(part, initial(256, 512, 2000, seed=1))
    with pytest.raises(UsageError, match="7 shared numbers"):
        initial(2, 3, 7)


@given(st.integers(1, 300), st.integers(1, 40))
def test_bytes_are_told_before_they_are_stored(rows, columns):
    part = constexpr({"a": layers.weight(rows, columns, 0)}, (), np.zeros((0, 0), np.float32), None)
    step = replace(initial(1, 1, 1), tensors={**initial(1, 1, 1).tensors, **part.tensors})
    assert stored_bytes(in_8_bits(step)) == bytes_in_8_bits(rows, columns) + 4 + 8


def _covariance(layer):
    from edgepack.factorize.whitened import shrunk_covariance

    return shrunk_covariance(layer.moments)


def _design(shape, buckets, seed):
    """(entries, buckets): the weight, flat, is this times the shared numbers."""
    part = initial(*shape, min(buckets, shape[0] * shape[1]), seed=seed)
    columns = []
    for k in range(len(part.tensors["shared"])):
        unit = np.eye(len(part.tensors["shared"]), dtype=np.float32)[k]
        found = values({**part.tensors, "shared": unit}, part.program)
        columns.append(found[part.program[-1].inputs[1]].T.reshape(-1))
    return np.stack(columns, axis=1)
