"""Files written from a TFLite file: edited, not converted; what is not a layer stays in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from edgepack.backends.backend import WriterData
from edgepack.backends.runtime import load, predict
from edgepack.backends.tflite.backend import BACKEND
from edgepack.backends.tflite.converter import ConverterProcess
from edgepack.backends.tflite.decoded import operator_name
from edgepack.backends.tflite.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, WEIGHTS8
from edgepack.backends.tflite.writer import TfliteWriter
from edgepack.data import Samples
from edgepack.metrics.values import sqnr_db
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, dense, low_rank
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import DENSE
from edgepack.model.structure import low_rank as low_rank_structure
from edgepack.model.types import Array
from edgepack.natives import native
from edgepack.pipeline.build import build
from edgepack.pipeline.options import BuildOptions, PrecisionChoice
from edgepack.sources import open_model
from edgepack.targets.file import get_target
from edgepack.workspace import Cache, Workspace
from tests.backends.tflite.given_files import GivenFile, convnet, integer_layer, mlp

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
RNG = np.random.default_rng(0)
WEIGHTS = [
    (RNG.standard_normal(shape).astype(np.float32), RNG.standard_normal(shape[0]).astype(np.float32))
    for shape in ((48, 64), (32, 48), (5, 32))
]
KERNELS = RNG.standard_normal((24, 3, 3, 16)).astype(np.float32), RNG.standard_normal((6, 1, 1, 24)).astype(np.float32)
BIASES = RNG.standard_normal(24).astype(np.float32), RNG.standard_normal(6).astype(np.float32)


def annotated(model: Any) -> None:
    """With metadata, and a second signature of a graph of its own."""
    schema = GivenFile().schema
    note, held = schema.MetadataT(), schema.BufferT()
    held.data = np.frombuffer(b"labels: a, b, c", np.uint8)
    note.name, note.buffer = b"TFLITE_METADATA", len(model.buffers)
    model.buffers.append(held)
    model.metadata, model.description = [note], b"of somebody else"
    other = GivenFile()
    x, y = other.tensor("x", (2,)), other.tensor("y", (2,))
    other.graph.inputs, other.graph.outputs = [x], [other.op("ABS", [x], y)]
    other.graph.operators[0].opcodeIndex = len(model.operatorCodes)
    model.operatorCodes += other.model.operatorCodes
    model.subgraphs.append(other.graph)
    model.signatureDefs = []
    for key, number, graph in (("main", 0, model.subgraphs[0]), ("other", 1, other.graph)):
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key.encode(), number
        for field, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = field.encode(), tensors[0]
            setattr(signature, field, [entry])
        model.signatureDefs.append(signature)


def opened(name: str, folder: Path) -> Model:
    files = {
        "fp32": lambda: mlp(WEIGHTS),
        "fp16": lambda: mlp(WEIGHTS, "float16"),
        "hybrid": lambda: mlp(WEIGHTS, "hybrid"),
        "conv": lambda: convnet(*KERNELS, BIASES, stride=2),
    }
    file = files[name]()
    return open_model(str(file.save(folder / f"{name}.tflite", annotated)), folder)


def samples_of(model: Model, count: int) -> Samples:
    return Samples(
        {spec.name: RNG.standard_normal((count, *spec.shape[1:])).astype(np.float32) for spec in model.inputs}
    )


def writer_of(model: Model, samples: Samples, folder: Path) -> TfliteWriter:
    data = WriterData(samples, {name: array[:1] for name, array in samples.inputs.items()}, 127)
    return BACKEND.open(model, data, None, Workspace(Cache(folder / "cache"), folder))  # type: ignore[return-value]


def halves(model: Model) -> dict[str, Replacement]:
    """Low-rank factors of the first layer, with another bias."""
    layer = model.layers[0]
    u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
    A, B = (u[:, :8] * s[:8]).astype(np.float32), v[:8].astype(np.float32)
    assert layer.bias is not None
    return {layer.name: low_rank(A, B, layer.bias + np.float32(0.1))}


@pytest.mark.parametrize("name", ["fp32", "fp16", "hybrid", "conv"])
@pytest.mark.parametrize("scheme", [FP32, INT8_DYNAMIC, INT8_STATIC], ids=str)
def test_factors_are_two_operators_and_answer_alike(name: str, scheme: Scheme, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    samples = samples_of(model, 20)
    files = writer_of(model, samples, tmp_path)
    parts = halves(model)
    assert files.takes(parts) == parts
    written = files.write(parts, FileScheme.of(scheme), tmp_path / "out.tflite")
    contents = files.read(tmp_path / "out.tflite")
    own = [product for product in contents.products if product.name in written.products[model.layers[0].name]]
    sides = {model.layers[0].in_features, model.layers[0].out_features}
    assert {max(product.sides) for product in own} == sides
    assert {min(product.sides) for product in own} == {8}
    assert len(contents.products) == len(model.layers) + 1
    found = predict(load(tmp_path / "out.tflite", "tflite"), samples)
    wanted = predict(native("tflite").session(model.content, parts, threads=1), samples)
    assert sqnr_db(found, wanted) > (80 if scheme == FP32 else 20)
    if scheme != FP32 and name == "conv":
        assert (tmp_path / "out.tflite").stat().st_size < (tmp_path / "conv.tflite").stat().st_size / 2


def test_weights_that_came_in_float16_and_stay_are_stored_so(tmp_path: Path) -> None:
    """In float32 a file with one layer in 8 bits was larger than the one that was given."""
    model = opened("fp16", tmp_path)
    first, *others = model.layers
    assert {layer.stored_bits for layer in model.layers} == {16}
    samples = samples_of(model, 20)
    files = writer_of(model, samples, tmp_path)
    files.write({}, FileScheme.of(FP32), tmp_path / "out.tflite", {first.name: WEIGHTS8})
    found = sorted((bits, small, large) for small, large, bits in files.read(tmp_path / "out.tflite").weights)
    sides = [tuple(sorted(layer.weight.shape)) for layer in model.layers]
    assert found == [(8, *sides[0]), *sorted((16, *own) for own in sides[1:])]
    assert (tmp_path / "out.tflite").stat().st_size < (tmp_path / "fp16.tflite").stat().st_size
    wanted = predict(native("tflite").session(model.content, {}, threads=1), samples)
    assert sqnr_db(predict(load(tmp_path / "out.tflite", "tflite"), samples), wanted) > 30
    files.write(halves(model), FileScheme.of(FP32), tmp_path / "factored.tflite")
    bits = [bits for *_, bits in files.read(tmp_path / "factored.tflite").weights]
    assert sorted(bits) == [16] * len(others) + [32, 32], "no factor is the same in float16"


def test_kernels_that_are_no_layers_stay_as_they_were_given(tmp_path: Path) -> None:
    """Where 8 bits of them alone would lose too much; dense int8 has them in 8 bits even so."""
    file, rng = GivenFile(), np.random.default_rng(0)
    x, middle, y = (file.tensor(name, (1, 6, 6, 16)) for name in ("image", "middle", "y"))
    kernels = [rng.standard_normal(shape).astype(np.float32) for shape in ((1, 3, 3, 16), (16, 1, 1, 16))]
    biases = [file.tensor(name, (16,), "float32", np.zeros(16, np.float32)) for name in ("b0", "b1")]
    strides = {"strideW": 1, "strideH": 1}
    weights = [file.weight(name, kernel, "float32") for name, kernel in zip(("deep", "point"), kernels, strict=True)]
    file.op("DEPTHWISE_CONV_2D", [x, weights[0], biases[0]], middle, "DepthwiseConv2D", depthMultiplier=1, **strides)
    file.op("CONV_2D", [middle, weights[1], biases[1]], y, "Conv2D", **strides)
    file.graph.inputs, file.graph.outputs = [x], [y]
    model = open_model(str(file.save(tmp_path / "m.tflite", annotated)), tmp_path)
    files = writer_of(model, samples_of(model, 8), tmp_path)
    assert files.write_others(tmp_path / "others.tflite"), "a choice"
    assert bits_of_kernels(tmp_path / "others.tflite") == {"DEPTHWISE_CONV_2D": 8, "CONV_2D": 32}
    kept = files.with_others_kept()
    kept.write({}, FileScheme.of(WEIGHTS8), tmp_path / "kept.tflite")
    assert bits_of_kernels(tmp_path / "kept.tflite") == {"DEPTHWISE_CONV_2D": 32, "CONV_2D": 8}
    kept.write_baseline(INT8_DYNAMIC, tmp_path / "int8.tflite")
    assert bits_of_kernels(tmp_path / "int8.tflite") == {"DEPTHWISE_CONV_2D": 8, "CONV_2D": 8}


def bits_of_kernels(path: Path) -> dict[str, int]:
    """By operator; behind DEQUANTIZE what is stored."""
    model = GivenFile().schema.ModelT.InitFromPackedBuf(path.read_bytes())
    graph, *_ = model.subgraphs
    written = {int(each.outputs[0]): each for each in graph.operators}
    found = {}
    for each in graph.operators:
        if (name := operator_name(model, each)) in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            source = written.get(int(each.inputs[1]))
            tensor = graph.tensors[each.inputs[1] if source is None else source.inputs[0]]
            found[name] = 8 * len(model.buffers[tensor.buffer].data) // prod(tensor.shape)
    return found


def kept(path: Path) -> Mapping[str, Any]:
    model = GivenFile().schema.ModelT.InitFromPackedBuf(path.read_bytes())
    notes = {note.name: bytes(model.buffers[note.buffer].data) for note in model.metadata}
    return {
        "notes": notes.get(b"TFLITE_METADATA"),
        "description": model.description,
        "signatures": [(s.signatureKey, s.subgraphIndex, s.inputs[0].name) for s in model.signatureDefs],
        "graphs": len(model.subgraphs),
    }


def test_what_is_no_layer_is_kept(tmp_path: Path) -> None:
    model = opened("fp16", tmp_path)
    files = writer_of(model, samples_of(model, 8), tmp_path)
    source = kept(tmp_path / "fp16.tflite")
    for scheme in (FP32, INT8_DYNAMIC, INT8_STATIC):
        files.write(halves(model), FileScheme.of(scheme), tmp_path / "out.tflite")
        assert kept(tmp_path / "out.tflite") == source
    files.write_dense(tmp_path / "dense.tflite")
    assert (tmp_path / "dense.tflite").read_bytes() == (tmp_path / "fp16.tflite").read_bytes()


def built(
    path: Path,
    data: Mapping[str, Array],
    folder: Path,
    *,
    rank: Literal["auto"] | int = "auto",
    precision: PrecisionChoice = "int8",
) -> tuple[Path, tuple[str, ...]]:
    np.savez(folder / "d.npz", allow_pickle=False, **data)
    options = BuildOptions(
        str(path), get_target("rpi4"), data=folder / "d.npz", out=folder / "pack", rank=rank, precision=precision
    )
    result = build(options, cache=Cache(folder / "cache"))
    return result.out, result.manifest.warnings


def test_a_pack_of_factors_takes_no_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thin operators in int8 for each layer, proved like any other."""
    monkeypatch.setattr(ConverterProcess, "start", None)
    thin = (RNG.standard_normal((96, 8)) @ RNG.standard_normal((8, 128)) / 30).astype(np.float32)
    weights = [(thin, np.zeros(96, np.float32)), (RNG.standard_normal((32, 96)).astype(np.float32), WEIGHTS[1][1])]
    path = mlp(weights).save(tmp_path / "m.tflite", annotated)
    pack, _ = built(path, {"inputs": RNG.standard_normal((100, 128)).astype(np.float32)}, tmp_path, rank=8)
    entry = json.loads((pack / "manifest.json").read_text())["files"]["model.tflite"]
    assert {layer["layer"]: layer["rank"] for layer in entry["layers"]} == {"fc0": 8, "fc1": 8}
    assert all(proof["passed"] for proof in entry["proofs"].values())
    assert (pack / "baseline/fp32.tflite").read_bytes() == path.read_bytes()
    assert (pack / "model.tflite").stat().st_size < (pack / "baseline/int8.tflite").stat().st_size
    assert kept(pack / "model.tflite") == kept(path)


