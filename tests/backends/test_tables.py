"""Embedding tables as data look them up: what every row counts, and what fewer numbers or bits lose."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.backends.onnx.schemes import FP32, TABLES4, WEIGHTS8
from edgepack.backends.tables import EmbeddingTable
from edgepack.model.kinds.embedding import embedding_layer
from edgepack.model.structure import DENSE, low_rank
from edgepack.model.types import Array

TOKENS, WIDTH = 200, 64


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def table(counts: Array, weight: Array | None = None) -> EmbeddingTable:
    return EmbeddingTable(embedding_layer("tokens", normal(TOKENS, WIDTH) if weight is None else weight), counts)


def often(rows: int) -> Array:
    """Some rows are looked up a hundred times, one once, the others never."""
    counts = np.zeros(TOKENS, np.int64)
    counts[:rows], counts[rows] = 100, 1
    return counts


def test_rows_that_were_never_seen_share_what_those_seen_once_had() -> None:
    shares = table(often(10)).shares
    assert shares.sum() == pytest.approx(1)
    assert shares[11:] == pytest.approx(1 / 1001 / TOKENS)
    assert shares[0] == pytest.approx(1000 / 1001 * 100 / 1001 + shares[11])
    np.testing.assert_allclose(table(np.zeros(TOKENS, np.int64)).shares, 1 / TOKENS)


def test_rows_that_are_looked_up_are_what_a_rank_keeps() -> None:
    """Twenty rows span twenty directions: data that look up no others need no more; data that nobody knows do."""
    known, blind = table(often(20)), table(np.zeros(TOKENS, np.int64))
    assert known.lost_share(low_rank(24), FP32) < 0.01 < 0.3 < blind.lost_share(low_rank(24), FP32)
    part = known.factors(24)
    found = part.tensors["B"] @ part.A.T + part.bias
    errors = np.square(found - known.layer.weight).sum(axis=1) / WIDTH
    assert errors[:20].max() < 0.01
    assert 0.3 < errors[21:].mean() < 1, "the others keep what they have there"


def test_the_mean_row_is_exact_and_the_whole_rank_loses_nothing() -> None:
    one = table(often(50), normal(TOKENS, WIDTH) + 3)
    part = one.factors(8)
    found = part.tensors["B"] @ part.A.T + part.bias
    np.testing.assert_allclose(one.shares @ found, one.shares @ one.layer.weight, atol=1e-4)
    assert one.lost_share(low_rank(WIDTH), FP32) < 1e-9
    assert one.lost_share(DENSE, FP32) == 0


def test_lost_shares_rise_with_fewer_ranks_and_bits() -> None:
    one = table(often(100))
    for scheme in (FP32, WEIGHTS8, TABLES4):
        lost = [one.lost_share(low_rank(rank), scheme) for rank in (16, 32, 64)]
        assert lost == sorted(lost, reverse=True)
    cut = [one.lost_share(low_rank(rank), FP32) for rank in (16, 32)]
    np.testing.assert_allclose(cut, one.spectrum.lost_share()[[16, 32]], rtol=1e-3)
    by_bits = [one.lost_share(low_rank(32), scheme) for scheme in (FP32, WEIGHTS8, TABLES4)]
    assert by_bits == sorted(by_bits)
    assert 1e-6 < one.lost_share(DENSE, WEIGHTS8) < 1e-4 < one.lost_share(DENSE, TABLES4) < 0.02


def test_a_table_of_equal_rows_loses_nothing_at_any_rank() -> None:
    one = table(often(3), np.ones((TOKENS, WIDTH), np.float32))
    assert one.lost_share(low_rank(8), FP32) == 0
