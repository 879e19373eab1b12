"""Predicted losses of a real model: complete, kept in the cache layer by layer, and in the order of the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgepack.backends.onnx.schemes import FP32, NBITS4, NBITS8, SCHEMES
from edgepack.model.structure import DENSE, low_rank, low_rank_correction
from edgepack.pipeline import losses as losses_module
from edgepack.pipeline.gradients import Sensitivity
from edgepack.pipeline.losses import Losses, factors_at, predict_losses
from edgepack.pipeline.prepare import Prepared
from edgepack.plan.loss import Wanted
from edgepack.workers import Workers, workers
from edgepack.workspace import Cache, Progress, Workspace, silent

RANKS = {"w1": (8, 32, 96), "w2": (8, 64), "w3": ()}
NO_CORRECTIONS: Mapping[str, Sequence[int]] = dict.fromkeys(RANKS, ())


@pytest.fixture(scope="module")
def crew() -> Iterator[Workers]:
    with workers(None) as made:
        yield made


def predicted(
    ready: Prepared,
    cache: Cache,
    crew: Workers,
    *,
    ranks: Mapping[str, Sequence[int]] = RANKS,
    corrections: Mapping[str, Sequence[int]] = NO_CORRECTIONS,
    seed: int = 0,
    progress: Progress = silent,
    **changes: Any,
) -> Losses:
    """`changes` are those of the analysis: its method, its key, or the largest weight code."""
    asked: dict[str, Any] = {"key": "model", "sensitivity": Sensitivity(False, None, dict), **changes}
    wanted = {name: Wanted(SCHEMES, own, corrections[name], (NBITS4,)) for name, own in ranks.items()}
    workspace = Workspace(cache, cache.root, seed, crew, progress)
    return predict_losses(replace(ready.evaluator.analysis, **asked), wanted, workspace)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("losses"))


@pytest.fixture(scope="module")
def found(ready: Prepared, cache: Cache, crew: Workers) -> Losses:
    return predicted(ready, cache, crew)


def test_every_scheme_dense_and_at_every_rank(found: Losses) -> None:
    assert set(found) == set(RANKS)
    for name, ranks in RANKS.items():
        assert set(found[name]) == {(scheme, way) for scheme in SCHEMES for way in (DENSE, *map(low_rank, ranks))}
        assert all(np.isfinite(loss) and loss >= 0 for loss in found[name].values())


def test_the_order_is_that_of_precision_and_rank(found: Losses) -> None:
    for name, ranks in RANKS.items():
        own = found[name]
        assert own[FP32, DENSE] == 0
        for way in (DENSE, *map(low_rank, ranks)):
            assert own[FP32, way] <= own[NBITS8, way] <= own[NBITS4, way]
            assert own[NBITS4, way] > 0
        for scheme in SCHEMES:
            curve = [own[scheme, low_rank(rank)] for rank in ranks]
            assert curve == sorted(curve, reverse=True), f"{name} in {scheme}"
            assert all(loss > own[scheme, DENSE] for loss in curve if scheme.bits > 4)


def test_known_losses_are_read_and_not_computed(
    ready: Prepared, cache: Cache, crew: Workers, found: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses_module, "layer_losses", lambda *_, **__: pytest.fail("computed again"))
    assert predicted(ready, cache, crew) == found


def test_only_the_layers_that_changed_are_computed(ready: Prepared, cache: Cache, crew: Workers, found: Losses) -> None:
    said: list[tuple[int, int]] = []
    ranks = RANKS | {"w2": (8, 64, 72)}
    progress = lambda what, done=0, total=0: said.append((done, total))  # noqa: E731
    other = predicted(ready, cache, crew, ranks=ranks, progress=progress)
    assert said == [(2, 3), (3, 3)]
    assert other["w1"] == found["w1"]
    assert other["w2"][FP32, low_rank(64)] == found["w2"][FP32, low_rank(64)]
    assert (FP32, low_rank(72)) in other["w2"]


@pytest.mark.parametrize("changes", [{"key": "other"}, {"seed": 1}, {"qmax": 63}, {"method": "svd"}])
def test_what_decides_a_loss_is_in_its_key(
    ready: Prepared, cache: Cache, crew: Workers, found: Losses, changes: dict[str, Any]
) -> None:
    said: list[int] = []
    predicted(ready, cache, crew, progress=lambda what, done=0, total=0: said.append(done), **changes)
    assert said == [0, 1, 2, 3]


def test_factors_are_the_layer_in_another_basis(ready: Prepared) -> None:
    layer = ready.evaluator.analysis.views[0]
    spectrum = ready.evaluator.spectra[layer.name]
    made = factors_at(layer, spectrum, 64, "whitened", 0)
    plain = spectrum.basis[:, :64] @ (spectrum.basis[:, :64].T @ layer.weight)
    np.testing.assert_allclose(made.A @ made.B, plain, atol=1e-3 * np.abs(plain).max())
    again = factors_at(layer, spectrum, 64, "whitened", 0)
    np.testing.assert_array_equal(made.A, again.A)


def test_a_build_offers_them(ready: Prepared) -> None:
    by_name = {
        layer_candidates.layer.name: layer_candidates.candidates for layer_candidates in ready.all_candidates["onnx"]
    }
    assert {one.loss for one in by_name["w1"] if (one.scheme, one.structure) == (FP32, DENSE)} == {0.0}
    assert all(one.loss > 0 for one in by_name["w1"] if one.structure.ranks)


def test_a_pair_beside_the_dense_matrix_is_between_it_and_eight_bits(
    ready: Prepared, cache: Cache, crew: Workers, found: Losses
) -> None:
    other = predicted(ready, cache, crew, corrections={"w1": (8, 16), "w2": (16,), "w3": ()})
    assert other["w3"] == found["w3"]
    for name, rank in (("w1", 8), ("w1", 16), ("w2", 16)):
        own = other[name]
        assert own[NBITS8, DENSE] < own[NBITS4, low_rank_correction(rank)] < own[NBITS4, DENSE]
        assert {scheme for scheme, way in own if way.is_correction} == {NBITS4}
    assert other["w1"][NBITS4, low_rank_correction(16)] < other["w1"][NBITS4, low_rank_correction(8)]
