from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.methods import pruning
from edgepack.methods.budget import bytes_in_8_bits, in_8_bits, most_floats
from edgepack.model.constexpr import Writer, stored_bytes
from tests.factorize import layers


def _written(matrix, positions, scaled=True):
    w = Writer()
    return w.decoded(pruning.write(w, "s", matrix, positions, scaled=scaled), None)


def _positions(size, count, seed):
    return np.sort(layers.rng(seed).choice(size, min(count, size), replace=False))


@given(st.integers(1, 60), st.integers(1, 300), st.integers(1, 40), layers.SEEDS, st.booleans())
def test_what_is_kept_comes_back_and_costs_what_was_told(rows, columns, count, seed, scaled):
    matrix = layers.weight(rows, columns, seed)
    positions = _positions(matrix.size, count, seed)
    constexpr = _written(matrix, positions, scaled)
    expected = np.zeros(matrix.size, np.float32)
    expected[positions] = matrix.reshape(-1)[positions]
    np.testing.assert_allclose(constexpr.weight.reshape(-1), expected, rtol=1e-6)
    told = pruning.entry_bytes(pruning.entries_of(positions)) + pruning.OVERHEAD
    assert stored_bytes(in_8_bits(constexpr)) == told + (pruning.scale_bytes(rows) if scaled else 0)


def test_a_far_number_takes_zeros_on_the_way():
    matrix = np.ones((4, 256), np.float32)
    constexpr = _written(matrix, np.array([0, 255, 256, 1022]))
    assert constexpr.tensors["s.gaps"].tolist() == [1, 255, 1, 255, 255, 255, 1]
    assert constexpr.tensors["s.values"].tolist() == [1, 1, 1, 0, 0, 0, 1]
    assert constexpr.tensors["s.gaps"].dtype == np.uint8
    assert pruning.filled(np.array([0, 256])).tolist() == [0, 255, 256]
    assert pruning.filled(np.array([255])).tolist() == [254, 255]


@given(st.integers(1, 3000), st.integers(0, 600), layers.SEEDS)
def test_as_many_as_fit_and_no_more(size, left, seed):
    saliency = layers.rng(seed).random(size)
    found = pruning.most_that_fit(saliency, left)
    order = np.argsort(-saliency)
    assert np.array_equal(found, np.sort(order[: len(found)]))
    assert pruning.entries_of(found) <= most_floats(left, beside=1)
    if len(found) < size:
        more = pruning.entries_of(np.sort(order[: len(found) + 1]))
        assert more > most_floats(left, beside=1)


@given(st.integers(0, 600), st.integers(0, 3))
def test_no_more_floats_would_fit(left, beside):
    count = most_floats(left, beside)
    sizes = [bytes_in_8_bits(n) + beside * n for n in range(left + 2)]
    assert count == max(n for n, size in enumerate(sizes) if size <= left)


@given(st.integers(16, 90), layers.SEEDS)
def test_rounding_keeps_the_scales_and_serves_small_rows(rows, seed):
    matrix = layers.weight(rows, 20, seed) * np.geomspace(0.02, 1, rows)[:, None].astype(np.float32)
    positions = np.arange(matrix.size)
    rounded = in_8_bits(_written(matrix, positions))
    # A row's scale is its peak rounded up to the next of 127, so codes lose half a step of at most twice the peak.
    step = (np.abs(matrix).max(axis=1) + np.abs(matrix).max() / 127) / 127
    assert (np.abs(rounded.weight - matrix) <= (0.501 * step)[:, None]).all()


@pytest.mark.parametrize("scaled", [True, False])
def test_a_matrix_of_zeros(scaled):
    assert not _written(np.zeros((3, 4), np.float32), np.array([1, 5]), scaled).weight.any()
