"""Shrinkage: the error by moments is that of the held-out rows, and the choice is the best of the candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import DataError
from edgepack.factorize import shrinkage, svd, whitened
from edgepack.factorize.refit import pooled_inputs
from edgepack.model.replacement import low_rank
from edgepack.model.types import Array, Moments
from tests.factorize.layers import SEEDS, inputs, layer, output_error, rng, seen, weight

CASE = st.tuples(st.integers(3, 12), st.integers(3, 12), st.integers(12, 60), SEEDS)


def parts_of(x: Array, count: int = 4) -> list[Moments]:
    return [seen(part) for part in np.array_split(x, count)]


def test_the_fixed_formula_is_the_one_in_use() -> None:
    given_layer = layer(weight(6, 9, 0), None, seen(inputs(30, 9, 0)))
    assert given_layer.moments is not None
    value = shrinkage.fixed(given_layer.moments)
    covariance = given_layer.moments.covariance
    expected = (1 - value) * covariance + value * np.trace(covariance) / 9 * np.eye(9)
    np.testing.assert_allclose(whitened.shrunk_covariance(given_layer.moments), expected, rtol=1e-12, atol=1e-15)


@settings(max_examples=40)
@given(CASE)
def test_errors_by_moments_are_those_of_the_rows_held_out(case: tuple[int, int, int, int]) -> None:
    """Against factors made for one λ and run on the held-out rows, one by one."""
    out, inn, rows, seed = case
    x = inputs(rows, inn, seed)
    given_layer = layer(weight(out, inn, seed))
    ranks = tuple(range(1, min(out, inn)))
    found = shrinkage.chosen(given_layer, parts_of(x, 3), ranks, grid=(0.2,))
    lost, energy = np.zeros(len(ranks)), 0.0
    for index in range(3):
        pieces = np.array_split(x, 3)
        held_out = pieces.pop(index)
        rest = seen(np.concatenate(pieces))
        covariance = 0.8 * rest.covariance + 0.2 * np.trace(rest.covariance) / inn * np.eye(inn)
        root = np.linalg.cholesky(covariance)
        spectrum = replace(svd.decompose(given_layer.weight @ root), mean=rest.mean)
        for place, rank in enumerate(ranks):
            pair = whitened.factors(given_layer, spectrum, rank)
            lost[place] += len(held_out) * output_error(given_layer.weight, pair, None, held_out)
        zero = np.zeros((out, 1), np.float32)
        nothing = low_rank(zero, np.zeros((1, inn), np.float32), (given_layer.weight @ rest.mean).astype(np.float32))
        energy += len(held_out) * output_error(given_layer.weight, nothing, None, held_out)
    np.testing.assert_allclose(found.errors["0.2"], lost / energy, rtol=1e-3, atol=1e-5)


@settings(max_examples=40)
@given(CASE)
def test_the_best_candidate_is_chosen(case: tuple[int, int, int, int]) -> None:
    out, inn, rows, seed = case
    parts = parts_of(inputs(rows, inn, seed))
    found = shrinkage.chosen(layer(weight(out, inn, seed)), parts, (1, min(out, inn) - 1))
    assert set(found.errors) == {*shrinkage.FORMULAS, *(f"{value:g}" for value in shrinkage.GRID)}
    assert found.score(found.name) == min(found.score(name) for name in found.errors)
    assert 0.0 <= found.value <= 1.0
    whole = pooled_inputs(parts)
    by_name = {"n/(n+4N)": shrinkage.fixed(whole), "oas": shrinkage.oas(whole)}
    by_name["ledoit-wolf"] = shrinkage.ledoit_wolf(parts)
    assert found.value == pytest.approx(by_name[found.name] if found.name in by_name else float(found.name))
    for lost in found.errors.values():
        assert (lost >= 0).all()
        assert (lost <= 1 + 1e-9).all()


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(12, 60), SEEDS)
def test_estimates_are_shares_and_do_not_depend_on_units_or_directions(inn: int, rows: int, seed: int) -> None:
    x = inputs(rows, inn, seed).astype(np.float64)
    turned = 7.0 * x @ np.linalg.qr(rng(seed).standard_normal((inn, inn)))[0]
    for estimate in (lambda z: shrinkage.oas(seen(z)), lambda z: shrinkage.ledoit_wolf(parts_of(z))):
        assert 0.0 <= estimate(x) <= 1.0
        assert estimate(x) == pytest.approx(estimate(turned), abs=1e-6)


def test_estimates_near_the_oracle() -> None:
    """The λ that brings C_λ nearest to the truth, for normal rows, averaged over forty draws."""
    n, rows = 20, 60
    truth = np.diag(np.logspace(0, 1, n))
    values: dict[str, list[float]] = {"oas": [], "ledoit-wolf": [], "oracle": []}
    for seed in range(40):
        x = rng(seed).standard_normal((rows, n)) @ np.sqrt(truth)
        moments = seen(x)
        white = np.trace(moments.covariance) / n * np.eye(n) - moments.covariance
        values["oracle"].append(float((white * (truth - moments.covariance)).sum() / np.square(white).sum()))
        values["oas"].append(shrinkage.oas(moments))
        values["ledoit-wolf"].append(shrinkage.ledoit_wolf(parts_of(x, 6)))
    oracle = np.mean(values["oracle"])
    assert np.mean(values["oas"]) == pytest.approx(oracle, rel=0.15)
    assert np.mean(values["ledoit-wolf"]) == pytest.approx(oracle, rel=0.15)


def test_rows_that_come_many_at_a_time_are_seen_through() -> None:
    """Thirty sentences of twenty tokens that hardly differ are thirty rows, not six hundred."""
    few = inputs(30, 20, 0)
    many = np.repeat(few, 20, axis=0)
    assert shrinkage.ledoit_wolf(parts_of(many, 6)) == pytest.approx(shrinkage.ledoit_wolf(parts_of(few, 6)), rel=1e-6)
    assert shrinkage.oas(seen(many)) < 0.2 * shrinkage.oas(seen(few))


def test_white_inputs_and_few_rows_ask_for_more_than_many_correlated_ones() -> None:
    given_layer = layer(weight(16, 24, 0))
    few = shrinkage.chosen(given_layer, parts_of(rng(0).standard_normal((30, 24)).astype(np.float32)), (4, 8))
    many = shrinkage.chosen(given_layer, parts_of(inputs(4000, 24, 0)), (4, 8))
    assert few.value > 0.1
    assert many.value < 0.02


def test_refused() -> None:
    given_layer, parts = layer(weight(4, 6, 0)), parts_of(inputs(40, 6, 0))
    with pytest.raises(DataError, match="2 parts of the data to choose a shrinkage on, expected three or more"):
        shrinkage.chosen(given_layer, parts[:2], (1,))
    for ranks in ((), (0,), (4,)):
        with pytest.raises(DataError, match=r"expected 1 … 3"):
            shrinkage.chosen(given_layer, parts, ranks)
    with pytest.raises(DataError, match="do not fit its 6 inputs"):
        shrinkage.chosen(given_layer, parts_of(inputs(40, 5, 0)), (1,))
    with pytest.raises(DataError, match="constant"):
        shrinkage.chosen(given_layer, parts_of(np.full((40, 6), 0.5, np.float32)), (1,))
