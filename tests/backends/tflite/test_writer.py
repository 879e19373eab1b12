"""TFLite files of one model: a scheme per layer, read back, and one conversion for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.onnx.file import save
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.runtime import load, predict
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.schemes import FP32, INT4_DYNAMIC, INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.tflite.writer import TfliteWriter
from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.metrics.values import sqnr_db
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import FileScheme
from edgepack.model.types import Array
from edgepack.workspace import Cache
from tests.backends.tflite.normed_mlp import answers, normed_mlp, samples, tflite_files

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return normed_mlp(tmp_path_factory.mktemp("tflite"))


@pytest.fixture(scope="module")
def data() -> Samples:
    return samples(48)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, opened: Model, data: Samples) -> Iterator[TfliteWriter]:
    with tflite_files(opened, data, tmp_path_factory.mktemp("files")) as made:
        yield made


@pytest.fixture(scope="module")
def layers(opened: Model) -> tuple[Layer, ...]:
    """First, second, third; the product from the left is the fourth where it counts as a layer."""
    order = {(96, 64): 0, (96, 96): 1, (10, 96): 2}
    found = [layer for layer in opened.layers if layer.weight.shape in order]
    return tuple(sorted(found, key=lambda layer: order[layer.out_features, layer.in_features]))


def pair(layer: Layer, rank: int) -> Replacement:
    u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
    assert layer.bias is not None
    return low_rank(
        (u[:, :rank] * s[:rank]).astype(np.float32), v[:rank].astype(np.float32), layer.bias + np.float32(0.1)
    )


def reference(opened: Model, factors: dict[str, Replacement], data: Samples, path: Path) -> Array:
    save(with_factors(opened.content, factors), path)
    return predict(load(path, "onnx"), data)


def held(files: TfliteWriter, path: Path) -> dict[tuple[int, int], int]:
    return {(a, b): bits for a, b, bits in files.read(path).weights}


def test_every_layer_of_a_file_in_its_own_scheme(
    files: TfliteWriter, opened: Model, layers: tuple[Layer, ...], data: Samples, tmp_path: Path
) -> None:
    first, second, third = layers
    factors = {second.name: pair(second, 24)}
    want = reference(opened, factors, data, tmp_path / "thin.onnx")
    files.write(
        factors, FileScheme.of(INT8_DYNAMIC), tmp_path / "mixed.tflite", {first.name: FP32, third.name: INT4_DYNAMIC}
    )
    got = held(files, tmp_path / "mixed.tflite")
    assert (got[64, 96], got[24, 96], got[10, 96]) == (32, 8, 4)
    assert sqnr_db(answers(tmp_path / "mixed.tflite", data), want) > 15
    files.write(factors, FileScheme.of(FP32), tmp_path / "float.tflite")
    assert sqnr_db(answers(tmp_path / "float.tflite", data), want) > 100
    files.write(factors, FileScheme.of(FP32), tmp_path / "one.tflite", {second.name: INT4_DYNAMIC})
    got = held(files, tmp_path / "one.tflite")
    assert (got[64, 96], got[24, 96], got[10, 96]) == (32, 4, 32)
    contents = files.read(tmp_path / "one.tflite")
    assert contents.weights.count((24, 96, 4)) == 2, "both halves, each stored once"
    halves = [product for product in contents.products if (*product.sides, product.bits) == (24, 96, 4)]
    assert len(halves) == 4, "both halves, in both places"


def test_fewer_bits_make_a_smaller_file(files: TfliteWriter, data: Samples, tmp_path: Path) -> None:
    for scheme in files.layer_schemes():
        assert files.rest(scheme) == (FileScheme.of(scheme),)
        files.write({}, FileScheme.of(scheme), tmp_path / scheme.name)
    sizes = [(tmp_path / scheme.name).stat().st_size for scheme in (FP32, INT8_DYNAMIC, INT4_DYNAMIC)]
    assert sizes[0] > 2.5 * sizes[1] > 2.5 * 1.3 * sizes[2]
    plain = answers(tmp_path / FP32.name, data)
    assert sqnr_db(answers(tmp_path / INT8_DYNAMIC.name, data), plain) > 30
    assert sqnr_db(answers(tmp_path / INT4_DYNAMIC.name, data), plain) > 10


def test_one_conversion_for_all_plans(
    files: TfliteWriter, layers: tuple[Layer, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write({}, FileScheme.of(FP32), tmp_path / "dense.tflite")
    monkeypatch.setattr(TfliteEmitter, "emit", lambda *args: pytest.fail("converted again"))
    for rank in (8, 16):
        factors = {layer.name: pair(layer, rank) for layer in layers[:2]}
        for scheme in files.layer_schemes():
            files.write(factors, FileScheme.of(scheme), tmp_path / "m.tflite", {layers[2].name: INT8_DYNAMIC})
    assert len(list(files._workspace.folder.iterdir())) == 2, "the dense file and the last plan's"


def test_schemes_are_part_of_the_cache_key(
    files: TfliteWriter, layers: tuple[Layer, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = {layers[0].name: pair(layers[0], 12)}
    written = {}
    for scheme in (FP32, INT4_DYNAMIC):
        files.write(factors, FileScheme.of(INT8_DYNAMIC), tmp_path / scheme.name, {layers[1].name: scheme})
        written[scheme] = (tmp_path / scheme.name).read_bytes()
    assert written[FP32] != written[INT4_DYNAMIC]
    monkeypatch.setattr(TfliteEmitter, "quantize", lambda *args: pytest.fail("quantized again"))
    for scheme in (FP32, INT4_DYNAMIC):
        files.write(
            factors,
            FileScheme.of(INT8_DYNAMIC),
            tmp_path / "again",
            {layers[1].name: scheme, layers[2].name: INT8_DYNAMIC},
        )
        assert (tmp_path / "again").read_bytes() == written[scheme]


def test_a_model_that_cannot_be_split_is_converted_for_every_plan(
    files: TfliteWriter,
    opened: Model,
    layers: tuple[Layer, ...],
    data: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the model's vectors nobody can tell what of the first layer's bias was the layer norm's shift."""
    monkeypatch.setattr(files._origin, "_opened", replace(opened, vectors=()))
    monkeypatch.delitem(files.__dict__, "_places", raising=False)
    factors = {layers[0].name: pair(layers[0], 20)}
    assert not files._places.takes(factors)
    files.write(
        factors,
        FileScheme.of(INT8_DYNAMIC),
        tmp_path / "m.tflite",
        {layers[0].name: INT4_DYNAMIC, layers[1].name: FP32},
    )
    got = held(files, tmp_path / "m.tflite")
    assert (got[20, 64], got[20, 96], got[96, 96], got[10, 96]) == (4, 4, 32, 8)
    want = reference(opened, factors, data, tmp_path / "thin.onnx")
    assert sqnr_db(answers(tmp_path / "m.tflite", data), want) > 12
    monkeypatch.delitem(files.__dict__, "_places")


