"""Layers on one input with one B: the fit, what it is predicted to lose, the choice, and the pack that says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, WEIGHTS8
from edgepack.factorize import whitened
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.kinds import views_of
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.layer import View
from edgepack.model.scheme import FileScheme
from edgepack.model.statistics import moments
from edgepack.model.types import Array
from edgepack.pack.facts import read_facts
from edgepack.pack.manifest import read_manifest
from edgepack.pipeline.build import build
from edgepack.pipeline.candidates import LayerCandidates
from edgepack.pipeline.explore import explore
from edgepack.pipeline.limits import Rest
from edgepack.pipeline.pareto import Step, corners, make_front
from edgepack.pipeline.prepare import Prepared, prepared
from edgepack.pipeline.search import plan_trial, with_dense
from edgepack.pipeline.shared_input import Group, Member
from edgepack.plan.solve import Bounds, Infeasible
from edgepack.quantize.grids import quantize_matrix
from edgepack.report.build import layer_table
from edgepack.report.render.markdown import render
from edgepack.report.report import Report
from edgepack.workspace import Cache, silent
from tests.pipeline.small_attention import LAYERS, WIDTH, write_attention
from tests.pipeline.small_builds import options

BESIDE = Rest(0, 0, 0.0)
IN = 24


def group(scales: tuple[float, ...], seed: int = 0) -> tuple[Group, Array]:
    """Layers of 16, 12 and 20 outputs on one input, and the covariance of that."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(500, IN)) * np.geomspace(1, 0.05, IN) @ rng.normal(size=(IN, IN))
    seen = moments([{"x": (x + 1).astype(np.float32)}])["x"]
    rows = (16, 12, 20)[: len(scales)]
    weights = [rng.normal(size=(out, IN)).astype(np.float32) for out in rows]
    layers = [linear_layer(f"l{i}", weight, weight[:, 0].copy()) for i, weight in enumerate(weights)]
    spectra = [whitened.spectrum(replace(view, moments=seen)) for view in views_of(layers)]
    members = tuple(Member(layer, own, {}, ()) for layer, own in zip(layers, spectra, strict=True))
    weight, bias = (
        np.concatenate([part * np.float32(scale) for part, scale in zip(parts, scales, strict=True)])
        for parts in (weights, [layer.bias for layer in layers])
    )
    stack = View("stack", weight, bias, seen)
    return Group(members, scales, stack, whitened.spectrum(stack)), shrunk_covariance(seen)


def energy(matrix: Array, covariance: Array) -> float:
    return float(np.trace(matrix.astype(np.float64) @ covariance @ matrix.T))


scales_ = st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]), min_size=2, max_size=3).map(tuple)


