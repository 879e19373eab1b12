"""Moments in one streaming pass: what numpy says in one go, however the stream is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import DataError
from edgepack.model.statistics import FLUSH_ROWS, merged, moments, ranges, sums
from edgepack.model.types import Array, Moments


def rows(count: int, features: int, seed: int, offset: float = 0.0) -> Array:
    return (np.random.default_rng(seed).standard_normal((count, features)) + offset).astype(np.float32)


def cut(x: Array, at: list[int]) -> list[Array]:
    return np.split(x, sorted(a % (len(x) + 1) for a in at))


def assert_close(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    assert (a.low, a.high) == (b.low, b.high)
    assert a.row_range == pytest.approx(b.row_range, rel=1e-12)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a.second, b.second, rtol=1e-12, atol=1e-12 * np.abs(b.second).max())


@settings(max_examples=40)
@given(
    st.integers(1, 3000),
    st.integers(1, 8),
    st.integers(0, 999),
    st.lists(st.integers(0, 5000), max_size=8),
    st.sampled_from([0.0, 50.0]),
)
def test_streaming_equals_numpy_for_every_cut(
    count: int, features: int, seed: int, at: list[int], offset: float
) -> None:
    x = rows(count, features, seed, offset)
    found = moments({"x": part} for part in cut(x, at))["x"]
    x64 = x.astype(np.float64)
    second = x64.T @ x64 / count
    spans = np.maximum(x64.max(axis=1), 0) - np.minimum(x64.min(axis=1), 0)
    row_range = np.sqrt(np.mean(spans**2))
    assert_close(found, Moments(count, x64.mean(axis=0), second, float(x.min()), float(x.max()), row_range))
    assert_close(found, moments([{"x": x}])["x"])
    assert_close(found, merged(sums([{"x": part}]) for part in cut(x, at))["x"])
    assert (found.mean.dtype, found.second.dtype) == (np.float64, np.float64)
    np.testing.assert_array_equal(found.second, found.second.T)


def test_covariance_where_the_mean_is_large() -> None:
    x = rows(4000, 5, 0) * np.float32(0.01) + np.float32(30)
    found = moments({"x": part} for part in cut(x, [100, 1500, 3999]))["x"]
    np.testing.assert_allclose(found.covariance, np.cov(x.T.astype(float), bias=True), rtol=1e-6, atol=1e-10)


def test_features_that_never_vary_have_no_variance_at_all() -> None:
    x = rows(3 * FLUSH_ROWS + 7, 6, 1)
    x[:, 2], x[:, 5] = np.float32(0.1), np.float32(-7e4)
    found = moments({"x": part} for part in cut(x, [11, 1000, 2500]))["x"]
    assert not found.covariance[[2, 5]].any()
    assert not found.covariance[:, [2, 5]].any()
    assert found.mean[2] == np.float64(np.float32(0.1))
    assert (np.diag(found.covariance)[[0, 1, 3, 4]] > 0.9).all()
    np.testing.assert_array_equal(found.second, found.second.T)


def test_several_values_and_rows_of_other_counts() -> None:
    stream = [
        {"a": rows(3, 2, 0), "b": rows(5, 4, 1)},
        {"a": rows(0, 2, 2), "b": rows(1, 4, 3)},
        {"b": rows(2, 4, 4), "never": rows(0, 9, 5)},
    ]
    found = moments(iter(stream))
    assert {name: m.count for name, m in found.items()} == {"a": 3, "b": 8}
    assert found["b"].second.shape == (4, 4)


def test_the_range_of_a_row_reaches_from_zero() -> None:
    x = np.array([[1.0, 3.0], [-4.0, -1.0], [-2.0, 2.0]], np.float32)
    assert moments([{"x": x}])["x"].row_range == pytest.approx(np.sqrt((3**2 + 4**2 + 4**2) / 3))


def test_parts_without_rows_of_a_value() -> None:
    a, b = rows(30, 3, 0), rows(20, 4, 1)
    found = merged([sums([{"a": a[:10]}]), {}, sums([{"a": a[10:], "b": b}]), sums([{"b": rows(0, 4, 2)}])])
    assert_close(found["a"], moments([{"a": a}])["a"])
    assert_close(found["b"], moments([{"b": b}])["b"])
    assert list(found) == ["a", "b"]


def test_the_same_parts_give_the_same_bits() -> None:
    x = rows(5000, 40, 3)
    first, second = (merged(sums([{"x": part}]) for part in np.split(x, 5))["x"] for _ in range(2))
    np.testing.assert_array_equal(first.second, second.second)
    np.testing.assert_array_equal(first.mean, second.mean)


def test_float16_is_summed_in_double() -> None:
    x = np.full((5000, 2), 60.0, np.float16)
    x[::2, 0] = 61.0
    found = moments([{"x": x}])["x"]
    np.testing.assert_allclose(found.mean, [60.5, 60.0], rtol=1e-12)
    np.testing.assert_allclose(found.covariance, [[0.25, 0], [0, 0]], atol=1e-8)


def test_the_stream_is_not_held_in_memory() -> None:
    """Rows are added up every thousand or so: what was summed is let go."""
    import tracemalloc

    def stream():
        for i in range(60):
            yield {"x": rows(512, 64, i)}

    tracemalloc.start()
    try:
        assert moments(stream())["x"].count == 60 * 512
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3e6, "8 MB went through"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named(bad: float) -> None:
    x = rows(10, 3, 0)
    x[7, 1] = bad
    for collect in (moments, ranges):
        with pytest.raises(DataError, match="fc1, fc1_scale: NaN or Inf flows"):
            collect([{"fc1\nfc1_scale": rows(2, 3, 1)}, {"fc1\nfc1_scale": x}])


def test_ranges() -> None:
    stream = [{"a": np.array([[1.0, -2.0]]), "b": np.zeros((0, 3))}, {"a": np.array([[5.0, 0.0], [-1.0, 0.5]])}]
    assert ranges(stream) == {"a": (-2.0, 5.0)}
    assert ranges([]) == {}
    assert moments([]) == {}