def test_a_model_in_integers_that_no_rank_makes_smaller_is_kept(tmp_path: Path) -> None:
    path = integer_layer(WEIGHTS[0][0]).save(tmp_path / "m.tflite")
    pack, warnings = built(path, {"x": RNG.integers(-128, 128, (90, 64)).astype(np.int8)}, tmp_path)
    for name in ("model.tflite", "baseline/int8.tflite", "baseline/fp32.tflite"):
        assert (pack / name).read_bytes() == path.read_bytes()
    assert json.loads((pack / "manifest.json").read_text())["files"]["model.tflite"]["scheme"] == "int8-static"
    assert any("its layers compute in int8" in line for line in warnings)
    assert "no ONNX file: nothing converts a TFLite file to ONNX" in warnings
    assert not (pack / "model.onnx").exists()


def test_a_model_without_layers_has_the_smaller_of_int8_and_itself(tmp_path: Path) -> None:
    file = GivenFile()
    x, y = file.tensor("x", (1, 4)), file.tensor("y", (1, 4))
    file.graph.inputs, file.graph.outputs = [x], [file.op("ABS", [x], y)]
    path = file.save(tmp_path / "m.tflite")
    data = {"x": RNG.standard_normal((90, 4)).astype(np.float32)}
    pack, warnings = built(path, data, tmp_path, precision="auto")
    assert (pack / "model.tflite").stat().st_size <= path.stat().st_size
    assert any("no layer of the model can be factored" in line for line in warnings)


