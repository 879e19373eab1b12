"""Low-rank factors in files that compute in int8 throughout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.backends.backend import WriterData
from edgepack.backends.runtime import load, predict
from edgepack.backends.tflite.backend import BACKEND
from edgepack.backends.tflite.quantizer import quantize
from edgepack.backends.tflite.read import linear_ops, operators
from edgepack.backends.tflite.schemes import FP32, INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.tflite.sites import tflite_model
from edgepack.backends.tflite.writer import TfliteWriter
from edgepack.data import Samples
from edgepack.methods.registry import compress
from edgepack.metrics.values import sqnr_db
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, dense, low_rank
from edgepack.model.scheme import FileScheme
from edgepack.model.structure import DENSE
from edgepack.model.types import Array
from edgepack.natives import native
from edgepack.pipeline.build import BuildResult, build
from edgepack.pipeline.options import BuildOptions
from edgepack.plan.candidates import GivenRanks
from edgepack.sources import open_model
from edgepack.targets.file import get_target
from edgepack.workspace import Cache, Workspace
from tests.backends.tflite.given_files import GivenFile, convnet, integer_layer, mlp
from tests.contracts.test_kinds import replaced

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
RNG = np.random.default_rng(0)
RANK = 8


def thin(rows: int, columns: int) -> Array:
    """A matrix of rank 8 and a little noise."""
    product = RNG.standard_normal((rows, RANK)) @ RNG.standard_normal((RANK, columns)) / np.sqrt(RANK * columns)
    return np.asarray(product + RNG.standard_normal((rows, columns)) / 2000, np.float32)


WEIGHTS = [
    (thin(96, 128), RNG.standard_normal(96).astype(np.float32) / 4),
    (thin(64, 96), RNG.standard_normal(64).astype(np.float32) / 4),
    (RNG.standard_normal((5, 64)).astype(np.float32) / 8, RNG.standard_normal(5).astype(np.float32)),
]
KERNELS = thin(48, 9 * 32).reshape(48, 3, 3, 32), RNG.standard_normal((6, 1, 1, 48)).astype(np.float32) / 7
SIDE = thin(96, 96), RNG.standard_normal(96).astype(np.float32) / 4
BIASES = RNG.standard_normal(48).astype(np.float32) / 4, RNG.standard_normal(6).astype(np.float32)


def in_integers(file: GivenFile, folder: Path, shape: tuple[int, ...], name: str) -> Path:
    """The file in int8 by the format's own quantizer, between QUANTIZE and DEQUANTIZE."""
    source = file.save(folder / "float.tflite", signed)
    samples = {name: RNG.standard_normal((40, *shape)).astype(np.float32)}
    quantize(source, folder / "m.tflite", INT8_STATIC, samples)
    return folder / "m.tflite"


def signed(model: Any) -> None:
    """With a signature, by whose names the quantizer feeds it."""
    schema, graph = GivenFile().schema, model.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    for field, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = graph.tensors[tensors[0]].name, tensors[0]
        setattr(signature, field, [entry])
    model.signatureDefs = [signature]


@pytest.fixture
def dense_file(tmp_path: Path) -> Path:
    return in_integers(mlp(WEIGHTS), tmp_path, (1, 128), "pixels")


def samples_of(model: Model, count: int) -> Samples:
    return Samples({one.name: RNG.standard_normal((count, *one.shape[1:])).astype(one.dtype) for one in model.inputs})


def writer_of(model: Model, samples: Samples, folder: Path) -> TfliteWriter:
    data = WriterData(samples, {name: array[:1] for name, array in samples.inputs.items()}, 127)
    return BACKEND.open(model, data, None, Workspace(Cache(folder / "cache"), folder))  # type: ignore[return-value]


def halves(model: Model, name: str) -> dict[str, Replacement]:
    layer = next(layer for layer in model.layers if layer.name == name)
    u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
    return {name: low_rank((u[:, :RANK] * s[:RANK]).astype(np.float32), v[:RANK].astype(np.float32), layer.bias)}


