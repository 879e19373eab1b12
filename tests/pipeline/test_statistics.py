"""Spectra and the cache: computed once, and whole again where an entry is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgepack.cache import Cache
from edgepack.data import Samples
from edgepack.onnxgraph.sites import find_sites
from edgepack.pipeline.statistics import decompose
from edgepack.progress import silent
from edgepack.types import LinearLayer, Spectrum

RNG = np.random.default_rng(0)
SAMPLES = Samples({"x": (RNG.normal(size=(50, 6)) * np.arange(1, 7)).astype(np.float32)})


@pytest.fixture
def model() -> ir.Model:
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
    return made


def layers(model: ir.Model) -> tuple[LinearLayer, ...]:
    return tuple(site.layer for site in find_sites(model))


def run(
    model: ir.Model, cache: Cache, method: str = "whitened", samples: Samples | None = SAMPLES
) -> tuple[tuple[Spectrum, ...], tuple[str, ...]]:
    return decompose(model, layers(model), method, samples, "key", cache, silent)


def assert_same(first: tuple[Spectrum, ...], second: tuple[Spectrum, ...]) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.basis, b.basis)
        np.testing.assert_array_equal(a.energies, b.energies)
        np.testing.assert_array_equal(a.mean, b.mean)


def test_second_run_reads_the_cache(model: ir.Model, tmp_path: Path) -> None:
    first, unobserved = run(model, Cache(tmp_path))
    assert unobserved == ()
    again = Cache(tmp_path)
    assert_same(run(model, again)[0], first)
    assert again.hits == ["spectra", "spectra"]


@pytest.mark.parametrize("damaged", [slice(0, 1), slice(0, 2)])
def test_damaged_entries_are_whitened_again(model: ir.Model, tmp_path: Path, damaged: slice) -> None:
    first, _ = run(model, Cache(tmp_path))
    for path in sorted(tmp_path.rglob("*.npz"))[damaged]:
        path.write_bytes(path.read_bytes()[:20])
    for _ in range(2):
        found, unobserved = run(model, Cache(tmp_path))
        assert unobserved == ()
        assert_same(found, first)


def test_methods_and_layers_do_not_share_entries(model: ir.Model, tmp_path: Path) -> None:
    whitened, _ = run(model, Cache(tmp_path))
    plain, _ = run(model, Cache(tmp_path), "svd", None)
    assert len(list(tmp_path.rglob("*.npz"))) == 4
    assert all(spectrum.mean is None for spectrum in plain)
    assert all(spectrum.mean is not None for spectrum in whitened)


def test_inputs_that_never_vary_fall_back_to_svd_and_are_named(model: ir.Model, tmp_path: Path) -> None:
    constant = Samples({"x": np.ones((20, 6), np.float32)})
    found, unobserved = run(model, Cache(tmp_path), samples=constant)
    assert unobserved == tuple(layer.name for layer in layers(model))
    assert all(spectrum.mean is None for spectrum in found)
