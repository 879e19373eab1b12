"""Bias correction: the mean output stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.model.replacement import low_rank
from edgepack.quantize.bias import corrected_bias, corrected_pair
from edgepack.quantize.gptq import round_to_nearest
from edgepack.quantize.grids import WeightGrid
from edgepack.quantize.rotation import balanced
from tests.quantize.quantize_cases import case


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 50), st.booleans())
def test_the_mean_output_stays(out: int, columns: int, seed: int, has_bias: bool) -> None:
    one = case(out, columns, seed, rows=100)
    bias = one.layer.bias if has_bias else None
    rounded = round_to_nearest(one.layer.weight, WeightGrid(7)).weight
    found = corrected_bias(bias, one.layer.weight, rounded, one.mean)
    assert found.dtype == np.float32
    wanted = (one.inputs @ one.layer.weight.T).mean(axis=0) + (0 if bias is None else bias)
    np.testing.assert_allclose((one.inputs @ rounded.T).mean(axis=0) + found, wanted, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_output_of_a_pair_stays(seed: int) -> None:
    one = case(24, 30, seed)
    exact = one.factors(6)
    plain = balanced(exact, one.spectrum, seed=0)
    A, B = (round_to_nearest(factor, WeightGrid(7)).weight for factor in (plain.A, plain.B))
    rounded = low_rank(A, B, None)
    found = corrected_pair(plain, rounded, one.mean)
    np.testing.assert_array_equal(found.A, rounded.A)
    assert found.bias is not None
    wanted = (one.inputs @ one.layer.weight.T + one.layer.bias).mean(axis=0)
    np.testing.assert_allclose((one.inputs @ found.B.T @ found.A.T).mean(axis=0) + found.bias, wanted, atol=1e-5)