def test_factors_compute_in_int8_and_all_else_is_as_it_was(dense_file: Path, tmp_path: Path) -> None:
    model = open_model(str(dense_file), tmp_path)
    assert model.in_integers
    assert model.fixed is None
    samples = samples_of(model, 30)
    files = writer_of(model, samples, tmp_path)
    first, second, _ = model.layers
    parts = halves(model, first.name) | halves(model, second.name)
    assert files.takes(parts) == parts
    written = files.write(parts, FileScheme.of(INT8_STATIC), tmp_path / "out.tflite")
    ops, given = linear_ops(tmp_path / "out.tflite"), linear_ops(dense_file)
    assert [op.weight.dtype for op in ops] == [np.int8] * 5
    assert [op.weight.shape for op in ops] == [(8, 128), (96, 8), (8, 96), (64, 8), (5, 64)]
    assert [op.output for op in ops] == [*written.products[first.name], *written.products[second.name], ops[-1].output]
    np.testing.assert_array_equal(ops[-1].weight, given[-1].weight)
    np.testing.assert_array_equal(ops[-1].scales, given[-1].scales)
    assert operators(tmp_path / "out.tflite").count("QUANTIZE") == operators(dense_file).count("QUANTIZE")
    found = predict(load(tmp_path / "out.tflite", "tflite"), samples)
    wanted = predict(native("tflite").session(model.content, parts, threads=1), samples)
    source = predict(load(dense_file, "tflite"), samples)
    assert sqnr_db(found, wanted) > 28
    assert sqnr_db(found, source) > 25
    assert (tmp_path / "out.tflite").stat().st_size < 0.75 * dense_file.stat().st_size


def test_without_factors_it_is_the_file_that_was_given(dense_file: Path, tmp_path: Path) -> None:
    model = open_model(str(dense_file), tmp_path)
    files = writer_of(model, samples_of(model, 4), tmp_path)
    written = files.write({}, files.trial_scheme, tmp_path / "out.tflite")
    assert (tmp_path / "out.tflite").read_bytes() == dense_file.read_bytes()
    assert written.schemes == {layer.name: INT8_STATIC for layer in model.layers}


@pytest.mark.parametrize("structure", ["low-rank", "spatial-svd", "input-svd", "tucker-2", "cp"])
def test_convolutions_are_taken_apart_in_int8(structure: str, tmp_path: Path) -> None:
    path = in_integers(convnet(*KERNELS, BIASES, stride=2), tmp_path, (1, 6, 6, 32), "image")
    model = open_model(str(path), tmp_path)
    samples = samples_of(model, 30)
    files = writer_of(model, samples, tmp_path)
    layer = model.layers[0]
    kind = kind_of(layer)
    if structure == "cp":
        part = compress("cp", views_of([layer])[0], 0.3)
        assert isinstance(part, Replacement)
    else:
        own = next(one for one in kind.structures(layer, GivenRanks((RANK,), ())) if one.name == structure)
        part = replaced(kind, layer, own)
    parts = {layer.name: part}
    files.write(parts, FileScheme.of(INT8_STATIC), tmp_path / "out.tflite")
    ops = linear_ops(tmp_path / "out.tflite")
    assert {op.weight.dtype.name for op in ops} == {"int8"}
    assert len(ops) == (4 if structure in ("tucker-2", "cp") else 3)
    found = predict(load(tmp_path / "out.tflite", "tflite"), samples)
    wanted = predict(native("tflite").session(model.content, parts, threads=1), samples)
    assert sqnr_db(found, wanted) > 25


def test_a_weight_in_two_places_is_one_on_the_same_grid(tmp_path: Path) -> None:
    file = mlp([SIDE, SIDE])
    file.graph.operators[1].inputs[1:] = file.graph.operators[0].inputs[1:]
    model = open_model(str(in_integers(file, tmp_path, (1, 96), "pixels")), tmp_path)
    samples = samples_of(model, 30)
    files = writer_of(model, samples, tmp_path)
    (layer,) = model.layers
    assert layer.uses == 2
    parts = halves(model, layer.name)
    files.write(parts, FileScheme.of(INT8_STATIC), tmp_path / "out.tflite")
    ops = linear_ops(tmp_path / "out.tflite")
    assert len(ops) == 4
    assert len({op.buffer for op in ops}) == 2
    found = predict(load(tmp_path / "out.tflite", "tflite"), samples)
    wanted = predict(native("tflite").session(model.content, parts, threads=1), samples)
    assert sqnr_db(found, wanted) > 25


def test_what_has_no_place_there_is_refused_with_the_reason(dense_file: Path, tmp_path: Path) -> None:
    model = open_model(str(dense_file), tmp_path)
    files = writer_of(model, samples_of(model, 4), tmp_path)
    layer = model.layers[0]
    assert files.layer_schemes() == (INT8_STATIC,)
    assert files.supports(layer, DENSE, INT8_STATIC) is None
    assert files.supports(layer, DENSE, FP32) == files.supports(layer, DENSE, INT8_DYNAMIC)
    part = dense(layer.weight / 2, layer.bias)
    assert files.takes({layer.name: part}) == {}
    assert "stays as it was given" in (files.refuses(layer.name, part) or "")


