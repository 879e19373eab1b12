"""DeepThin: where its repeats fall, how its shape is chosen, and that both of its forms are one function."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgepack.factorize.leastsquares import metric
from edgepack.methods import deepthin as method
from edgepack.methods.budget import in_8_bits
from edgepack.model.constexpr import at_load, evaluate, is_decoded, stored_bytes, values
from edgepack.model.replacement import Replacement
from edgepack.quantize.gptq import output_energy
from tests.factorize.layers import SEEDS, inputs, layer, rng, seen, weight

SIDES = st.tuples(st.integers(1, 30), st.integers(1, 30))


@settings(max_examples=60)
@given(SIDES, st.integers(1, 4), st.integers(1, 40), SEEDS)
def test_the_re_laying_is_read_row_by_row_and_is_its_own_inverse(
    sides: tuple[int, int], rank: int, width: int, seed: int
) -> None:
    m, n = sides
    length = -(-m * n // width)
    rows, filters = rng(seed).standard_normal((length, rank)), rng(seed + 1).standard_normal((rank, width))
    laid = method.laid(rows, filters, sides)
    for j in range(m):
        for i in range(n):
            a, u = divmod(j * n + i, width)
            assert laid[j, i] == pytest.approx(float(rows[a] @ filters[:, u]), abs=1e-12)
    again = method.relaid(laid, width)
    assert again.shape == (length, width)
    assert np.array_equal(again.reshape(-1)[: m * n], laid.reshape(-1))
    assert not again.reshape(-1)[m * n :].any()


def test_repeats_fall_on_another_column_in_every_row() -> None:
    q, n, m = 5, 12, 5
    laid = method.laid(np.ones((12, 1)), np.arange(1.0, 6.0)[None], (m, n))
    starts = [int(np.flatnonzero(row == 1)[0]) for row in laid]
    assert sorted(starts) == [0, 1, 2, 3, 4]  # all q offsets, as gcd(q, n) = 1
    assert starts == [(-j * n) % q for j in range(m)]
    assert np.linalg.matrix_rank(laid) == 5  # of rank-1 factors


@settings(max_examples=200)
@given(st.integers(2, 400), st.integers(2, 400), st.integers(1, 12), st.floats(0.01, 0.99))
def test_width_is_the_small_root_of_the_ratio_next_to_a_coprime(m: int, n: int, rank: int, ratio: float) -> None:
    size = m * n
    found = method.ideal_width(ratio, rank, m, n)
    if ratio < 2 * rank / math.sqrt(size) * (1 - 1e-12):
        assert found is None
        return
    assume(found is not None)
    assert found is not None
    root = (ratio * size - math.sqrt((ratio * size) ** 2 - 4 * rank**2 * size)) / (2 * rank)
    assert math.gcd(found, n) == 1
    nearer = range(max(math.ceil(root - abs(found - root) + 1e-6), 1), math.floor(root + abs(found - root) - 1e-6) + 1)
    assert all(math.gcd(q, n) > 1 for q in nearer if q != found)
    assert rank * (size / root + root) / size == pytest.approx(ratio, rel=1e-6)
    assert root <= math.sqrt(size) * (1 + 1e-9)


@settings(max_examples=100)
@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.01, 0.99))
def test_every_shape_is_coprime_and_within_its_bytes(m: int, n: int, share: float) -> None:
    budget = int(share * m * n)
    for shape in method.shapes(m, n, budget):
        assert math.gcd(shape.width, n) == 1
        assert shape.stored_bytes <= budget
        assert shape.length * shape.width >= m * n > (shape.length - 1) * shape.width


@settings(max_examples=80)
@given(SIDES, st.integers(1, 4), st.integers(1, 40), st.booleans(), SEEDS)
def test_both_forms_are_the_same_function(
    sides: tuple[int, int], rank: int, width: int, with_bias: bool, seed: int
) -> None:
    m, n = sides
    assume(math.gcd(width, n) == 1)
    random = rng(seed)
    rows = random.standard_normal((-(-m * n // width), rank)).astype(np.float32)
    filters = random.standard_normal((rank, width)).astype(np.float32)
    bias = random.standard_normal(m).astype(np.float32) if with_bias else None
    given_layer = layer(weight(m, n, seed), bias, seen(inputs(20, n, seed)))
    decoded, direct = method.written(rows, filters, given_layer), method.written_as_conv(rows, filters, given_layer)
    assert is_decoded(decoded)
    assert not is_decoded(direct)
    x = random.standard_normal((3, n)).astype(np.float32)
    with np.errstate(invalid="ignore"):  # some builds of BLAS raise the flag for what lies behind the matrix
        expected = x @ method.laid(rows, filters, sides).T
    assert np.isfinite(expected).all()
    scale = 1e-5 * max(1.0, float(np.abs(expected).max()))
    assert np.allclose(evaluate(decoded, x), expected, rtol=0, atol=scale)
    assert np.allclose(evaluate(direct, x), expected, rtol=0, atol=scale)
    assert np.allclose(direct.weight, decoded.weight, rtol=0, atol=1e-5 * max(1.0, float(np.abs(direct.weight).max())))
    assert direct.bias is not None
    assert decoded.bias is not None
    assert np.array_equal(direct.bias, decoded.bias)


def test_indices_are_worked_out_at_load_from_three_numbers() -> None:
    made = method.deepthin_conv(layer(weight(96, 80, 1)), 0.3)
    assert isinstance(made, Replacement)
    assert made.structure.is_constexpr
    whole = [array for array in made.tensors.values() if array.dtype == np.int32]
    assert sum(array.size for array in whole) == 3
    loaded = at_load(made)
    own = [step.op for step in made.program if step.output not in loaded]
    assert own == ["pad", "conv1d", "gather", "mul", "sum"]


@pytest.mark.parametrize("form", [method.deepthin, method.deepthin_conv])
@pytest.mark.parametrize("sides", [(64, 120), (200, 49), (97, 31)])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_bytes_are_used_and_not_exceeded(form: object, sides: tuple[int, int], share: float) -> None:
    assert callable(form)
    made = form(layer(weight(*sides, 3)), share)
    assert isinstance(made, Replacement)
    assert made.structure.is_constexpr
    size = sides[0] * sides[1]
    used = stored_bytes(in_8_bits(made))
    assert used <= share * size
    # Few ranks are cheap enough without decoding, and few widths are coprime to 120.
    assert used >= (0.85 if form is method.deepthin else 0.75) * share * size


@settings(max_examples=40)
@given(SIDES, st.integers(1, 20), st.integers(1, 40), SEEDS)
def test_bytes_of_a_shape_are_those_stored(sides: tuple[int, int], rank: int, width: int, seed: int) -> None:
    m, n = sides
    shape = method.Shape(m, n, rank, width)
    rows, filters = rng(seed).standard_normal((shape.length, rank)), rng(seed).standard_normal((rank, width))
    decoded = method.written(rows, filters, layer(weight(m, n, seed)))
    assert stored_bytes(in_8_bits(decoded)) == shape.stored_bytes


def test_both_forms_round_to_the_same_weight() -> None:
    given_layer = layer(weight(64, 75, 1))
    shape = method.fitting(64, 75, 4, 1500)
    assert shape is not None
    rows, filters = method.truncated(given_layer.weight, shape)
    decoded, direct = (in_8_bits(form(rows, filters, given_layer)) for form in (method.written, method.written_as_conv))
    assert not is_decoded(direct)
    assert np.allclose(decoded.weight, direct.weight, atol=1e-5)


def test_the_decode_free_form_multiplies_no_more_than_the_dense_layer() -> None:
    made = method.deepthin_conv(layer(weight(96, 80, 1)), 0.3)
    assert isinstance(made, Replacement)
    assert made.structure.is_constexpr
    rank, width = made.tensors["filters"].shape
    shape = method.Shape(96, 80, rank, width)
    x = rng(1).standard_normal((1, 80)).astype(np.float32)
    found = values(made.tensors, made.program, x)
    names = {step.op: step.output for step in made.program}
    assert shape.macs == found[names["conv1d"]].size * width + 96 * shape.taps * rank
    assert shape.macs <= 96 * 80


def test_the_truncated_svd_of_the_re_laid_weight_is_found_again() -> None:
    rows, filters = rng(1).standard_normal((80, 2)), rng(2).standard_normal((2, 37))
    shape = method.Shape(60, 49, 2, 37)
    padded = method.laid(rows, filters, (60, 49))
    rows[-1] = 0  # the last row is cut: what is laid from it is not of rank 2 when it is padded with zeros
    exact = method.laid(rows, filters, (60, 49))
    assert not np.allclose(padded, exact)
    assert np.allclose(method.laid(*method.truncated(exact, shape), exact.shape), exact, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 30), st.integers(8, 30), st.integers(5, 80), st.sampled_from([0.4, 0.7]), SEEDS)
def test_data_never_make_the_loss_on_them_larger(m: int, n: int, count: int, share: float, seed: int) -> None:
    w = weight(m, n, seed)
    blind = layer(w)
    knowing = layer(w, None, seen(inputs(count, n, seed)))
    for form in (method.deepthin, method.deepthin_conv):
        free, aware = form(blind, share), form(knowing, share)
        if isinstance(free, str) or isinstance(aware, str):
            assert isinstance(free, str)
            assert isinstance(aware, str)
            continue
        covariance = metric(knowing)
        total = output_energy(w, covariance)
        assert output_energy(w - aware.weight, covariance) <= output_energy(w - free.weight, covariance) + 1e-6 * total


def test_data_help_and_the_mean_output_stays() -> None:
    x = inputs(400, 48, 5)
    w = weight(40, 48, 5)
    knowing = layer(w, None, seen(x))
    free, aware = method.deepthin(layer(w), 0.4), method.deepthin(knowing, 0.4)
    assert isinstance(free, Replacement)
    assert free.structure.is_constexpr
    assert isinstance(aware, Replacement)
    assert aware.structure.is_constexpr
    assert output_energy(w - aware.weight, metric(knowing)) < 0.9 * output_energy(w - free.weight, metric(knowing))
    assert aware.bias is not None
    mean = x.astype(np.float64).mean(axis=0)
    assert np.allclose(aware.weight @ mean + aware.bias, w @ mean, atol=1e-4)


def test_eight_bits_change_little() -> None:
    made = method.deepthin(layer(weight(96, 80, 1)), 0.3)
    assert isinstance(made, Replacement)
    assert made.structure.is_constexpr
    rounded = in_8_bits(made)
    assert np.square(rounded.weight - made.weight).sum() < 1e-3 * np.square(made.weight).sum()


def test_balancing_changes_no_number_of_the_weight() -> None:
    rows, filters = rng(1).standard_normal((50, 3)) * 100, rng(2).standard_normal((3, 20)) / 100
    left, right = method.balanced(rows, filters)
    assert np.allclose(left @ right, rows @ filters)
    assert np.allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1))


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_training_starts_at_unit_scale(rank: int | None) -> None:
    drawn = method.initial(300, 400, 0.2, 7, rank=rank, gain=2.0)
    assert not isinstance(drawn, str)
    rows, filters = drawn
    assert rows.dtype == filters.dtype == np.float32
    assert rank in (None, rows.shape[1])
    laid = method.laid(rows, filters, (300, 400))
    # A rank of one has few independent filters: their mean square is itself a random number.
    assert float(laid.var()) * 400 == pytest.approx(2.0, rel=0.7 if rank == 1 else 0.3)
    again = method.initial(300, 400, 0.2, 7, rank=rank, gain=2.0)
    assert np.array_equal(rows, again[0])
    assert not np.array_equal(rows, method.initial(300, 400, 0.2, 8, rank=rank, gain=2.0)[0])
    assert isinstance(method.initial(300, 400, 0.001, 7), str)


def test_too_few_bytes_are_a_reason_and_equal_calls_are_equal() -> None:
    for form in (method.deepthin, method.deepthin_conv):
        assert "too few" in str(form(layer(weight(20, 30, 1)), 0.01))
        first, second = (form(layer(weight(20, 30, 1), None, seen(inputs(50, 30, 1))), 0.5) for _ in range(2))
        assert isinstance(first, Replacement)
        assert first.structure.is_constexpr
        assert isinstance(second, Replacement)
        assert second.structure.is_constexpr
        assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_a_layer_of_zeros_and_a_still_input_are_fitted() -> None:
    for form in (method.deepthin, method.deepthin_conv):
        nothing = form(layer(weight(20, 30, 1, "zero"), None, seen(inputs(50, 30, 1))), 0.5)
        assert isinstance(nothing, Replacement)
        assert nothing.structure.is_constexpr
        assert not nothing.weight.any()
        still = form(layer(weight(20, 30, 1), None, seen(np.full((9, 30), 0.5, np.float32))), 0.5)
        assert isinstance(still, Replacement)
        assert still.structure.is_constexpr
        assert np.isfinite(still.weight).all()
