"""JPEG on weights: the image fits its bytes, and the layer is what both ends read out of it."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.factorize.leastsquares import metric
from edgepack.methods import mosaic
from edgepack.methods.jpeg import at_quality, jpeg
from edgepack.model.replacement import Replacement
from edgepack.quantize.gptq import output_energy
from edgepack.quantize.grids import quantize_weight
from tests.factorize.layers import inputs, layer, seen, weight


@pytest.mark.parametrize("quality", [1, 20, 95])
def test_weight_lies_on_the_grid_of_the_decoded_codes(quality: int) -> None:
    made, data = at_quality(layer(weight(40, 48, 1), None, seen(inputs(99, 48, 1))), quality)
    codes = mosaic.decode(data, (40, 48))
    assert np.array_equal(quantize_weight(made.weight)[0], codes)
    assert set(np.abs(codes.astype(int)).max(axis=1)) <= {0, 127}  # nothing is left of some rows at quality 1


def test_scales_are_those_of_least_squares() -> None:
    x = inputs(99, 48, 1)
    w = weight(40, 48, 1)
    for given_layer in (layer(w), layer(w, None, seen(x))):
        made, _ = at_quality(given_layer, 30)
        covariance = metric(given_layer)
        least = output_energy(w - made.weight, covariance)
        for factor in (0.99, 1.01):
            assert output_energy(w - factor * made.weight, covariance) > least
    assert made.bias is not None
    mean = x.astype(np.float64).mean(axis=0)
    assert np.allclose(made.weight @ mean + made.bias, w @ mean, atol=1e-4)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_highest_quality_that_fits_is_taken(share: float) -> None:
    given_layer = layer(weight(64, 144, 2))
    made = jpeg(given_layer, share)
    assert isinstance(made, Replacement)
    assert made.structure.is_dense
    sizes = {quality: len(at_quality(given_layer, quality)[1]) for quality in range(1, 96)}
    best = max(quality for quality, size in sizes.items() if size <= share * 64 * 144)
    expected, data = at_quality(given_layer, best)
    assert np.array_equal(made.weight, expected.weight)
    assert len(data) >= 0.85 * share * 64 * 144


def test_better_quality_is_more_bytes_and_less_loss() -> None:
    w = weight(64, 144, 2)
    made = [at_quality(layer(w), quality) for quality in (5, 30, 95)]
    sizes = [len(data) for _, data in made]
    losses = [output_energy(w - part.weight, None) for part, _ in made]
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.02 * output_energy(w, None)


def test_rows_of_zeros_vanish_and_few_bytes_are_a_reason() -> None:
    w = weight(20, 36, 3)
    w[4] = 0
    made, data = at_quality(layer(w), 40)
    assert np.abs(made.weight[4]).max() < 1e-20
    assert np.array_equal(quantize_weight(made.weight)[0], mosaic.decode(data, w.shape))
    assert "too few" in str(jpeg(layer(w), 0.01))
    nothing, _ = at_quality(layer(np.zeros_like(w)), 40)
    assert not nothing.weight.any()


def test_a_weight_larger_than_an_image_stays() -> None:
    assert "pixels" in str(jpeg(layer(np.zeros((1, 65_521), np.float32)), 0.5))
