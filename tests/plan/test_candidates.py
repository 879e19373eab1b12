"""Ranks worth trying, and the rank that was asked for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack.model.kinds import kind_of
from edgepack.model.kinds.conv import ConvGeometry, conv_layer
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.layer import Layer
from edgepack.plan.candidates import MOST_RANKS, AskedRank, asked_rank, break_even_rank, check_rank, rank_choices


def layer(out: int, inn: int, name: str = "l") -> Layer:
    return linear_layer(name, np.zeros((out, inn), np.float32), None)


@given(st.integers(1, 300), st.integers(1, 300))
def test_break_even_against_brute_force(out: int, inn: int) -> None:
    pays = [r for r in range(1, min(out, inn) + 1) if r * (out + inn) < out * inn]
    assert break_even_rank(out, inn) == max(pays, default=0)


@given(st.integers(1, 500), st.integers(1, 500))
def test_few_choices_are_all_worthwhile_tiles(out: int, inn: int) -> None:
    assert list(rank_choices(out, inn)) == [
        r for r in range(8, min(out, inn), 8) if r * (out + inn) <= 0.75 * out * inn
    ]


@given(st.integers(600, 20_000), st.integers(600, 20_000))
def test_many_choices_are_thinned_out_geometrically(out: int, inn: int) -> None:
    choices = rank_choices(out, inn)
    limit = 0.75 * out * inn / (out + inn)
    assert len(choices) <= MOST_RANKS + 1
    assert choices[:2] == (8, 16)
    assert limit - 8 < choices[-1] <= limit
    assert all(rank % 8 == 0 for rank in choices)
    assert all(b - a <= max(16, 0.45 * a) for a, b in pairwise(choices))


def test_a_wide_head_is_never_factored() -> None:
    assert break_even_rank(10, 512) == 9
    assert rank_choices(10, 512) == ()


@pytest.mark.parametrize("rank", [0, -1, 33, 1000])
def test_ranks_that_no_layer_can_have(rank: int) -> None:
    with pytest.raises(UsageError, match=rf"--rank {rank}: ranks here go from 1 to 32") as caught:
        check_rank([layer(10, 512), layer(32, 40)], rank)
    assert caught.value.exit_code == 2


def test_ranks_that_one_layer_can_have() -> None:
    check_rank([layer(10, 512), layer(32, 40)], 32)
    check_rank([layer(10, 512)], 0.5)


def test_break_even_itself_is_allowed_and_one_more_is_not() -> None:
    assert break_even_rank(64, 64) == 31
    assert asked_rank(64, 64, 31) == 31
    assert asked_rank(64, 64, 32) == "rank 32 is above its break-even rank 31"


@given(st.integers(2, 200), st.integers(2, 200), st.floats(0.001, 0.999))
def test_a_share_keeps_at_most_that_share(out: int, inn: int, share: float) -> None:
    found = asked_rank(out, inn, share)
    if isinstance(found, str):
        assert share * out * inn < out + inn
    else:
        assert found * (out + inn) <= share * out * inn < (found + 1) * (out + inn)


@given(st.integers(8, 64), st.integers(8, 64), st.integers(2, 5), st.floats(0.25, 0.6))
def test_every_structure_of_a_convolution_keeps_the_share_that_was_asked_for(
    out: int, channels: int, side: int, share: float
) -> None:
    geometry = ConvGeometry("Conv", (side, side), (1, 1), (1, 1), (0,) * 4)
    one = conv_layer("c", np.zeros((out, channels, side, side), np.float32), None, geometry)
    kind = kind_of(one)
    _, *offered = kind.structures(one, AskedRank(share))
    assert {structure.name for structure in offered} >= {"low-rank", "spatial-svd", "input-svd"}
    for structure in offered:
        kept = sum(op.weights for op in kind.ops(one, structure, 1))
        more = type(structure)(structure.name, tuple(rank + 1 for rank in structure.ranks))
        assert kept <= share * one.weight.size < sum(op.weights for op in kind.ops(one, more, 1))
    _, *ranked = kind.structures(one, AskedRank(3))
    assert {structure.ranks for structure in ranked} == {(3,)}