def test_what_is_refused(files: TfliteWriter, layers: tuple[Layer, ...], tmp_path: Path) -> None:
    out = tmp_path / "m.tflite"
    with pytest.raises(ModelError, match="no layer nowhere"):
        files.write({}, FileScheme.of(INT8_DYNAMIC), out, {"nowhere": INT4_DYNAMIC})
    with pytest.raises(ValueError, match="can be fp32, not int8-dynamic-range"):
        files.write({}, FileScheme.of(INT8_STATIC), out, {layers[0].name: INT8_DYNAMIC})
    with pytest.raises(ValueError, match="not int8-static"):
        files.write({}, FileScheme.of(INT8_DYNAMIC), out, {layers[0].name: INT8_STATIC})
    assert not out.exists()
    files.write({}, FileScheme.of(INT8_STATIC), out, {layers[0].name: FP32})
    assert (held(files, out)[64, 96], held(files, out)[96, 96]) == (32, 8)


def test_a_product_from_the_left_is_a_layer_too(
    files: TfliteWriter, opened: Model, layers: tuple[Layer, ...], tmp_path: Path
) -> None:
    (left,) = {layer.name for layer in opened.layers} - {layer.name for layer in layers}
    files.write({}, FileScheme.of(INT8_DYNAMIC), tmp_path / "m.tflite", {left: FP32})
    assert (held(files, tmp_path / "m.tflite")[3, 6], held(files, tmp_path / "m.tflite")[96, 96]) == (32, 8)


def test_a_layer_without_an_operator_takes_the_scheme_of_the_file(
    files: TfliteWriter, layers: tuple[Layer, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = layers[1].name
    known = {other: names for other, names in files._places.operators.items() if other != name}
    monkeypatch.setitem(files.__dict__, "_places", replace(files._places, operators=known))
    elsewhere = replace(files._workspace, cache=Cache(tmp_path / "cache"))
    monkeypatch.setattr(files, "_workspace", elsewhere)
    out = tmp_path / "m.tflite"
    written = files.write({}, FileScheme.of(FP32), out, {name: INT4_DYNAMIC, layers[0].name: INT8_DYNAMIC})
    assert name not in written.schemes
    assert written.schemes[layers[0].name] == INT8_DYNAMIC
    assert (held(files, out)[64, 96], held(files, out)[96, 96]) == (8, 32)
