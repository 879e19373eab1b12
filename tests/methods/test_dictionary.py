from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack.methods.dictionary import best_side, dictionary, learned, pursuit, sized
from edgepack.model.constexpr import is_decoded
from edgepack.model.replacement import Replacement
from tests.factorize import layers
from tests.methods.constexpr_layers import blind, check_consistent, check_same, loss, share_stored, trained_like


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 15), st.integers(1, 12), layers.SEEDS)
def test_pursuit_is_orthogonal_and_greedy(signals, atoms, length, seed):
    random = layers.rng(seed)
    book, wanted = random.standard_normal((atoms, length)), random.standard_normal((signals, length))
    nonzeros = min(3, atoms)
    found = pursuit(book @ book.T, wanted @ book.T, nonzeros)
    for signal, coefficients in zip(wanted, found, strict=True):
        chosen: list[int] = []
        left = signal
        for _ in range(min(nonzeros, length)):
            chosen.append(int(np.argmax(np.abs(book @ left) / np.linalg.norm(book, axis=1))))
            exact, *_ = np.linalg.lstsq(book[chosen].T, signal, rcond=None)
            left = signal - exact @ book[chosen]
        assert np.count_nonzero(coefficients) <= nonzeros
        assert np.linalg.norm(signal - coefficients @ book) <= np.linalg.norm(left) + 1e-6


def test_pursuit_chooses_what_scikit_learn_does():
    from sklearn import linear_model as linear

    random = layers.rng(0)
    book, wanted = random.standard_normal((40, 30)), random.standard_normal((600, 30))
    book /= np.linalg.norm(book, axis=1)[:, None]
    gram, products = book @ book.T, wanted @ book.T
    expected = linear.orthogonal_mp_gram(gram, products.T, n_nonzero_coefs=6).T
    np.testing.assert_allclose(pursuit(gram, products, 6), expected, atol=1e-9)


def test_pursuit_of_atoms_that_are_one_another_or_zero():
    book = np.array([[1.0, 0], [1, 0], [0, 0], [-2, 0]])
    found = pursuit(book @ book.T, np.array([[3.0, 1]]) @ book.T, 4)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found @ book, [[3, 0]])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_the_code_is_what_it_says(known, side):
    layer = trained_like(24, 40, 1, known=known)
    constexpr = learned(layer, 12, 3, side=side)
    check_consistent(layer, constexpr)
    assert not is_decoded(constexpr)
    assert [step.op for step in constexpr.program].count("matmul") == 2
    signals = 24 if side == "rows" else 40
    assert np.count_nonzero(constexpr.tensors["codes.values"]) <= 3 * signals
    assert constexpr.tensors["atoms"].shape == (12, 64 - signals)
    assert np.abs(constexpr.tensors["codes.values"]).max() == pytest.approx(1)


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_a_layer_made_of_few_atoms_is_found(side):
    random = layers.rng(3)
    codes = np.zeros((60, 4))
    codes[np.arange(60), random.integers(0, 4, 60)] = random.uniform(1, 2, 60)
    weight = (codes @ random.standard_normal((4, 20))).astype(np.float32)
    layer = layers.layer(weight if side == "rows" else np.ascontiguousarray(weight.T))
    assert loss(layer, learned(layer, 8, 2, side=side).weight) < 0.01 * np.square(weight).sum()


def test_a_layer_of_zeros():
    assert not learned(layers.layer(np.zeros((8, 6), np.float32)), 3, 2, side="rows").weight.any()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("out", "inn"), [(64, 100), (200, 60)])
@pytest.mark.parametrize("share", [0.125, 0.25, 0.5, 0.8])
def test_the_budget_is_used_up(share, out, inn, known):
    layer = trained_like(out, inn, 2, known=known)
    constexpr = dictionary(layer, share)
    assert isinstance(constexpr, Replacement)
    assert constexpr.structure.is_constexpr
    assert 0.85 * share < share_stored(layer, constexpr) <= share


def test_zeros_on_the_way_cost_numbers_of_the_code():
    layer = trained_like(30, 60, 2)
    constexpr = learned(layer, 30, 1, side="rows", left=68)
    assert len(constexpr.tensors["codes.values"]) <= 13
    check_consistent(layer, constexpr)


@settings(max_examples=30)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 0.99), st.sampled_from(["rows", "columns"]))
def test_sizes_make_sense(out, inn, share, side):
    found = sized(out, inn, int(share * out * inn), side)
    if found is not None:
        assert 1 <= found[1] <= found[0] <= (out if side == "rows" else inn)


def test_too_few_bytes_are_a_reason():
    assert "two atoms" in str(dictionary(trained_like(8, 10, 2), 0.1))
    with pytest.raises(UsageError, match="3 of 2 atoms in each of 10 columns"):
        learned(trained_like(8, 10, 2), 2, 3)
    assert best_side(trained_like(8, 10, 2)) == "columns"
    assert best_side(trained_like(10, 8, 2)) == "rows"


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_data_help(seed, side):
    layer = trained_like(48, 48, seed)
    aware, plain = learned(layer, 16, 4, side=side), learned(blind(layer), 16, 4, side=side)
    assert loss(layer, aware.weight) < loss(layer, plain.weight)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    layer = trained_like(64, 40, 4)
    check_same(learned(layer, 16, 4, 5), learned(layer, 16, 4, 5))
    assert not np.array_equal(learned(layer, 16, 4, 5).weight, learned(layer, 16, 4, 6).weight)