def built(path: Path, folder: Path, data: Mapping[str, Array] | None, **changes: Any) -> BuildResult:
    if data is not None:
        np.savez(folder / "d.npz", allow_pickle=False, **data)
        changes["data"] = folder / "d.npz"
    options = BuildOptions(str(path), get_target("rpi4"), out=folder / "pack", **changes)
    return build(options, cache=Cache(folder / "cache"))


def test_a_pack_has_fewer_bytes_and_says_what_was_done(dense_file: Path, tmp_path: Path) -> None:
    data = {"pixels": RNG.standard_normal((600, 128)).astype(np.float32)}
    result = built(dense_file, tmp_path, data)
    entry = json.loads((result.out / "manifest.json").read_text())["files"]["model.tflite"]
    ranks = {layer["layer"]: layer["rank"] for layer in entry["layers"]}
    assert next(iter(ranks.values())) is not None
    assert list(ranks.values())[-1] is None
    assert {layer["scheme"] for layer in entry["layers"]} == {"int8-static"}
    assert all(proof["passed"] for proof in entry["proofs"].values())
    assert entry["size_bytes"] < 0.8 * dense_file.stat().st_size
    assert (result.out / "baseline/int8.tflite").read_bytes() == dense_file.read_bytes()
    assert any("compute in int8" in line for line in result.manifest.warnings)


def test_a_layer_that_is_to_be_kept_is_as_it_was_given(dense_file: Path, tmp_path: Path) -> None:
    data = {"pixels": RNG.standard_normal((600, 128)).astype(np.float32)}
    name = open_model(str(dense_file), tmp_path).layers[0].name
    result = built(dense_file, tmp_path, data, keep=f"^{name}$", rank=RANK)
    first, second, _ = linear_ops(result.out / "model.tflite")[:3]
    np.testing.assert_array_equal(first.weight, linear_ops(dense_file)[0].weight)
    assert second.weight.shape == (RANK, 96)


@pytest.mark.parametrize(
    ("with_data", "precision", "why"), [(False, "auto", "without --data"), (True, "int4", "int4 was asked for")]
)
def test_it_is_kept_where_there_is_nothing_to_plan_with(
    with_data: bool, precision: str, why: str, dense_file: Path, tmp_path: Path
) -> None:
    data = {"pixels": RNG.standard_normal((90, 128)).astype(np.float32)} if with_data else None
    result = built(dense_file, tmp_path, data, precision=precision)
    assert (result.out / "model.tflite").read_bytes() == dense_file.read_bytes()
    assert any(why in line for line in result.manifest.warnings)


def test_other_integers_than_int8_are_kept(tmp_path: Path) -> None:
    file = integer_layer(WEIGHTS[0][0])
    for tensor in (file.graph.tensors[0], file.graph.tensors[2]):
        tensor.type = file.schema.TensorType.INT16
        tensor.quantization.zeroPoint = [0]
    path = file.save(tmp_path / "m.tflite")
    model = open_model(str(path), tmp_path)
    assert model.in_integers
    assert "not int8 throughout" in (model.fixed or "")
    result = built(path, tmp_path, {"x": RNG.integers(-9000, 9000, (90, 128)).astype(np.int16)})
    assert (result.out / "model.tflite").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("scale", [[], [0.0], [float("nan")], [0.1, 0.2]])
def test_a_layer_whose_input_is_on_no_grid_is_kept(scale: list[float], tmp_path: Path) -> None:
    file = integer_layer(WEIGHTS[0][0])
    file.graph.tensors[0].quantization.scale = scale
    file.graph.tensors[0].quantization.zeroPoint = [0] * len(scale)
    assert not tflite_model(file.save(tmp_path / "m.tflite").read_bytes(), "m").folds


def test_codes_that_come_out_are_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    path = integer_layer(WEIGHTS[0][0]).save(tmp_path / "m.tflite")
    codes = RNG.integers(-128, 128, (1, 128)).astype(np.int8)
    found = predict(load(path, "tflite"), Samples({"x": codes}))
    weight = open_model(str(path), tmp_path).layers[0].weight
    wanted = np.clip((codes.astype(np.float32) + 3) * 0.05 @ weight.T, (-128 - 4) * 0.1, (127 - 4) * 0.1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=0.051)
