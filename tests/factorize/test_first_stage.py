"""Kernels taken apart: what a first stage and the layer behind it come to, and what they lose."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.factorize import svd
from edgepack.factorize.first_stage import Patches, behind, first_stage, patches_of
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.kinds.conv import ConvGeometry, conv_layer
from edgepack.model.kinds.stages import composed, put_in_front, taken_first
from edgepack.model.layer import WEIGHT, Array, Layer, View
from edgepack.model.replacement import dense
from edgepack.model.statistics import moments
from edgepack.model.structure import DENSE, Structure, low_rank
from edgepack.pipeline.stages import StageFit

GEOMETRY = ConvGeometry("Conv", (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
OUT, IN = 20, 16


def layer_of(kernel: Array) -> Layer:
    return conv_layer("conv", kernel.astype(np.float32), np.zeros(len(kernel), np.float32), GEOMETRY)


def seen(layer: Layer, seed: int = 0) -> View:
    """With moments of smooth images, whose neighbours are alike."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(40, 10, 10, IN)).cumsum(axis=1) + rng.normal(size=(40, 10, 10, IN)).cumsum(axis=2) + 1
    images = (images @ rng.normal(size=(IN, IN)) * np.geomspace(1, 0.1, IN)).astype(np.float32)
    rows = kind_of(layer).rows(layer, WEIGHT)(images)
    (view,) = views_of([layer])
    return View(view.name, view.weight, view.bias, moments([{"x": rows}])["x"], view.kernel)


def random_kernel(seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(OUT, IN, 3, 3))


def fit_of(view: View) -> StageFit:
    plain = View(view.name, view.weight, view.bias, kernel=view.kernel)
    return StageFit(plain, svd.spectrum(plain), view.moments, "whitened", None, 0)


def energy(error: Array, covariance: Array) -> float:
    return float(np.einsum("ij,ij->", error @ covariance, error))


@pytest.mark.parametrize("structure", [Structure("spatial-svd", (7,)), Structure("input-svd", (5,))], ids=str)
def test_what_stands_behind_a_first_stage_is_the_best_there_is(structure: Structure) -> None:
    view = seen(layer_of(random_kernel()))
    fit = fit_of(view)
    first = fit.first(structure)
    rest = fit.behind(structure, first)
    patches = patches_of(view.moments, view.in_features)

    def lost(weight: Array) -> float:
        whole = composed(put_in_front(structure, first, dense(weight, None)))
        return energy(view.weight - whole, patches.covariance)

    least = lost(rest.view.weight)
    assert np.trace(rest.lost) == pytest.approx(least, rel=1e-3)
    rng = np.random.default_rng(3)
    for _ in range(5):
        assert lost(rest.view.weight + 1e-2 * rng.normal(size=rest.view.weight.shape).astype(np.float32)) > least
    assert rest.view.bias is not None
    whole = composed(put_in_front(structure, first, dense(rest.view.weight, None)))
    mean = (view.weight - whole) @ patches.mean
    np.testing.assert_allclose(rest.view.bias, mean, rtol=1e-3, atol=1e-3 * np.abs(mean).max())


def test_whitening_a_first_stage_loses_less_than_doing_without() -> None:
    view = seen(layer_of(random_kernel()))
    patches = patches_of(view.moments, view.in_features)
    white = Patches(np.eye(view.in_features), patches.mean, patches.count)
    for axes, rank in ((slice(1), 6), (slice(0), 4)):
        found = [first_stage(view.weight, view.kernel, axes, rank, one, seed=0) for one in (patches, white)]
        lost = [np.trace(behind(view, patches, first, axes).lost) for first in found]
        assert lost[0] < 0.9 * lost[1]


@pytest.mark.parametrize(
    ("structure", "kernel"),
    [
        (Structure("spatial-svd", (4,)), np.einsum("orw,rih->oihw", *(
            np.random.default_rng(s).normal(size=shape) for s, shape in ((0, (OUT, 4, 3)), (1, (4, IN, 3)))
        ))),
        (Structure("input-svd", (4,)), np.einsum("orhw,ri->oihw", *(
            np.random.default_rng(s).normal(size=shape) for s, shape in ((0, (OUT, 4, 3, 3)), (1, (4, IN)))
        ))),
    ],
    ids=lambda value: str(value) if isinstance(value, Structure) else "",
)  # fmt: skip
def test_a_kernel_of_that_rank_is_found_again(structure: Structure, kernel: Array) -> None:
    fit = fit_of(seen(layer_of(kernel)))
    rest = fit.behind(structure, fit.first(structure))
    assert np.trace(rest.lost) < 1e-6 * energy(fit.layer.weight, fit.patches.covariance)
    (fewer,) = (Structure(structure.name, (3,)),)
    assert np.trace(fit.behind(fewer, fit.first(fewer)).lost) > 1e-3 * energy(fit.layer.weight, fit.patches.covariance)


def test_tucker_2_needs_fewer_multiplications_than_channel_svd_where_both_sides_are_low_rank() -> None:
    rng = np.random.default_rng(4)
    sides, core = (rng.normal(size=(size, 5)) for size in (OUT, IN)), rng.normal(size=(5, 5, 3, 3))
    outer, inner = sides
    layer = layer_of(np.einsum("oa,abhw,ib->oihw", outer, core, inner))
    view = seen(layer)
    fit, kind = fit_of(view), kind_of(layer)
    whole = energy(view.weight, fit.patches.covariance)
    tucker, channel = Structure("tucker-2", (5, 5)), low_rank(5)
    rest = fit.behind(tucker, fit.first(tucker))
    spectrum = fit.decomposed(rest, low_rank(5))
    assert np.trace(rest.lost) + spectrum.energies[5:].sum() < 1e-6 * whole
    macs = {one: sum(op.macs for op in kind.ops(layer, one, 100)) for one in (DENSE, channel, tucker)}
    assert macs[tucker] < 0.5 * macs[channel] < 0.25 * macs[DENSE]
    four = Structure("tucker-2", (4, 5))
    assert np.trace(fit.behind(four, fit.first(four)).lost) > 1e-3 * whole, "one component less is missed"


def test_axes_of_first_stages() -> None:
    kernel = (3, 5)
    assert kernel[taken_first(Structure("spatial-svd", (1,)))] == (3,)
    assert kernel[taken_first(Structure("input-svd", (1,)))] == ()
    assert kernel[taken_first(Structure("tucker-2", (1, 1)))] == ()
