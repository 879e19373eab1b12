"""The split of the error: it adds up to what samples show, and each part is that of its cause."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from edgepack.quantize.alternate import alternate
from edgepack.quantize.bias import corrected_pair
from edgepack.quantize.error_breakdown import dense_share, latent_noise, split_error
from edgepack.quantize.gptq import gptq, round_to_nearest
from edgepack.quantize.grids import WeightGrid, activation_grid
from edgepack.quantize.rotation import balanced
from tests.quantize.quantize_cases import Case, case


def rounded_pair(one: Case, exact: Replacement, qmax: int, *, method: str) -> Replacement:
    grid = WeightGrid(qmax)
    if method == "nearest":
        A, B = (round_to_nearest(factor, grid).weight for factor in (exact.A, exact.B))
        found = low_rank(A, B, None)
    else:
        found = alternate(one.layer.weight, exact, covariance(one), (grid, grid)).factors(None)
    return corrected_pair(exact, found, one.mean)


def covariance(one: Case) -> Array:
    return np.cov(one.inputs.T, bias=True)


def on_grid(latent: Array) -> tuple[Array, float]:
    scale, zero = activation_grid(float(latent.min()), float(latent.max()))
    return (np.clip(np.rint(latent / scale) + zero, -128, 127) - zero) * scale, scale * 255


def seen_share(one: Case, pair: Replacement, latent: Array) -> float:
    wanted = one.inputs @ one.layer.weight.T.astype(np.float64)
    assert one.layer.bias is not None
    assert pair.bias is not None
    off = latent @ pair.A.T.astype(np.float64) + pair.bias - wanted - one.layer.bias
    return float(np.square(off).sum() / np.square(wanted - wanted.mean(axis=0)).sum())


@pytest.mark.parametrize("method", ["nearest", "alternate"])
@pytest.mark.parametrize("qmax", [127, 7])
@pytest.mark.parametrize("rank", [8, 40])
def test_adds_up_to_what_samples_show(rank: int, qmax: int, method: str) -> None:
    one = case(48, 64, 0)
    exact = balanced(one.factors(rank), one.spectrum, seed=0)
    pair = rounded_pair(one, exact, qmax, method=method)
    floats = one.inputs @ pair.B.T.astype(np.float64)
    latent, span = on_grid(floats)
    parts = (one.layer, exact, pair, covariance(one), one.mean)
    without = split_error(*parts, "float")
    assert without.latent == 0
    assert without.total == pytest.approx(seen_share(one, pair, floats), rel=1e-4)
    found = split_error(*parts, span)
    assert found.total == pytest.approx(seen_share(one, pair, latent), rel=0.02)
    assert found.total == pytest.approx(without.total + found.latent)
    assert found.offset < 1e-9


def test_each_part_is_that_of_its_cause() -> None:
    one = case(48, 64, 1)
    exact = balanced(one.factors(12), one.spectrum, seed=0)
    parts = (covariance(one), one.mean)
    untouched = split_error(one.layer, exact, exact, *parts, "float")
    assert untouched.truncation == pytest.approx(float(one.spectrum.lost_share()[12]), rel=0.05)
    assert untouched.rounding == untouched.cross == 0.0
    shifted = low_rank(exact.A, exact.B, np.zeros(48, np.float32))
    assert split_error(one.layer, exact, shifted, *parts, "float").offset > 0.1
    coarse, fine = (
        split_error(one.layer, exact, rounded_pair(one, exact, n, method="nearest"), *parts, "float") for n in (7, 127)
    )
    assert coarse.truncation == fine.truncation
    assert 100 < coarse.rounding / fine.rounding < 1000


@pytest.mark.parametrize("latent", ["static", "dynamic"])
def test_predicted_range_of_the_latent(latent: str) -> None:
    one = case(48, 64, 2)
    exact = balanced(one.factors(16), one.spectrum, seed=0)
    floats = one.inputs @ exact.B.T.astype(np.float64)
    if latent == "static":
        # On the safe side: 5 deviations each way, where some thousand rows reach 3.6.
        spans = (floats.max() - floats.min()) * 5 / 3.6
        found = latent_noise(exact, covariance(one), one.mean, "static")
    else:
        spans = floats.max(axis=1).clip(min=0) - floats.min(axis=1).clip(max=0)
        found = latent_noise(exact, covariance(one), one.mean, "dynamic")
    assert float(found.mean()) == pytest.approx(float(np.square(spans / 255).mean() / 12), rel=0.5)


def test_dense() -> None:
    one = case(48, 64, 3)
    grid = WeightGrid(7)
    plain = round_to_nearest(one.layer.weight, grid).weight
    better = gptq(one.layer.weight, covariance(one), grid).weight
    shares = [dense_share(one.layer.weight, rounded, covariance(one)) for rounded in (plain, better, one.layer.weight)]
    assert shares[0] > shares[1] > shares[2] == 0.0
    centred = one.inputs - one.mean
    seen = np.square(centred @ (plain - one.layer.weight).T).sum() / np.square(centred @ one.layer.weight.T).sum()
    assert shares[0] == pytest.approx(float(seen), rel=1e-4)
