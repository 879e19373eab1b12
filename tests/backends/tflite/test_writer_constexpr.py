"""TFLite files of one model with layers in code beside others in any scheme."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.onnx.file import save
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.runtime import load, predict
from edgepack.backends.tflite.read import operators
from edgepack.backends.tflite.schemes import CONSTEXPR, FP32, INT4_DYNAMIC, INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.tflite.writer import TfliteWriter
from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.methods.budget import in_8_bits
from edgepack.metrics.values import sqnr_db
from edgepack.model.constexpr import Writer, stored_bytes
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, dense, low_rank
from edgepack.model.scheme import FileScheme, Scheme
from tests.backends.tflite.normed_mlp import answers, normed_mlp, samples, tflite_files

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return normed_mlp(tmp_path_factory.mktemp("coded"))


@pytest.fixture(scope="module")
def data() -> Samples:
    return samples(32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, opened: Model, data: Samples) -> Iterator[TfliteWriter]:
    with tflite_files(opened, data, tmp_path_factory.mktemp("files")) as made:
        yield made


@pytest.fixture(scope="module")
def layers(opened: Model) -> dict[tuple[int, int], Layer]:
    return {layer.weight.shape: layer for layer in opened.layers}


def blocks(layer: Layer) -> Replacement:
    """The layer's rows of blocks of two, each the nearest one of 256 of them; another bias than the layer's own."""
    w = Writer()
    pairs = layer.weight.reshape(-1, 2)
    book = pairs[np.random.default_rng(0).permutation(len(pairs))[:256]]
    codes = np.square(pairs[:, None] - book).sum(axis=2).argmin(axis=1).astype(np.uint8)
    index = w.step("cast", w.constant("codes", codes), to="int32")
    found = w.step("gather", w.constant("codebook", book), index, axis=0)
    assert layer.bias is not None
    bias = layer.bias + np.float32(0.05)
    return in_8_bits(w.decoded(w.step("reshape", found, shape=layer.weight.shape), bias))


def projected(layer: Layer) -> Replacement:
    """Two products with an intermediate cast, none of which is the layer's own size."""
    u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
    w = Writer()
    latent = w.step("matmul", "x", w.constant("B", np.ascontiguousarray(v[:8].T)))
    w.step("matmul", latent, w.constant("A", np.ascontiguousarray((u[:, :8] * s[:8]).T)))
    return in_8_bits(w.direct(layer.in_features, layer.bias))


@pytest.mark.parametrize("scheme", [FP32, INT8_DYNAMIC, INT4_DYNAMIC, INT8_STATIC], ids=str)
@pytest.mark.parametrize("kind", [blocks, projected])
def test_code_beside_every_scheme(
    files: TfliteWriter,
    layers: dict[tuple[int, int], Layer],
    data: Samples,
    tmp_path: Path,
    scheme: Scheme,
    kind: Callable[[Layer], Replacement],
) -> None:
    layer = layers[96, 96]
    part = kind(layer)
    assert files.takes({layer.name: part}) == {layer.name: part}
    assert files.refuses(layer.name, part) is None
    out = tmp_path / "coded.tflite"
    written = files.write({layer.name: part}, FileScheme.of(scheme), out, {layer.name: CONSTEXPR})
    assert written.schemes[layer.name] == CONSTEXPR
    assert CONSTEXPR not in {own for name, own in written.schemes.items() if name != layer.name}
    wide = {layer.name: dense(part.weight, part.bias)}
    files.write(wide, FileScheme.of(scheme), tmp_path / "dense.tflite", {} if scheme == FP32 else {layer.name: FP32})
    want = answers(tmp_path / "dense.tflite", data)
    # Rounding at run time may fall to the other side where sums come in another order.
    assert sqnr_db(answers(tmp_path / "coded.tflite", data), want) > (100 if scheme == FP32 else 40)
    names = operators(tmp_path / "coded.tflite")
    assert names.count("CALL_ONCE") == 1
    assert names.count("READ_VARIABLE") == (1 if kind is blocks else 2), "one for both places"
    saved = (tmp_path / "dense.tflite").stat().st_size - (tmp_path / "coded.tflite").stat().st_size
    assert saved > part.weight.nbytes - stored_bytes(part) - 6000
    mine, other = ({(a, b) for a, b, _ in files.read(tmp_path / f"{n}.tflite").weights} for n in ("coded", "dense"))
    assert mine == other - {(96, 96)}, "the readers find all other layers"


