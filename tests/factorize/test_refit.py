"""Refit on the compressed prefix: whitening where the prefix is exact, better on held-out rows where it is not."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import DataError
from edgepack.factorize import whitened
from edgepack.factorize.refit import RIDGES, PairedMoments, PairedRows, pooled, refit, refitted_weights, truncated
from edgepack.factorize.refit import output_error as error_by_moments
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from tests.factorize.layers import SEEDS, inputs, layer, output_error, product, rng, seen, weight

CASE = st.tuples(st.integers(1, 12), st.integers(2, 12), st.integers(8, 80), SEEDS)


def of(x: Array, y: Array) -> PairedMoments:
    return streamed([(x, y)])


def streamed(chunks: Iterable[tuple[Array, Array]]) -> PairedMoments:
    rows = PairedRows("layer")
    for x, y in chunks:
        rows.add(x, y)
    return rows.moments()


def parts_of(x: Array, y: Array, count: int = 4) -> list[PairedMoments]:
    return [of(a, b) for a, b in zip(np.array_split(x, count), np.array_split(y, count), strict=True)]


def answers(given_layer: View, x: Array) -> Array:
    bias = 0 if given_layer.bias is None else given_layer.bias
    return np.asarray(x.astype(np.float64) @ given_layer.weight.T.astype(np.float64) + bias)


def rows_error(pair: Replacement, x: Array, y: Array) -> float:
    assert pair.bias is not None
    found = x.astype(np.float64) @ product(pair).T + pair.bias
    return float(np.square(y - found).sum(axis=1).mean())


def behind(prefix_rank: int, rows: int, features: int, seed: int) -> tuple[Array, Array]:
    """Inputs as they were and as a compressed prefix gives them: a part lost, a part bent."""
    random = rng(seed)
    spread = np.logspace(0, -1.5, features)
    x = random.standard_normal((rows, features)) * spread @ np.linalg.qr(rng(7).standard_normal((features,) * 2))[0]
    kept = np.linalg.qr(rng(8).standard_normal((features, prefix_rank)))[0]
    bent = np.tanh(x) @ kept @ kept.T + 0.05 * random.standard_normal(x.shape)
    return (x + 0.5).astype(np.float32), bent.astype(np.float32)


@settings(max_examples=60)
@given(CASE)
def test_on_the_exact_prefix_it_is_centred_whitening_at_every_ridge(case: tuple[int, int, int, int]) -> None:
    out, inn, rows, seed = case
    x = inputs(rows, inn, seed)
    given_layer = layer(weight(out, inn, seed), rng(seed).standard_normal(out).astype(np.float32), seen(x))
    spectrum = whitened.spectrum(given_layer)
    pairs = of(x, answers(given_layer, x))
    scale = float(np.square(answers(given_layer, x)).sum(axis=1).mean()) + 1.0
    for ridge, refitted in zip(RIDGES, refitted_weights(given_layer, pairs, RIDGES), strict=True):
        np.testing.assert_allclose(refitted, given_layer.weight, rtol=0, atol=1e-6 * np.abs(given_layer.weight).max())
        for rank in {1, min(out, inn)}:
            own = output_error(given_layer.weight, truncated(given_layer, refitted, pairs, rank), given_layer.bias, x)
            theirs = whitened.factors(given_layer, spectrum, rank)
            expected = output_error(given_layer.weight, theirs, given_layer.bias, x)
            assert own == pytest.approx(expected, abs=1e-5 * scale), ridge


@settings(max_examples=60)
@given(CASE)
def test_error_by_moments_is_that_of_the_rows(case: tuple[int, int, int, int]) -> None:
    out, inn, rows, seed = case
    x, y = inputs(rows, inn, seed), inputs(rows, out, seed + 1)
    random = rng(seed)
    pair = low_rank(
        *(random.standard_normal(shape).astype(np.float32) for shape in ((out, 2), (2, inn), (out,))),  # type: ignore[arg-type]
    )
    exact = rows_error(pair, x, y)
    assert error_by_moments(pair, of(x, y)) == pytest.approx(exact, rel=1e-9)


@settings(max_examples=40)
@given(CASE, st.integers(1, 5))
def test_parts_and_chunks_do_not_matter(case: tuple[int, int, int, int], cuts: int) -> None:
    out, inn, rows, seed = case
    x, y = inputs(rows, inn, seed), inputs(rows, out, seed + 1)
    whole, cut = of(x, y), pooled(parts_of(x, y, cuts))
    for one, other in ((whole.cross, cut.cross), (whole.power, cut.power), (whole.inputs.second, cut.inputs.second)):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(whole.inputs.second, seen(x).second, rtol=1e-10, atol=1e-10)
    assert cut.inputs.row_range == pytest.approx(seen(x).row_range)
    assert (cut.inputs.count, cut.inputs.low, cut.inputs.high) == (rows, x.min(), x.max())


def test_a_long_stream_is_summed_as_it_comes() -> None:
    x, y = inputs(5000, 3, 0), inputs(5000, 2, 1)
    chunks = ((x[i : i + 300], y[i : i + 300]) for i in range(0, 5100, 300))
    found = streamed(chunks)
    assert found.inputs.count == 5000
    np.testing.assert_allclose(found.cross, y.T.astype(np.float64) @ x / 5000, rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(st.integers(2, 10), st.integers(40, 400), SEEDS)
def test_never_worse_on_the_parts_held_out_or_it_says_so(rank: int, rows: int, seed: int) -> None:
    x, bent = behind(8, rows, 16, seed)
    given_layer = layer(weight(12, 16, 1), None, seen(x))
    kept = whitened.factors(given_layer, whitened.spectrum(given_layer), rank)
    found = refit(given_layer, kept, parts_of(bent, answers(given_layer, x)))
    assert set(found.errors) == set(RIDGES)
    if found.ridge is None:
        assert found.factors is kept
        assert min(found.errors.values()) >= found.kept_error
    else:
        assert found.factors.rank == rank
        assert found.errors[found.ridge] == min(found.errors.values()) < found.kept_error


def test_better_on_rows_never_seen() -> None:
    """On three thousand fresh rows, with few rows to fit on and with many; with many, by half."""
    fresh, fresh_bent = behind(8, 3000, 16, 99)
    for rows in (60, 2000):
        x, bent = behind(8, rows, 16, 3)
        given_layer = layer(weight(12, 16, 1), None, seen(x))
        kept = whitened.factors(given_layer, whitened.spectrum(given_layer), 6)
        found = refit(given_layer, kept, parts_of(bent, answers(given_layer, x)))
        before = rows_error(kept, fresh_bent, answers(given_layer, fresh))
        after = rows_error(found.factors, fresh_bent, answers(given_layer, fresh))
        assert found.ridge is not None
        assert after < before * (0.9 if rows < 100 else 0.5)


def test_too_few_rows_take_a_large_ridge() -> None:
    """Nothing to undo but noise, and fewer rows than features: fitting freely is ruinous, and is not chosen."""
    random = rng(0)
    x = inputs(24, 20, 0)
    noisy = (x + 0.3 * random.standard_normal(x.shape)).astype(np.float32)
    given_layer = layer(weight(10, 20, 1), None, seen(x))
    kept = whitened.factors(given_layer, whitened.spectrum(given_layer), 10)
    found = refit(given_layer, kept, parts_of(noisy, answers(given_layer, x)))
    assert found.ridge is None or found.ridge >= 1e-2
    assert found.errors[RIDGES[0]] > 1.2 * min(found.kept_error, *found.errors.values())


def test_where_nothing_is_to_be_undone_the_factors_stay() -> None:
    """The prefix is exact and the rows are few: what was made from all of them is not remade from four fifths."""
    x = inputs(30, 16, 0)
    given_layer = layer(weight(12, 16, 1), None, seen(x))
    kept = whitened.factors(given_layer, whitened.spectrum(given_layer), 3)
    found = refit(given_layer, kept, parts_of(x, answers(given_layer, x)))
    assert found.ridge is None
    assert found.factors is kept
    assert found.kept_error < min(found.errors.values())


def test_an_exact_prefix_is_left_alone_or_hardly_changed() -> None:
    x = inputs(400, 16, 0)
    given_layer = layer(weight(12, 16, 1), None, seen(x))
    kept = whitened.factors(given_layer, whitened.spectrum(given_layer), 6)
    found = refit(given_layer, kept, parts_of(x, answers(given_layer, x)))
    fresh = inputs(4000, 16, 0)[400:]
    before, after = (rows_error(pair, fresh, answers(given_layer, fresh)) for pair in (kept, found.factors))
    assert after == pytest.approx(before, rel=0.02)


def test_refused() -> None:
    x = inputs(40, 6, 0)
    given_layer = layer(weight(4, 6, 0), None, seen(x))
    kept = whitened.factors(given_layer, whitened.spectrum(given_layer), 2)
    parts = parts_of(x, answers(given_layer, x), 2)
    with pytest.raises(DataError, match="1 part of the data to refit on, expected two or more"):
        refit(given_layer, kept, parts[:1])
    with pytest.raises(DataError, match="all > 0"):
        refit(given_layer, kept, parts, ridges=(0.0, 1.0))
    with pytest.raises(DataError, match=r"are \(4, 5\), the layer is \(4, 6\)"):
        refit(given_layer, kept, [parts[0], of(x[:, :5], answers(given_layer, x))])
    still = np.full((30, 6), 0.1, np.float32)
    with pytest.raises(DataError, match="its input is constant"):
        refit(given_layer, kept, parts_of(still, answers(given_layer, still)), ridges=(1.0, math.inf))
    with pytest.raises(DataError, match="no rows to refit on"):
        of(x[:0], x[:0])
    with pytest.raises(DataError, match=r"inputs \(40, 6\) and outputs \(39, 6\) do not match"):
        of(x, x[1:])
    with pytest.raises(DataError, match="NaN or Inf"):
        of(x, np.where(x == x.max(), np.inf, x))
