"""Spectra and the cache: computed once, and whole again where an entry is damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgepack.backends.onnx.file import input_specs
from edgepack.backends.onnx.observation import OnnxObservation
from edgepack.backends.onnx.sites import find_sites
from edgepack.data import Samples
from edgepack.model import statistics
from edgepack.model.kinds import views_of
from edgepack.model.layer import View
from edgepack.model.model import Model
from edgepack.model.statistics import Sums
from edgepack.model.types import Spectrum
from edgepack.pipeline import activations
from edgepack.pipeline.activations import Subject, _cut, observe
from edgepack.pipeline.decompositions import decompose
from edgepack.workers import Workers, local, workers
from edgepack.workspace import Cache, Progress, Workspace, silent

RNG = np.random.default_rng(0)
SAMPLES = Samples({"x": (RNG.normal(size=(50, 6)) * np.arange(1, 7)).astype(np.float32)})


def opened(graph: ir.Model) -> Model:
    """The graph as a build opens it."""
    layers = tuple(site.layer for site in find_sites(graph.clone()))
    return Model("net", "onnx", "0" * 64, "onnx", graph, input_specs(graph), layers, {}, None, None)


@pytest.fixture
def model() -> Model:
    text = """<ir_version: 9, opset_import: ["" : 17]>
    net (float[1, 6] x) => (float[1, 4] y) {
        h = MatMul(x, w1)
        y = MatMul(h, w2)
    }"""
    made = ir.from_onnx_text(text)
    for name, shape in (("w1", (6, 5)), ("w2", (5, 4))):
        array = np.random.default_rng(len(name) + shape[0]).normal(size=shape).astype(np.float32)
        value = next(v for node in made.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        made.graph.register_initializer(value)
    return opened(made)


def layers(model: Model) -> tuple[View, ...]:
    return views_of(model.layers)


def run(
    model: Model,
    cache: Cache,
    method: str = "whitened",
    samples: Samples | None = SAMPLES,
    progress: Progress = silent,
    executor: Workers | None = None,
) -> tuple[tuple[Spectrum, ...], tuple[str, ...]]:
    workspace = Workspace(cache, cache.root, workers=executor, progress=progress)
    return decompose(Subject(model, samples, "key"), method, workspace)


def assert_same(first: tuple[Spectrum, ...], second: tuple[Spectrum, ...]) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.basis, b.basis)
        np.testing.assert_array_equal(a.energies, b.energies)
        np.testing.assert_array_equal(a.mean, b.mean)
        assert (a.inputs is None) == (b.inputs is None)
        if a.inputs is not None and b.inputs is not None:
            np.testing.assert_array_equal(a.inputs.variance, b.inputs.variance)
            assert replace(a.inputs, variance=b.inputs.variance) == b.inputs


def test_second_run_reads_the_cache(model: Model, tmp_path: Path) -> None:
    first, unobserved = run(model, Cache(tmp_path))
    assert unobserved == ()
    again = Cache(tmp_path)
    assert_same(run(model, again)[0], first)
    assert again.hits == ["spectra", "spectra"]


@pytest.mark.parametrize("damaged", [slice(0, 1), slice(0, 2)])
def test_damaged_entries_are_whitened_again(model: Model, tmp_path: Path, damaged: slice) -> None:
    first, _ = run(model, Cache(tmp_path))
    for path in sorted((tmp_path / "spectra").rglob("*.npz"))[damaged]:
        path.write_bytes(path.read_bytes()[:20])
    for _ in range(2):
        found, unobserved = run(model, Cache(tmp_path))
        assert unobserved == ()
        assert_same(found, first)


def test_methods_and_layers_do_not_share_entries(model: Model, tmp_path: Path) -> None:
    whitened, _ = run(model, Cache(tmp_path))
    plain, _ = run(model, Cache(tmp_path), "svd", None)
    assert len(list((tmp_path / "spectra").rglob("*.npz"))) == 4
    assert all(spectrum.mean is None for spectrum in plain)
    assert all(spectrum.mean is not None for spectrum in whitened)


def test_what_weighs_a_spectrum_is_part_of_its_key_and_its_dual_is_kept(model: Model, tmp_path: Path) -> None:
    first, _ = layers(model)
    moment = np.cov(RNG.normal(size=(first.out_features, 9)))
    found = [
        decompose(
            Subject(model, SAMPLES, "key"),
            "two-sided",
            Workspace(Cache(tmp_path), tmp_path),
            gradients={first.name: scale * moment + np.eye(len(moment))},
        )[0]
        for scale in (1.0, 1.0, 5.0)
    ]
    assert_same(found[0], found[1])
    for spectra in found:
        dual = spectra[0].dual
        assert dual is not None
        np.testing.assert_allclose(dual.T @ spectra[0].basis, np.eye(dual.shape[1]), atol=1e-4)
    np.testing.assert_array_equal(found[0][0].dual, found[1][0].dual)
    assert not np.allclose(found[0][0].basis, found[2][0].basis)
    plain, _ = run(model, Cache(tmp_path / "whitened"))
    assert found[0][1].dual is None  # no gradient reaches it: whitened
    np.testing.assert_array_equal(found[0][1].basis, plain[1].basis)


def test_inputs_that_never_vary_fall_back_to_svd_and_are_named(model: Model, tmp_path: Path) -> None:
    constant = Samples({"x": np.ones((20, 6), np.float32)})
    found, unobserved = run(model, Cache(tmp_path), samples=constant)
    assert unobserved == tuple(layer.name for layer in layers(model))
    assert all(spectrum.mean is None for spectrum in found)
    assert all(spectrum.inputs is not None and not spectrum.inputs.variance.any() for spectrum in found)


def test_the_spread_of_the_inputs_is_kept_with_the_spectrum(model: Model, tmp_path: Path) -> None:
    x = SAMPLES.inputs["x"].astype(np.float64)
    for _ in range(2):
        inputs = run(model, Cache(tmp_path))[0][0].inputs
        assert inputs is not None
        np.testing.assert_allclose(inputs.variance, x.var(axis=0), rtol=1e-10)
        assert (inputs.low, inputs.high) == (x.min(), x.max())
        spans = np.maximum(x.max(axis=1), 0) - np.minimum(x.min(axis=1), 0)
        assert inputs.row_range == pytest.approx(np.sqrt(np.mean(spans**2)))
    plain, _ = run(model, Cache(tmp_path), "svd")
    assert plain[0].inputs is None


def test_an_interrupt_loses_only_what_runs(model: Model, tmp_path: Path) -> None:
    """The first spectrum is in the cache as soon as it is there."""

    def stop(stage: str, done: int = 0, total: int = 0) -> None:
        if (stage, done) == ("factorize", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, Cache(tmp_path), progress=stop)
    seen: list[tuple[str, int, int]] = []
    again = Cache(tmp_path)
    run(model, again, progress=lambda stage, done=0, total=0: seen.append((stage, done, total)))
    assert again.hits == ["spectra"]
    assert [step for step in seen if step[0] == "factorize"] == [("factorize", 1, 2), ("factorize", 2, 2)]


def test_local_processes_give_the_same_bits(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the samples, and layers, in processes of their own; the parts are the same here."""
    monkeypatch.setattr("edgepack.pipeline.activations.PART_ROWS", 10)
    cut: list[int] = []
    merge = statistics.merged

    def counted(parts: Iterable[dict[str, Sums]]) -> Iterator[dict[str, Sums]]:
        for part in parts:
            cut.append(1)
            yield part

    monkeypatch.setattr(activations, "merged", lambda parts: merge(counted(parts)))
    here, _ = run(model, Cache(tmp_path / "here"))
    assert sum(cut) == 5
    for name in ("START_S", "SEND_S"):
        monkeypatch.setattr(local, name, -1.0)
    with workers() as executor:
        executor.slots = 2
        there, _ = run(model, Cache(tmp_path / "there"), executor=executor)
        assert isinstance(executor, local.LocalProcesses)
        assert executor.processes
    assert sum(cut) == 10
    assert_same(here, there)


def test_parts_hold_whole_runs_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is not full is filled up: only the last one may be."""
    monkeypatch.setattr("edgepack.pipeline.activations.PART_ROWS", 7)
    weight = ", ".join(str(i % 7) for i in range(30))
    made = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["" : 17]> net (float[4, 6] x) => (float[4, 5] y) '
        f"<float[6, 5] w = {{{weight}}}> {{ y = MatMul(x, w) }}"
    )
    model = opened(made)
    (layer,) = model.layers
    observation = OnnxObservation(made, [layer.name])
    cut = _cut(observation, SAMPLES)
    assert [len(part) for part in cut.parts[:-1]] == [8] * (len(cut.parts) - 1)
    assert cut.runs == 13
    found = observe(model, [layer.name], SAMPLES, Workspace(Cache(tmp_path), tmp_path))
    assert [moments.count for moments in found.values()] == [52]