def test_a_file_in_8_bits_that_was_asked_for_stays_where_it_is_the_larger(tmp_path: Path) -> None:
    file = GivenFile()
    x, y = file.tensor("x", (1, 4)), file.tensor("y", (1, 4))
    file.graph.inputs, file.graph.outputs = [x], [file.op("ABS", [x], y)]
    path = file.save(tmp_path / "m.tflite")
    _, warnings = built(path, {"x": RNG.standard_normal((90, 4)).astype(np.float32)}, tmp_path, precision="int8")
    said = f"the model as it was given {path.stat().st_size}; it is kept, since its options ask for it"
    assert any(said in line for line in warnings)


def test_a_kernel_of_convolutions_that_go_in_different_ways_is_rounded_once(tmp_path: Path) -> None:
    file = convnet(*KERNELS, BIASES)
    inputs = file.graph.operators[0].inputs
    z = file.op("CONV_2D", inputs, file.tensor("z", (1, 3, 3, len(KERNELS[0]))), "Conv2D", strideW=2, strideH=2)
    file.graph.outputs.append(z)
    model = open_model(str(file.save(tmp_path / "m.tflite")), tmp_path)
    assert [layer.shared for layer in model.layers] == [True, False, True]
    files = writer_of(model, samples_of(model, 4), tmp_path)
    assert files.supports(model.layers[0], low_rank_structure(8), INT8_DYNAMIC) is not None
    assert files.supports(model.layers[0], DENSE, INT8_DYNAMIC) is None
    parts = {layer.name: dense(layer.weight / 2, layer.bias) for layer in model.layers}
    assert set(files.takes(parts)) == {model.layers[1].name}
    files.write(files.takes(parts), FileScheme.of(INT8_DYNAMIC), tmp_path / "out.tflite")
    assert len(files.read(tmp_path / "out.tflite").weights) == 2
    mixed = {model.layers[0].name: FP32, model.layers[2].name: INT8_DYNAMIC}
    written = files.write({}, FileScheme.of(INT8_DYNAMIC), tmp_path / "mixed.tflite", mixed)
    assert [written.schemes[name] for name in mixed] == [FP32, FP32]
