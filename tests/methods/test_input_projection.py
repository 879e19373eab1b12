"""Input projection: what its steps come to, and how good its shared matrix is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.factorize.leastsquares import metric
from edgepack.methods.budget import in_8_bits
from edgepack.methods.input_projection import effective, input_projection, widths
from edgepack.model.constexpr import evaluate, is_decoded, stored_bytes
from edgepack.model.replacement import Replacement
from edgepack.quantize.gptq import output_energy
from tests.factorize.layers import SEEDS, inputs, layer, rng, seen, weight


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 24), st.integers(4, 70), st.integers(4, 60), st.floats(0.2, 0.9), SEEDS)
def test_steps_come_to_the_blocks_times_one_matrix(out: int, inn: int, rows: int, share: float, seed: int) -> None:
    w = weight(out, inn, seed)
    knowing = layer(w, None, seen(inputs(rows, inn, seed)))
    covariance = metric(knowing)
    free, aware = input_projection(layer(w), share), input_projection(knowing, share)
    assert isinstance(free, str) == isinstance(aware, str)
    x = rng(seed).standard_normal((3, inn)).astype(np.float32)
    for made in (free, aware):
        if isinstance(made, str):
            return
        left, small = made.tensors["left"], made.tensors["projection"]
        kept, block = small.shape
        expected = left @ np.kron(np.eye(left.shape[1] // kept), small)[:, :inn]
        assert np.allclose(effective(left, small, inn), expected, atol=1e-4)
        assert np.allclose(evaluate(made, x), x @ expected.T, atol=1e-3 * max(1.0, float(np.abs(expected).max())))
        assert not is_decoded(made)
        assert kept < block
        assert stored_bytes(in_8_bits(made)) <= share * out * inn
    assert isinstance(free, Replacement)
    assert free.structure.is_constexpr
    assert isinstance(aware, Replacement)
    assert aware.structure.is_constexpr
    slack = 1e-5 * output_energy(w, covariance)
    assert output_energy(w - aware.weight, covariance) <= output_energy(w - free.weight, covariance) + slack


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 16), st.sampled_from([16, 24, 40]), st.booleans(), SEEDS)
def test_left_factor_is_least_squares(out: int, inn: int, with_data: bool, seed: int) -> None:
    given_layer = layer(weight(out, inn, seed), None, seen(inputs(50, inn, seed)) if with_data else None)
    made = input_projection(given_layer, 0.7)
    if isinstance(made, str):
        return
    left, small = (made.tensors[name].astype(np.float64) for name in ("left", "projection"))
    right = np.kron(np.eye(left.shape[1] // len(small)), small)
    covariance = metric(given_layer)
    if covariance is None:
        covariance = np.eye(inn)
    left_over = (given_layer.weight - left @ right) @ covariance @ right.T
    scale = float(np.linalg.norm(given_layer.weight) + np.linalg.norm(left)) * float(np.linalg.norm(covariance))
    assert np.abs(left_over).max() <= 1e-5 * scale


@pytest.mark.parametrize("with_data", [False, True])
def test_a_weight_of_this_form_is_found_again(with_data: bool) -> None:
    small = np.linalg.qr(rng(1).standard_normal((16, 4)))[0].T
    w = (rng(2).standard_normal((20, 16)) @ np.kron(np.eye(4), small)).astype(np.float32)
    made = input_projection(layer(w, None, seen(inputs(500, 64, 3)) if with_data else None), 0.45)
    assert isinstance(made, Replacement)
    assert made.structure.is_constexpr
    assert made.tensors["projection"].shape[1] in (16, 32)
    assert np.square(w - made.weight).sum() < 1e-6 * np.square(w).sum()


def test_shared_matrix_without_data_is_the_optimal_one() -> None:
    w = weight(24, 32, 4)
    made = input_projection(layer(w), 0.5)
    assert isinstance(made, Replacement)
    assert made.structure.is_constexpr
    small = made.tensors["projection"]
    kept, block = small.shape
    energies = np.linalg.svd(w.astype(np.float64).reshape(-1, block), compute_uv=False) ** 2
    assert output_energy(w - made.weight, None) == pytest.approx(float(energies[kept:].sum()), rel=1e-5)


@pytest.mark.parametrize("sides", [(64, 128), (40, 96), (30, 210)])
@pytest.mark.parametrize("share", [0.15, 0.3, 0.6])
def test_bytes_are_used(sides: tuple[int, int], share: float) -> None:
    made = input_projection(layer(weight(*sides, 1)), share)
    assert isinstance(made, Replacement)
    assert made.structure.is_constexpr
    assert stored_bytes(in_8_bits(made)) >= 0.8 * share * sides[0] * sides[1]


def test_block_widths_divide_the_inputs_or_zeros_follow() -> None:
    assert widths(784) == [112, 56, 28, 16, 8]
    assert widths(384) == [128, 64, 32, 16, 8]
    assert widths(97) == [32]
    made = input_projection(layer(weight(30, 97, 1)), 0.5)
    assert isinstance(made, Replacement)
    assert made.structure.is_constexpr
    assert made.program[0].op == "pad"
    assert made.program[0].attributes == {"before": 0, "after": 31}


def test_reasons_bias_and_equal_calls() -> None:
    x = inputs(60, 32, 1)
    given_layer = layer(weight(16, 32, 1), None, seen(x))
    assert "too few" in str(input_projection(given_layer, 0.01))
    first, second = input_projection(given_layer, 0.5), input_projection(given_layer, 0.5, seed=0)
    assert isinstance(first, Replacement)
    assert first.structure.is_constexpr
    assert isinstance(second, Replacement)
    assert second.structure.is_constexpr
    assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert first.bias is not None
    mean = x.astype(np.float64).mean(axis=0)
    assert np.allclose(first.weight @ mean + first.bias, given_layer.weight @ mean, atol=1e-4)
