from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack.methods import registry
from edgepack.model.layer import View
from edgepack.model.replacement import dense, low_rank
from edgepack.model.types import Array
from edgepack.training.compressors import method


def layer(m: int = 8, n: int = 6) -> View:
    weight = np.random.default_rng(m * 100 + n).normal(size=(m, n)).astype(np.float32)
    return View("fc", weight, np.ones(m, np.float32))


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 12))
def test_low_rank_is_the_truncated_svd_with_balanced_factors(m: int, n: int, rank: int) -> None:
    rank = min(rank, m, n)
    fc = layer(m, n)
    factors = method("low-rank").factors(fc, rank)
    u, s, vt = np.linalg.svd(fc.weight)
    np.testing.assert_allclose(factors.A @ factors.B, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=2e-5)
    left, right = np.linalg.norm(factors.A, axis=0), np.linalg.norm(factors.B, axis=1)
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3)


def test_a_weight_of_zeros_has_factors() -> None:
    factors = method("low-rank").factors(View("fc", np.zeros((5, 4), np.float32), None), 2)
    assert np.isfinite(factors.A).all()
    assert not (factors.A @ factors.B).any()


def test_a_function_is_a_compressor_and_gets_copies() -> None:
    fc = layer()
    seen: list[tuple[Any, ...]] = []

    def first_columns(weight: Array, bias: Array | None, rank: int) -> tuple[Array, Array]:
        seen.append((weight.shape, None if bias is None else bias.shape, rank))
        a, b = weight[:, :rank].copy(), np.eye(rank, weight.shape[1])
        weight[:] = 0
        return a, b

    factors = method(first_columns).factors(fc, 2)
    assert seen == [((8, 6), (8,), 2)]
    np.testing.assert_array_equal((factors.A @ factors.B)[:, :2], fc.weight[:, :2])
    assert factors.bias is None
    assert factors.B.dtype == np.float32


def test_factors_with_a_bias_pass() -> None:
    made = low_rank(np.ones((8, 2), np.float32), np.ones((2, 6), np.float32), np.zeros(8, np.float32))
    assert method(lambda weight, bias, rank: made).factors(layer(), 2).bias is not None


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned NoneType"),
        (dense(np.ones((8, 6), np.float32), None), "returned Replacement"),
        ((np.ones((8, 2)),), "returned tuple"),
        ((np.ones((8, 3)), np.ones((2, 6))), r"A of .* is float64 \(8, 3\), floats of shape \(8, 2\)"),
        ((np.ones((8, 2)), np.ones((6, 2))), r"B of .* shape \(2, 6\) were expected"),
        ((np.ones((8, 2), int), np.ones((2, 6))), "int64"),
        ((np.ones((8, 2)), np.full((2, 6), np.nan)), "NaN"),
        ((np.ones((8, 2)), np.ones((2, 6)), np.ones(6)), "bias of"),
    ],
)
def test_results_that_do_not_fit_are_refused(result: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        method(lambda weight, bias, rank: result).factors(layer(), 2)


def test_an_error_in_the_function_names_the_layer() -> None:
    def broken(weight: Array, bias: Array | None, rank: int) -> tuple[Array, Array]:
        raise ZeroDivisionError("oh")

    with pytest.raises(UsageError, match=r"fc: compressor .*broken raised ZeroDivisionError: oh"):
        method(broken).factors(layer(), 2)


@pytest.mark.parametrize("compressor", ["no-such", 3, None])
def test_what_is_no_compressor_is_refused(compressor: Any) -> None:
    with pytest.raises(UsageError, match="compressor"):
        method(compressor)


def test_factorizers_that_need_gradients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weighted = SimpleNamespace(needs_moments=True, needs_gradients=True)
    monkeypatch.setattr(registry, "FACTORIZERS", {**registry.FACTORIZERS, "weighted": weighted})
    with pytest.raises(UsageError, match="weighs outputs by their gradients"):
        method("weighted")
