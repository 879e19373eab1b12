"""What every native keeps: found by the names that a model can have, so that a new one is held to all of it at once."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from edgepack.backends.observation import joined
from edgepack.backends.runtime import predict
from edgepack.data import Samples
from edgepack.errors import LayerError, ModelError
from edgepack.model.constexpr import plain
from edgepack.model.model import Model, NativeName
from edgepack.model.replacement import Replacement, dense, low_rank, low_rank_correction
from edgepack.model.scheme import Format
from edgepack.natives import native
from edgepack.sources import open_model
from tests.backends.tflite.given_files import mlp
from tests.contracts.conftest import answers, content_of, vectors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

NATIVES: tuple[NativeName, ...] = get_args(NativeName)
FORMATS: Mapping[NativeName, tuple[Format, ...]] = {"onnx": ("onnx", "tflite"), "torch": ("tflite",), "tflite": ()}
"""Formats of which a recipe is opened in a native; none where no recipe becomes one, but a file of the same weights."""
RANK = 6
by_native = pytest.mark.parametrize("name", NATIVES)


@pytest.fixture(scope="module")
def models(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[NativeName, Model]:
    spec = f"{recipe_file}:recipe"
    found = {
        name: open_model(spec, tmp_path_factory.mktemp(name), formats) for name, formats in FORMATS.items() if formats
    }
    folder = tmp_path_factory.mktemp("tflite")
    weights = [(layer.weight, layer.bias) for layer in found["onnx"].layers if layer.bias is not None]
    mlp(weights).save(folder / "tiny_mlp.tflite")
    return found | {"tflite": open_model(str(folder / "tiny_mlp.tflite"), folder)}


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Samples({"pixels": vectors(16, 2)})


def replacements(model: Model) -> dict[str, dict[str, Replacement]]:
    """Of the first and the last layer, in every structure, with other biases than their own."""
    found: dict[str, dict[str, Replacement]] = {}
    for layer in (model.layers[0], model.layers[-1]):
        assert layer.bias is not None
        bias, base = layer.bias + np.float32(0.05), np.rint(20 * layer.weight) / np.float32(20)
        u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
        A, B = (u[:, :RANK] * s[:RANK]).astype(np.float32), v[:RANK].astype(np.float32)
        found.setdefault("low-rank", {})[layer.name] = low_rank(A, B, bias)
        found.setdefault("low-rank-correction", {})[layer.name] = low_rank_correction(A, B, bias, base)
        found.setdefault("constexpr", {})[layer.name] = plain(base, bias)
        found.setdefault("dense", {})[layer.name] = dense(base, bias)
    return found


def weights(part: Replacement) -> Replacement:
    """As numpy multiplies by it."""
    if part.structure.ranks:
        return part
    zeros = np.zeros((len(part.weight), 1), np.float32)
    return low_rank_correction(zeros, np.zeros((1, part.weight.shape[1]), np.float32), part.bias, part.weight)


@by_native
def test_it_is_found_by_its_name(name: NativeName, models: dict[NativeName, Model]) -> None:
    assert set(FORMATS) == set(NATIVES), "say in FORMATS of which formats a model is opened in a new native"
    assert native(name) is native(name)
    assert models[name].native == name


@by_native
def test_it_answers_as_the_model(name: NativeName, models: dict[NativeName, Model], samples: Samples) -> None:
    model = models[name]
    for threads in (1, 2):
        session = native(name).session(model.content, {}, threads=threads)
        assert session.inputs == model.inputs
        wanted = answers(model.layers, samples.inputs["pixels"])
        np.testing.assert_allclose(predict(session, samples), wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError):
        session.run({"pixels": np.zeros((1, 63), np.float32)})


@by_native
@pytest.mark.parametrize("structure", ["low-rank", "low-rank-correction", "constexpr", "dense"])
def test_it_answers_with_others_in_the_place_of_layers(
    name: NativeName, structure: str, models: dict[NativeName, Model], samples: Samples
) -> None:
    model = models[name]
    before = content_of(model)
    parts = replacements(model)[structure]
    found = predict(native(name).session(model.content, parts, threads=1), samples)
    wanted = answers(model.layers, samples.inputs["pixels"], {layer: weights(part) for layer, part in parts.items()})
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    assert content_of(model) == before, "the model itself is not changed"


@by_native
def test_layers_are_watched(name: NativeName, models: dict[NativeName, Model], samples: Samples) -> None:
    model = models[name]
    names = [layer.name for layer in model.layers]
    watched = native(name).observe(model.content, names, threads=1)
    assert set(watched.keys) == set(names)
    assert watched.inputs == model.inputs
    assert {layer: watched.features[joined(watched.keys[layer])] for layer in names} == {
        layer.name: layer.in_features for layer in model.layers
    }
    feed = {"pixels": samples.inputs["pixels"][:1]}
    assert watched.row_counts(feed) == dict.fromkeys(watched.features, 1)
    runs = list(watched.rows(samples))
    assert len(runs) == len(samples)
    last = model.layers[-1]
    rows = np.concatenate([run[joined(watched.keys[last.name])] for run in runs])
    wanted = answers(model.layers, samples.inputs["pixels"])
    np.testing.assert_allclose(rows @ last.weight.T + last.bias, wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match="no linear layer 'no-such-layer'"):
        native(name).observe(model.content, ["no-such-layer"], threads=1)


@by_native
def test_another_process_sees_the_same(name: NativeName, models: dict[NativeName, Model], samples: Samples) -> None:
    model = models[name]
    watched = native(name).observe(model.content, [layer.name for layer in model.layers], threads=1)
    packed = watched.packed()
    assert packed is not None
    sent = pickle.loads(pickle.dumps(packed))  # noqa: S301
    for one, other in zip(watched.rows(samples), sent.rows(samples, threads=1), strict=True):
        assert one.keys() == other.keys()
        for key, rows in one.items():
            assert rows.shape == (1, watched.features[key])
            np.testing.assert_array_equal(rows, other[key])


@by_native
def test_depths_count_the_layers_before(name: NativeName, models: dict[NativeName, Model]) -> None:
    model = models[name]
    names = [layer.name for layer in model.layers]
    depths = native(name).depths
    assert depths(model.content, names) == {layer: depth for depth, layer in enumerate(names)}
    assert depths(model.content, names[1:]) == {names[1]: 0, names[2]: 1}


@by_native
def test_multiplications_are_counted(name: NativeName, models: dict[NativeName, Model], samples: Samples) -> None:
    model = models[name]
    feed = {"pixels": samples.inputs["pixels"][:1]}
    assert native(name).macs(model.content, feed) == sum(layer.weight.size for layer in model.layers)


@by_native
def test_factors_in_the_model_in_memory(name: NativeName, models: dict[NativeName, Model], samples: Samples) -> None:
    model, made = models[name], native(name)
    before = content_of(model)
    first, second, third = (layer.name for layer in model.layers)
    assert made.weight_bytes(model.content) >= 4 * sum(layer.weight.size for layer in model.layers)
    for structure, products in (("low-rank", 2), ("low-rank-correction", 3)):
        parts = replacements(model)[structure]
        if structure == "low-rank-correction" and name == "tflite":
            with pytest.raises(LayerError, match="no low-rank factors beside a matrix"):
                made.with_factors(model.content, parts)
            continue
        changed, names = made.with_factors(model.content, parts)
        assert content_of(model) == before
        assert {layer: len(own) for layer, own in names.items()} == {first: products, second: 1, third: products}
        assert names[second] == (second,)
        smaller = made.weight_bytes(changed) < made.weight_bytes(model.content)
        assert smaller == (structure == "low-rank")
        thin = made.observe(changed, [each for own in names.values() for each in own], threads=1)
        (run, *_) = thin.rows(samples)
        for layer, part in parts.items():
            into, between = run[joined(thin.keys[names[layer][0]])], run[joined(thin.keys[names[layer][1]])]
            np.testing.assert_allclose(between, into @ part.B.T, rtol=1e-4, atol=1e-5)


@by_native
def test_vectors_of_the_model_are_known(name: NativeName, models: dict[NativeName, Model]) -> None:
    model = models[name]
    for layer in model.layers:
        assert any(vector.shape == layer.bias.shape and (vector == layer.bias).all() for vector in model.vectors)  # type: ignore[union-attr]


def test_natives_are_of_one_mind(models: dict[NativeName, Model], samples: Samples) -> None:
    """A user sees the same layers, and statistics differ in their last bits alone."""
    one, *others = models.values()
    seen = {}
    for model in models.values():
        observation = native(model.native).observe(model.content, [layer.name for layer in model.layers], threads=1)
        rows = list(observation.rows(samples))
        seen[model.native] = {
            layer.name: np.concatenate([run[joined(observation.keys[layer.name])] for run in rows])
            for layer in model.layers
        }
    for other in others:
        assert other.sha256 != one.sha256, "what is kept of one must not be taken for the other's"
        for a, b in zip(one.layers, other.layers, strict=True):
            assert (a.kind, a.geometry, a.uses) == (b.kind, b.geometry, b.uses)
            assert a.name == b.name or other.native == "tflite", "a file has the names that its converter gave"
            np.testing.assert_array_equal(a.weight, b.weight)
            np.testing.assert_array_equal(a.bias, b.bias)
            np.testing.assert_allclose(seen[one.native][a.name], seen[other.native][b.name], rtol=1e-4, atol=1e-5)
