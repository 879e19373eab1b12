"""Ranks worth trying, and what becomes of a layer at a given rank, share or loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack.plan.candidates import at_lost_share, at_rank, break_even_rank, dense, fixed, rank_choices
from edgepack.types import LinearLayer, Spectrum


def layer(out: int, inn: int, name: str = "l") -> LinearLayer:
    return LinearLayer(name, np.zeros((out, inn), np.float32), None, "Gemm")


def spectrum(out: int, inn: int, power: float = 1.0) -> Spectrum:
    side = min(out, inn)
    return Spectrum(np.eye(out, side, dtype=np.float32), np.arange(1, side + 1, dtype=float) ** (-2 * power))


@given(st.integers(1, 300), st.integers(1, 300))
def test_break_even_against_brute_force(out: int, inn: int) -> None:
    pays = [r for r in range(1, min(out, inn) + 1) if r * (out + inn) < out * inn]
    assert break_even_rank(out, inn) == max(pays, default=0)


@given(st.integers(1, 600), st.integers(1, 600))
def test_choices_are_worthwhile_tiles(out: int, inn: int) -> None:
    choices = rank_choices(layer(out, inn))
    expected = [r for r in range(8, min(out, inn), 8) if r * (out + inn) <= 0.75 * out * inn]
    assert choices == expected
    assert all(r <= break_even_rank(out, inn) for r in choices)


def test_a_wide_head_is_never_factored() -> None:
    head = layer(10, 512)
    assert break_even_rank(10, 512) == 9
    assert rank_choices(head) == []
    for share in (1e-5, 0.5, 1.0):
        plan = at_lost_share(head, spectrum(10, 512), share)
        assert plan.rank is None
        assert plan.weight_parameters == 5120
        assert plan.reason == "a pair of rank 8 saves too little: break-even rank is 9"


@given(st.integers(16, 200), st.integers(16, 200), st.floats(0.2, 3), st.floats(1e-6, 1.0))
def test_smallest_rank_within_the_loss(out: int, inn: int, power: float, share: float) -> None:
    given_layer, given_spectrum = layer(out, inn), spectrum(out, inn, power)
    plan = at_lost_share(given_layer, given_spectrum, share)
    lost = given_spectrum.lost_share()
    fitting = [r for r in rank_choices(given_layer) if lost[r] <= share]
    assert plan.rank == min(fitting, default=None)
    if plan.rank is None:
        assert plan.lost_energy_share == 0.0
        assert plan.weight_parameters == out * inn
    else:
        assert plan.lost_energy_share == pytest.approx(float(lost[plan.rank]))
        assert plan.weight_parameters == plan.rank * (out + inn) < out * inn


def test_a_loss_equal_to_the_limit_is_within_it() -> None:
    flat = Spectrum(np.eye(64, dtype=np.float32), np.ones(64))
    assert at_lost_share(layer(64, 64), flat, 0.75).rank == 16
    assert at_lost_share(layer(64, 64), flat, np.nextafter(0.75, 0)).rank == 24


def test_dense_says_which_rank_it_would_need() -> None:
    flat = Spectrum(np.eye(64, dtype=np.float32), np.ones(64))
    plan = at_lost_share(layer(64, 64), flat, 0.25)
    assert plan.rank is None
    assert plan.reason == "0.25 of output energy needs rank 48, worthwhile up to 24"


def test_nothing_to_lose_takes_the_smallest_rank() -> None:
    assert at_lost_share(layer(64, 64), Spectrum(np.eye(64, dtype=np.float32), np.zeros(64)), 1e-5).rank == 8


@pytest.mark.parametrize("rank", [0, -1, 33, 1000])
def test_ranks_that_no_layer_can_have(rank: int) -> None:
    layers = [layer(10, 512), layer(32, 40)]
    with pytest.raises(UsageError, match=rf"--rank {rank}: ranks here go from 1 to 32") as caught:
        fixed(layers, [spectrum(10, 512), spectrum(32, 40)], rank)
    assert caught.value.exit_code == 2


def test_one_rank_for_all_and_dense_above_break_even() -> None:
    layers = [layer(100, 100, "a"), layer(10, 512, "b"), layer(30, 30, "c")]
    spectra = [spectrum(*a.weight.shape) for a in layers]
    plans = fixed(layers, spectra, 20)
    assert [(p.layer, p.rank) for p in plans] == [("a", 20), ("b", None), ("c", None)]
    assert plans[0].reason == "asked for with --rank"
    assert plans[0].lost_energy_share == pytest.approx(float(spectra[0].lost_share()[20]))
    assert plans[2].reason == "rank 20 is above its break-even rank 14"


def test_break_even_itself_is_allowed_and_one_more_is_not() -> None:
    layers, spectra = [layer(64, 64)], [spectrum(64, 64)]
    assert break_even_rank(64, 64) == 31
    assert fixed(layers, spectra, 31)[0].rank == 31
    assert fixed(layers, spectra, 32)[0].rank is None


@given(st.integers(2, 200), st.integers(2, 200), st.floats(0.001, 0.999))
def test_a_share_keeps_at_most_that_share(out: int, inn: int, share: float) -> None:
    (plan,) = fixed([layer(out, inn)], [spectrum(out, inn)], share)
    if plan.rank is None:
        assert share * out * inn < out + inn
    else:
        assert plan.weight_parameters <= share * out * inn < plan.weight_parameters + out + inn


def test_plans_carry_the_layers_shape() -> None:
    plan = at_rank(layer(48, 96, "x"), spectrum(48, 96), 16, "why")
    assert (plan.layer, plan.out_features, plan.in_features, plan.rank, plan.reason) == ("x", 48, 96, 16, "why")
    assert dense(layer(48, 96, "x"), "because").break_even_rank == plan.break_even_rank == 31