@settings(max_examples=30, deadline=None)
@given(scales_, st.integers(1, IN), st.integers(0, 99))
def test_lost_shares_are_those_of_the_factors(scales: tuple[float, ...], rank: int, seed: int) -> None:
    found, covariance = group(scales, seed)
    parts = found.parts(whitened.factors(found.view, found.spectrum, rank))
    assert len({id(part.B) for part in parts.values()}) == 1
    for member, share in zip(found.members, found.lost_shares(rank), strict=True):
        part, weight = parts[member.layer.name], member.layer.weight
        whole = energy(weight, covariance)
        assert share == pytest.approx(energy(weight - part.A @ part.B, covariance) / whole, abs=1e-4)
        assert part.structure.is_shared
        assert part.bias is not None
        mean = found.view.moments.mean  # type: ignore[union-attr]
        wanted = weight @ mean + member.layer.bias
        np.testing.assert_allclose(part.A @ (part.B @ mean) + part.bias, wanted, rtol=1e-3, atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(scales_, st.integers(1, 12), st.integers(0, 99))
def test_no_other_b_loses_less_of_the_stack(scales: tuple[float, ...], rank: int, seed: int) -> None:
    """Against the B of each layer by itself, and others near the best one, with the best A of each."""
    found, covariance = group(scales, seed)
    weights = [m.layer.weight.astype(np.float64) * scale for m, scale in zip(found.members, scales, strict=True)]

    def lost(B: Array) -> float:
        inner = np.linalg.pinv(B @ covariance @ B.T)
        return sum(energy(W - W @ covariance @ B.T @ inner @ B, covariance) for W in weights)

    best = whitened.factors(found.view, found.spectrum, rank).B.astype(np.float64)
    own = [
        whitened.factors(replace(view, moments=found.view.moments), member.spectrum, min(rank, len(view.weight))).B
        for view, member in zip(views_of(m.layer for m in found.members), found.members, strict=True)
    ]
    noise = np.random.default_rng(seed).normal(size=(5, *best.shape)) * np.abs(best).max() / 20
    assert all(lost(best) <= lost(other) * (1 + 1e-5) + 1e-9 for other in [*own, *(best + noise)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_attention(tmp_path_factory.mktemp("attention"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


def asked(model: Path, **changes: Any) -> Any:
    return options(model, **{"max_drop": 2.0, "optimize": "size", "precision": "int8", **changes})


@pytest.fixture(scope="module")
def ready(model: Path, cache: Cache) -> Iterator[Prepared]:
    with prepared(asked(model), cache, silent) as found:
        yield found


def front(ready: Prepared, all_candidates: tuple[LayerCandidates, ...]) -> tuple[Step, ...]:
    found = make_front(all_candidates, ready.evaluator.spectra, Bounds(), BESIDE, aim="size")
    assert not isinstance(found, Infeasible)
    return found


def test_layers_that_read_one_value_are_a_group(ready: Prepared) -> None:
    shared = [
        layer_candidates.shared
        for layer_candidates in ready.all_candidates["onnx"]
        if layer_candidates.shared is not None
    ]
    assert [one.layers for one in shared] == [LAYERS]
    for way in shared[0].ways:
        first, *others = way.candidates
        rank = first.structure.rank
        assert [op.role for op in first.ops] == ["B", "A"]
        assert all([op.role for op in other.ops] == ["A"] for other in others)
        assert rank is not None
        assert sum(op.weights for one in way.candidates for op in one.ops) == rank * 4 * WIDTH
        assert all(other.latency_s < first.latency_s for other in others)


def test_predicted_losses_fall_with_the_rank_and_come_near_those_of_single_ones(ready: Prepared) -> None:
    """At a rank that loses the same share of a layer, with one B or its own, as much is predicted."""
    layer_candidates = next(
        layer_candidates for layer_candidates in ready.all_candidates["onnx"] if layer_candidates.shared is not None
    )
    assert layer_candidates.shared is not None
    ways = [way for way in layer_candidates.shared.ways if way.candidates[0].scheme == WEIGHTS8]
    losses = [sum(one.loss for one in way.candidates) for way in ways]
    assert losses == sorted(losses, reverse=True)
    lost = ready.evaluator.spectra[layer_candidates.layer.name].lost_share()
    own = {
        one.structure.rank: one.loss
        for one in layer_candidates.candidates
        if one.scheme == WEIGHTS8 and one.structure.ranks
    }
    for way in ways:
        near = min(own, key=lambda rank: abs(float(lost[rank or 0]) - way.lost[0]))
        if abs(float(lost[near or 0]) - way.lost[0]) < 0.1 * way.lost[0]:
            assert way.candidates[0].loss == pytest.approx(own[near], rel=0.25)


def test_plans_add_up_and_are_smaller_for_it(ready: Prepared) -> None:
    all_candidates = ready.all_candidates["onnx"]
    steps = front(ready, all_candidates)
    single = front(ready, tuple(replace(layer_candidates, shared=None) for layer_candidates in all_candidates))
    assert any(plan.shares for step in steps for plan in step.layers)
    for step in steps:
        predicted = [plan.predicted for plan in step.layers]
        for figure in ("loss", "size_bytes", "ram_bytes", "latency_s"):
            total = sum(getattr(one, figure) for one in predicted)
            assert total == pytest.approx(getattr(step, figure), rel=1e-9)
        corner = corners(all_candidates, step.layers, Bounds(), BESIDE, "size")[0]
        assert corner.size_bytes == step.size_bytes
    limits = np.geomspace(0.0007, 0.05, 8)
    sizes, alone = (
        [min(s.size_bytes for s in found if s.loss <= limit) for limit in limits] for found in (steps, single)
    )
    assert sum(sizes) < 0.85 * sum(alone)


def sharing(ready: Prepared) -> Step:
    return next(step for step in front(ready, ready.all_candidates["onnx"]) if any(plan.shares for plan in step.layers))


@pytest.mark.parametrize("scheme", [FP32, INT8_DYNAMIC], ids=str)
def test_factors_lie_on_their_grids_with_one_b(ready: Prepared, scheme: Any) -> None:
    step = sharing(ready)
    plan = tuple(replace(layer, scheme=scheme) for layer in step.layers)
    for make in (ready.evaluator.replacements.factors, ready.evaluator.replacements.draft):
        made = make(plan, FileScheme.of(scheme))
        assert len({made[name].B.tobytes() for name in LAYERS}) == 1
        for name in LAYERS if scheme == INT8_DYNAMIC else ():
            for matrix in made[name].tensors.values():
                codes, scales = quantize_matrix(matrix, qmax=ready.evaluator.analysis.qmax)
                steps = scales[:, None] if scales.ndim else scales
                np.testing.assert_allclose(codes * steps, matrix, rtol=1e-6, atol=1e-9)


def test_a_probe_of_a_plan_with_one_b(ready: Prepared) -> None:
    found = plan_trial(ready.evaluator, ready.files["onnx"], sharing(ready))
    assert found.drop.value < 5


def test_layers_with_one_b_are_dense_together(ready: Prepared) -> None:
    layers = sharing(ready).layers
    dense = with_dense(layers, {LAYERS[1]: "no room"}, FileScheme.of(WEIGHTS8))
    own = [layer for layer in dense if layer.layer in LAYERS]
    assert all(layer.structure.is_dense and not layer.shares and "no room" in layer.reason for layer in own)
    assert with_dense(dense, {LAYERS[1]: "no room"}, FileScheme.of(WEIGHTS8)) == dense


def test_layers_that_are_kept_or_have_an_asked_rank_do_not_share(model: Path, cache: Cache) -> None:
    for changes in ({"keep": LAYERS[0], "precision": "int8"}, {"rank": 0.25}, {"refit": True}):
        with prepared(asked(model, **changes), cache, silent) as ready:
            groups = [
                layer_candidates.shared.layers
                for layer_candidates in ready.all_candidates["onnx"]
                if layer_candidates.shared is not None
            ]
            assert groups == ([LAYERS[1:]] if "keep" in changes else [])


def test_a_pack_says_who_shares(model: Path, cache: Cache, tmp_path: Path) -> None:
    build(asked(model, out=tmp_path / "pack"), cache=cache)
    manifest = read_manifest(tmp_path / "pack")
    entry = manifest.files["model.onnx"]
    layers = {layer.layer: layer for layer in entry.layers}
    assert {layers[name].shares for name in LAYERS} == {LAYERS}
    assert {layers[name].structure for name in LAYERS} == {"shared-input"}
    rank = layers[LAYERS[0]].rank
    assert rank is not None
    assert [layers[name].weight_parameters for name in LAYERS] == [2 * rank * WIDTH, rank * WIDTH, rank * WIDTH]
    assert layers[LAYERS[1]].reason.startswith(f"its B is also that of {LAYERS[0]} and {LAYERS[2]}; rank {rank} shared")
    assert all(proof.passed for proof in entry.proofs.values())
    assert manifest.warnings == ()
    shapes = read_facts(tmp_path / "pack").layer_shapes("edgepack", "onnx")
    assert [shape.products for shape in shapes[:3]] == [(), ((WIDTH, rank),), ((WIDTH, rank),)]
    assert f"{rank} shared" in render(Report(blocks=(layer_table(entry.layers, "model.onnx"),)))
    text = json.loads((tmp_path / "pack" / "manifest.json").read_text())
    assert text["files"]["model.onnx"]["layers"][0]["shares"] == list(LAYERS)


def test_plans_are_explored_with_it(model: Path, cache: Cache) -> None:
    rows = explore(asked(model, precision="auto", optimize="balanced"), cache=cache).rows
    assert len(rows) > 3