def test_what_the_converter_folded_in_is_kept(
    files: TfliteWriter, opened: Model, layers: dict[tuple[int, int], Layer], data: Samples, tmp_path: Path
) -> None:
    """The norm's scale is in the first layer's weight, its shift in the bias: no dense weight is put there, code is."""
    first, second = layers[96, 64], layers[96, 96]
    parts = {first.name: projected(first), second.name: blocks(second)}
    assert files.takes({first.name: dense(first.weight, first.bias)}) == {}
    assert files.takes(parts) == parts
    files.write(parts, FileScheme.of(FP32), tmp_path / "coded.tflite")
    whole = {
        name: low_rank(part.weight, np.eye(part.weight.shape[1], dtype=np.float32), part.bias)
        for name, part in parts.items()
    }
    save(with_factors(opened.content, whole), tmp_path / "want.onnx")
    assert sqnr_db(answers(tmp_path / "coded.tflite", data), predict(load(tmp_path / "want.onnx", "onnx"), data)) > 90


def test_code_beside_pairs_and_a_scheme_of_each(
    files: TfliteWriter, layers: dict[tuple[int, int], Layer], data: Samples, tmp_path: Path
) -> None:
    first, second, third = (layers[key] for key in ((96, 64), (96, 96), (10, 96)))
    u, s, v = np.linalg.svd(first.weight, full_matrices=False)
    pair = low_rank((u * s)[:, :24].astype(np.float32), v[:24].astype(np.float32), first.bias)
    parts = {first.name: pair, second.name: blocks(second)}
    files.write(parts, FileScheme.of(INT8_DYNAMIC), tmp_path / "a.tflite", {second.name: CONSTEXPR, third.name: FP32})
    files.write(parts, FileScheme.of(INT8_DYNAMIC), tmp_path / "b.tflite", {third.name: FP32})
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()
    weights = sorted(files.read(tmp_path / "a.tflite").weights)
    assert weights == [(3, 6, 8), (10, 96, 32), (24, 64, 8), (24, 96, 8)]
    biases = files.read(tmp_path / "a.tflite").vectors
    assert any(np.allclose(each, parts[second.name].bias) for each in biases if each.shape == (96,))


def test_another_code_of_the_same_weight_is_another_file(
    files: TfliteWriter, layers: dict[tuple[int, int], Layer], tmp_path: Path
) -> None:
    layer = layers[96, 96]
    part = blocks(layer)
    w = Writer()
    plain = w.decoded(w.constant("W", part.weight), part.bias)
    for scheme in (FP32, INT8_DYNAMIC):
        for name, each in (("a", part), ("b", plain), ("c", part)):
            files.write({layer.name: each}, FileScheme.of(scheme), tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()
        assert (tmp_path / "a").stat().st_size < (tmp_path / "b").stat().st_size


def test_code_is_not_lost(
    files: TfliteWriter, layers: dict[tuple[int, int], Layer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, third = layers[96, 96], layers[10, 96]
    part = {layer.name: blocks(layer)}
    with pytest.raises(ValueError, match="constexpr"):
        files.write(part, FileScheme.of(FP32), tmp_path / "out", {layer.name: INT8_DYNAMIC})
    with pytest.raises(ValueError, match="constexpr"):
        files.write(part, FileScheme.of(FP32), tmp_path / "out", {third.name: CONSTEXPR})
    folds = {name: places for name, places in files._places.folds.items() if name != layer.name}
    monkeypatch.setitem(files.__dict__, "_places", replace(files._places, folds=folds))
    assert files.takes(part) == {}
    assert files.refuses(layer.name, part[layer.name]) is not None
    with pytest.raises(ModelError, match="not in the file"):
        files.write(part, FileScheme.of(FP32), tmp_path / "out")
