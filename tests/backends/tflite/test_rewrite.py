from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.read import operators, weight_bytes
from edgepack.backends.tflite.rewrite import Places, find_places
from edgepack.backends.tflite.runtime import load, signature
from edgepack.model.replacement import dense
from edgepack.model.types import Array
from edgepack.torchgraph import flat_module, load_program
from tests.backends.tflite.tflite_cases import Case, error, known_ops, prepare

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def vectors(case: Case) -> list[Array]:
    module = flat_module(load_program(case.program))
    return [t.detach().numpy() for t in (*module.parameters(), *module.buffers()) if t.ndim == 1]


def placed(emitter: TfliteEmitter, name: str, folder: Path) -> tuple[Case, Places]:
    case = prepare(name, folder)
    emitter.load_program(case.program)
    emitter.emit(folder / "dense.tflite")
    return case, find_places(folder / "dense.tflite", case.layers, vectors(case))


@pytest.mark.parametrize("name", ["encoder", "cnn", "normed", "shared"])
def test_split_file_equals_a_converted_one(emitter: TfliteEmitter, tmp_path: Path, name: str) -> None:
    case, places = placed(emitter, name, tmp_path)
    assert set(places.operators) == {layer.name for layer in case.layers}
    assert places.takes(case.factors)
    operators_of = places.replace(tmp_path / "thin.tflite", case.factors)
    emitter.emit(tmp_path / "converted.tflite", case.layers, case.factors)
    assert error(load(tmp_path / "thin.tflite", threads=1).run(case.inputs), case.thin) < 1e-5
    assert signature(tmp_path / "thin.tflite") == signature(tmp_path / "dense.tflite")
    assert weight_bytes(tmp_path / "thin.tflite") == weight_bytes(tmp_path / "converted.tflite")
    shapes = [sorted(op.weight.shape for op in known_ops(tmp_path / f"{k}.tflite")) for k in ("thin", "converted")]
    assert shapes[0] == shapes[1]
    pairs = [op for names in operators_of.values() for op in names]
    assert sorted(pairs) == sorted(op.output for op in known_ops(tmp_path / "thin.tflite"))
    assert [len(operators_of[layer.name]) for layer in case.layers] == [2 * layer.uses for layer in case.layers]
    found = find_places(tmp_path / "converted.tflite", case.layers, [], case.factors).operators
    written = {op.output: op.weight.shape for op in known_ops(tmp_path / "converted.tflite")}
    for layer in case.layers:
        pair = case.factors[layer.name]
        assert [written[name] for name in found[layer.name]] == [pair.B.shape] * layer.uses + [
            pair.A.shape
        ] * layer.uses


@pytest.mark.parametrize("name", ["encoder", "cnn", "shared"])
def test_another_weight_stands_in_the_place_of_a_dense_one(emitter: TfliteEmitter, tmp_path: Path, name: str) -> None:
    case, places = placed(emitter, name, tmp_path)
    given = {}
    for layer in case.layers:
        bias = None if layer.bias is None else layer.bias + np.float32(0.5)
        part = {layer.name: dense(layer.weight * np.float32(2), bias)}
        given |= part if places.takes(part) else {}
    assert given, "one at least has nothing folded into it"
    operators_of = places.replace(tmp_path / "other.tflite", given)
    assert operators_of == places.operators
    plain, other = ({op.output: op for op in known_ops(tmp_path / f"{k}.tflite")} for k in ("dense", "other"))
    assert plain.keys() == other.keys()
    for layer in case.layers:
        for output in places.operators[layer.name]:
            factor = 2 if layer.name in given else 1
            np.testing.assert_allclose(other[output].weight, factor * plain[output].weight, rtol=1e-6)
            changed = layer.name in given and layer.bias is not None
            assert (
                other[output].bias is not None and not np.array_equal(other[output].bias, plain[output].bias)
            ) == changed


@pytest.fixture(scope="module")
def normed(emitter: TfliteEmitter, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Places]:
    return placed(emitter, "normed", tmp_path_factory.mktemp("normed"))


def test_split_gives_the_same_bytes_and_leaves_other_layers_alone(normed: tuple[Case, Places], tmp_path: Path) -> None:
    case, places = normed
    second = case.layers[1].name
    only = {second: case.factors[second]}
    for name in ("a", "b"):
        places.replace(tmp_path / name, only)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(operators(tmp_path / "a")) == len(operators(places.path)) + 1
    assert (tmp_path / "a").stat().st_size < places.path.stat().st_size


def test_a_layer_norm_is_not_lost(normed: tuple[Case, Places]) -> None:
    """The converter multiplies its scale into the first layer and its shift into the bias."""
    case, places = normed
    (place,) = places.folds[case.layers[0].name]
    scale, shift = (t.detach().numpy() for t in flat_module(load_program(case.program)).parameters() if t.numel() == 64)
    np.testing.assert_allclose(place.columns, scale, rtol=1e-4)
    assert place.shift is not None
    np.testing.assert_allclose(place.shift, shift, rtol=1e-6)
    blind = find_places(places.path, case.layers, [])
    assert set(blind.operators) == set(places.operators)
    assert not blind.takes(case.factors)
