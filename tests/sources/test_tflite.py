"""TFLite files as models: what is read of them, however their weights are stored, and what is no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgepack.backends.observation import joined
from edgepack.backends.runtime import load, predict
from edgepack.backends.tflite.quantizer import quantize
from edgepack.backends.tflite.schemes import INT8_DYNAMIC
from edgepack.backends.tflite.tidy import tidy
from edgepack.cli import app
from edgepack.data import Samples
from edgepack.errors import ModelError, UsageError
from edgepack.methods.registry import compress
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, dense, low_rank
from edgepack.model.structure import Structure
from edgepack.model.types import Array
from edgepack.natives import native
from edgepack.sources import open_model
from edgepack.sources.inputs import parse_input
from tests.backends.tflite.given_files import GivenFile, Storage, convnet, integer_layer, mlp, stateful
from tests.contracts.test_kinds import taken_apart

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
RNG = np.random.default_rng(0)
WEIGHTS = [
    (RNG.standard_normal((12, 8)).astype(np.float32), RNG.standard_normal(12).astype(np.float32)),
    (RNG.standard_normal((5, 12)).astype(np.float32), RNG.standard_normal(5).astype(np.float32)),
]
X = RNG.standard_normal((6, 8)).astype(np.float32)
KERNELS = RNG.standard_normal((7, 3, 3, 4)).astype(np.float32), RNG.standard_normal((6, 1, 1, 7)).astype(np.float32)
BIASES = RNG.standard_normal(7).astype(np.float32), RNG.standard_normal(6).astype(np.float32)


def given(file: GivenFile, folder: Path, change: Callable[[Any], None] | None = None) -> Model:
    return open_model(str(file.save(folder / "m.tflite", change)), folder)


def answered(model: Model, x: Array) -> Array:
    session = native("tflite").session(model.content, {}, threads=1)
    return predict(session, Samples({session.inputs[0].name: x}))


@pytest.mark.parametrize("storage", ["float32", "float16", "int8", "hybrid"])
def test_weights_are_what_they_stand_for(storage: Storage, tmp_path: Path) -> None:
    model = given(mlp(WEIGHTS, storage), tmp_path)
    assert [layer.name for layer in model.layers] == ["fc0", "fc1"]
    assert model.fixed is None
    error = {"float32": 0.0, "float16": 1e-3, "int8": 1.1 / 254, "hybrid": 1.1 / 254}[storage]
    for layer, (weight, bias) in zip(model.layers, WEIGHTS, strict=True):
        assert layer.weight.dtype == np.float32
        assert np.abs(layer.weight - weight).max() <= error * np.abs(weight).max()
        np.testing.assert_array_equal(layer.bias, bias)
    first, second = model.layers
    wanted = np.maximum(X @ first.weight.T + first.bias, 0) @ second.weight.T + second.bias
    np.testing.assert_allclose(answered(model, X), wanted, rtol=1e-5, atol=1e-5)


def test_an_old_file_has_its_operators_in_the_old_field(tmp_path: Path) -> None:
    def old(model: Any) -> None:
        for code in model.operatorCodes:
            code.builtinCode = 0

    model = given(mlp(WEIGHTS), tmp_path, old)
    written = GivenFile().schema.ModelT.InitFromPackedBuf(model.content.content)
    assert {code.builtinCode for code in written.operatorCodes} == {9}
    assert [layer.name for layer in model.layers] == ["fc0", "fc1"]


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_watched_patch_by_patch(stride: int, tmp_path: Path) -> None:
    model = given(convnet(*KERNELS, BIASES, stride=stride), tmp_path)
    first, second = model.layers
    assert (first.kind, second.kind) == ("conv", "linear")
    np.testing.assert_array_equal(first.weight.reshape(7, 4, 3, 3), KERNELS[0].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(second.weight, KERNELS[1].reshape(6, 7))
    images = RNG.standard_normal((2, 6, 6, 4)).astype(np.float32)
    seen = native("tflite").observe(model.content, ["conv0", "conv1"], threads=1)
    rows = list(seen.rows(Samples({"image": images})))
    patches, between = (np.concatenate([run[joined(seen.keys[name])] for run in rows]) for name in ("conv0", "conv1"))
    np.testing.assert_allclose(np.maximum(patches @ first.weight.T + first.bias, 0), between, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        between @ second.weight.T + second.bias, answered(model, images).reshape(-1, 6), rtol=1e-4, atol=1e-4
    )
    counts = seen.row_counts({"image": images[:1]})
    assert set(counts.values()) == {(6 // stride) ** 2}


def test_factors_of_a_convolution_keep_its_activation_behind_both(tmp_path: Path) -> None:
    """At full rank the answers stay: the first of the two has strides and padding, the second bias and activation."""
    model = given(convnet(*KERNELS, BIASES, stride=2), tmp_path)
    layer = model.layers[0]
    u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
    parts = {layer.name: low_rank((u * s).astype(np.float32), v.astype(np.float32), layer.bias)}
    images = RNG.standard_normal((2, 6, 6, 4)).astype(np.float32)
    session = native("tflite").session(model.content, parts, threads=1)
    np.testing.assert_allclose(
        predict(session, Samples({"image": images})), answered(model, images), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "structure",
    [
        Structure("spatial-svd", (3,)),
        Structure("input-svd", (3,)),
        Structure("tucker-2", (3, 4)),
        Structure("cp", (5,)),
    ],
    ids=str,
)
def test_a_kernel_taken_apart_answers_as_what_it_comes_to(structure: Structure, tmp_path: Path) -> None:
    model = given(convnet(*KERNELS, BIASES, stride=2), tmp_path)
    layer = model.layers[0]
    view = views_of([layer])[0]
    part = compress("cp", view, 0.5) if structure.name == "cp" else taken_apart(view, structure)
    assert isinstance(part, Replacement)
    whole = dense(kind_of(layer).effective(layer, part)["weight"], part.bias)
    images = Samples({"image": RNG.standard_normal((2, 6, 6, 4)).astype(np.float32)})
    found, wanted = (
        predict(native("tflite").session(model.content, {layer.name: each}, threads=1), images)
        for each in (part, whole)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_one_weight_in_two_places_is_one_layer(tmp_path: Path) -> None:
    file = mlp([(WEIGHTS[0][0][:8], WEIGHTS[0][1][:8]), (WEIGHTS[0][0][:8], WEIGHTS[0][1][:8])])
    file.graph.operators[1].inputs[1:] = file.graph.operators[0].inputs[1:]
    model = given(file, tmp_path)
    assert [(layer.name, layer.uses) for layer in model.layers] == [("fc0", 2)]
    seen = native("tflite").observe(model.content, ["fc0"], threads=1)
    (rows,) = next(seen.rows(Samples({"pixels": X[:1]}))).values()
    assert rows.shape == (2, 8), "the vectors of both places"


def test_a_weight_that_is_an_output_too_is_left_alone(tmp_path: Path) -> None:
    file = mlp(WEIGHTS)
    file.graph.outputs.append(file.graph.operators[1].inputs[1])
    assert [layer.name for layer in given(file, tmp_path).layers] == ["fc0"]


def test_integers_are_read_as_what_they_are(tmp_path: Path) -> None:
    weight = WEIGHTS[0][0]
    model = given(integer_layer(weight), tmp_path)
    (layer,) = model.layers
    assert model.in_integers
    np.testing.assert_allclose(layer.weight, weight, atol=np.abs(weight).max() / 250)
    codes = RNG.integers(-128, 128, (1, 8)).astype(np.int8)
    seen = native("tflite").observe(model.content, ["fc"], threads=1)
    (rows,) = next(seen.rows(Samples({"x": codes}))).values()
    np.testing.assert_allclose(rows, (codes.astype(np.float32) + 3) * 0.05, rtol=1e-6)
    found = CliRunner().invoke(app, ["inspect", str(tmp_path / "m.tflite")])
    assert found.exit_code == 0, found.stderr
    assert "compute in int8" in " ".join(found.stdout.split())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    bad = WEIGHTS[0][0].copy()
    bad[2, 3] = value
    with pytest.raises(ModelError, match=r"m\.tflite: 'fc0' holds NaN or infinity") as caught:
        given(mlp([(bad, WEIGHTS[0][1]), WEIGHTS[1]]), tmp_path)
    assert caught.value.hint


def cyclic(model: Any) -> None:
    first, second = model.subgraphs[0].operators
    first.inputs[0] = second.outputs[0]


def far_tensor(model: Any) -> None:
    model.subgraphs[0].operators[1].inputs[1] = 10**6


def far_buffer(model: Any) -> None:
    model.subgraphs[0].tensors[1].buffer = 99


def far_code(model: Any) -> None:
    model.subgraphs[0].operators[0].opcodeIndex = 7


def far_output(model: Any) -> None:
    model.subgraphs[0].outputs = [-1]


def short_buffer(model: Any) -> None:
    buffer = model.buffers[model.subgraphs[0].tensors[1].buffer]
    buffer.data = buffer.data[:-4]


def long_offset(model: Any) -> None:
    buffer = model.buffers[model.subgraphs[0].tensors[1].buffer]
    buffer.data, buffer.offset, buffer.size = None, 64, 2**40


def huge(model: Any) -> None:
    model.subgraphs[0].tensors[0].shape = [2**31 - 1] * 4


def negative(model: Any) -> None:
    model.subgraphs[0].tensors[0].shape = [1, -8]


def endless(model: Any) -> None:
    schema = GivenFile().schema
    operator = model.subgraphs[0].operators[0]
    operator.builtinOptionsType = schema.BuiltinOptions.CallOnceOptions
    operator.builtinOptions = schema.CallOnceOptionsT()
    operator.builtinOptions.initSubgraphIndex = 0


def endless_composite(model: Any) -> None:
    schema = GivenFile().schema
    operator = model.subgraphs[0].operators[0]
    operator.builtinOptions2Type = schema.BuiltinOptions2.StableHLOCompositeOptions
    operator.builtinOptions2 = schema.StableHLOCompositeOptionsT()
    operator.builtinOptions2.name, operator.builtinOptions2.decompositionSubgraphIndex = "own", 0


def many_axes(model: Any) -> None:
    model.subgraphs[0].tensors[0].shape = [1] * 33


def few_inputs(model: Any) -> None:
    model.subgraphs[0].operators[0].inputs = [0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (few_inputs, "index out of range"),
        (cyclic, "circle"),
        (far_tensor, "not there"),
        (far_buffer, "buffer 99"),
        (far_code, "kind 7"),
        (far_output, "not there"),
        (short_buffer, "where its shape needs"),
        (long_offset, "a buffer ends at byte"),
        (huge, "at most 2147483647 numbers"),
        (negative, r"shape \(1, -8\)"),
        (endless, "run each other in a circle"),
        (endless_composite, "run each other in a circle"),
        (many_axes, "33 axes, at most 32"),
    ],
)
def test_a_file_that_lies_is_refused(change: Callable[[Any], None], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"m\.tflite: a damaged or truncated TFLite file \(.*{said}") as caught:
        given(mlp(WEIGHTS), tmp_path, change)
    assert caught.value.hint
    found = CliRunner().invoke(app, ["inspect", str(tmp_path / "m.tflite")])
    assert found.exit_code == 3
    assert found.stdout == ""


def test_what_the_runtime_refuses_is_said_with_the_name_of_the_file(tmp_path: Path) -> None:
    def unknown(model: Any) -> None:
        model.operatorCodes[0].builtinCode = 32
        model.operatorCodes[0].deprecatedBuiltinCode, model.operatorCodes[0].customCode = 32, b"Frobnicate"

    with pytest.raises(
        ModelError, match=r"m\.tflite: Frobnicate is a custom operator that LiteRT does not have"
    ) as caught:
        given(mlp(WEIGHTS), tmp_path, unknown)
    assert caught.value.hint


def test_another_identifier_is_no_tflite_file(tmp_path: Path) -> None:
    path = mlp(WEIGHTS).save(tmp_path / "m.tflite")
    path.write_bytes(path.read_bytes().replace(b"TFL3", b"TFL9"))
    with pytest.raises(ModelError, match=r"identifier b'TFL9', expected b'TFL3'"):
        open_model(str(path), tmp_path)


def test_one_table_named_many_times_over_is_refused(tmp_path: Path) -> None:
    """Small files could have more entries than anybody can read."""
    import flatbuffers

    file, count = mlp(WEIGHTS), 300
    schema, builder = file.schema, flatbuffers.Builder(1024)
    graph = file.graph.Pack(builder)
    schema.ModelStartSubgraphsVector(builder, count)
    for _ in range(count):
        builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    (path := tmp_path / "m.tflite").write_bytes(builder.Output())
    with pytest.raises(ModelError, match=r"entries or more in \d+ bytes"):
        open_model(str(path), tmp_path)


@pytest.mark.parametrize("coupled", [False, True], ids=["four gates", "coupled gates"])
def test_an_inference_sees_nothing_of_the_one_before(coupled: bool, tmp_path: Path) -> None:
    model = given(stateful(16, coupled), tmp_path)
    assert [layer.name for layer in model.layers] == ["head"] if coupled else ["w0", "head"]
    x = RNG.standard_normal((1, 4, 8)).astype(np.float32)
    one, *others = answered(model, np.concatenate([x] * 3))
    for other in others:
        np.testing.assert_array_equal(one, other)
    (source := tmp_path / "source.tflite").write_bytes(model.content.content)
    quantize(source, tmp_path / "int8.tflite", INT8_DYNAMIC)
    session = load(tmp_path / "int8.tflite", "tflite")
    for _ in range(2):
        np.testing.assert_allclose(session.run({"x": x})[0], one, atol=0.05)


def test_an_operator_that_gives_nothing_is_no_damage(tmp_path: Path) -> None:
    """Variables are assigned by operators without outputs."""
    file = mlp(WEIGHTS)
    handle = file.op("VAR_HANDLE", [], file.tensor("handle", (), "resource"), "VarHandle", sharedName="state")
    file.op("ASSIGN_VARIABLE", [handle, file.graph.inputs[0]], handle, "AssignVariable")
    file.graph.operators[-1].outputs = []
    for code in file.model.operatorCodes[-2:]:
        code.version = 1
    assert [layer.name for layer in given(file, tmp_path).layers] == ["fc0", "fc1"]


def test_what_is_empty_may_be_left_out(tmp_path: Path) -> None:
    file = mlp(WEIGHTS)
    scalar = file.tensor("scalar", (), "float32", np.float32(2))
    file.graph.tensors[scalar].shape = None
    y = file.op("MUL", [file.graph.outputs[0], scalar], file.tensor("twice", (1, 5)), "Mul")
    file.graph.outputs = [y]
    model = given(file, tmp_path)
    (path := tmp_path / "own.tflite").write_bytes(model.content.content)
    tidy(path, notes=True)
    np.testing.assert_allclose(predict(load(path, "tflite"), Samples({"pixels": X})), answered(model, X), rtol=1e-6)


def test_layers_that_cannot_be_watched_stay_as_they_are(tmp_path: Path) -> None:
    """LiteRT's own kernels lack this operator: a delegate alone runs it."""
    first, second = np.ones((8, 3, 3, 4), np.float32), np.ones((4, 1, 1, 8), np.float32)
    file = convnet(first, second, (np.zeros(8, np.float32), np.zeros(4, np.float32)))
    kernel, bias = np.ones((3, 2, 2, 4), np.float32), np.zeros(3, np.float32)
    inputs = [
        *file.graph.outputs,
        file.tensor("k", kernel.shape, "float32", kernel),
        file.tensor("b", (3,), "float32", bias),
    ]
    file.graph.outputs = [file.op("CUSTOM", inputs, file.tensor("y", (1, 12, 12, 3)))]
    file.model.operatorCodes[-1].customCode = b"Convolution2DTransposeBias"
    file.graph.operators[-1].customOptions = np.array([1, 2, 2], np.int32).view(np.uint8)  # padding, strides
    opened = open_model(str(file.save(tmp_path / "m.tflite")), tmp_path)
    assert opened.layers == ()
    assert opened.left is not None
    assert "Convolution2DTransposeBias" in opened.left


def test_old_numbers_of_metadata_point_nowhere_and_are_left_out(tmp_path: Path) -> None:
    """As in MediaPipe's sparse face detector, which its runtimes load."""
    file = mlp([(np.ones((16, 16), np.float32), np.zeros(16, np.float32))], "float16")
    file.model.metadataBuffer = [1, 579]
    assert len(open_model(str(file.save(tmp_path / "m.tflite")), tmp_path).layers) == 1


def left_open(model: Any) -> None:
    """Both spatial axes of the image, which is 1×1 in the file."""
    graph = model.subgraphs[0]
    for tensor in (graph.tensors[i] for i in (0, *(int(op.outputs[0]) for op in graph.operators))):
        tensor.shape = [1, 1, 1, tensor.shape[-1]]
        tensor.shapeSignature = [1, -1, -1, tensor.shape[-1]]


def test_open_sides_are_given(tmp_path: Path) -> None:
    path = convnet(*KERNELS, BIASES).save(tmp_path / "m.tflite", left_open)
    fixed = open_model(str(convnet(*KERNELS, BIASES).save(tmp_path / "fixed.tflite")), tmp_path)
    opened = open_model(str(path), tmp_path, given=[parse_input("image=1x6x6x4")])
    assert [spec.shape for spec in opened.inputs] == [(1, 6, 6, 4)]
    images = RNG.standard_normal((2, 6, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(answered(opened, images), answered(fixed, images), rtol=1e-4, atol=1e-4)
    assert native("tflite").macs(opened.content, {}) == native("tflite").macs(fixed.content, {})
    written = GivenFile().schema.ModelT.InitFromPackedBuf(opened.content.source).subgraphs[0].tensors[0]
    assert list(written.shapeSignature) == [1, -1, -1, 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [("image=1x6x6x3", r"the model takes 1x\?x\?x4"), ("x=1x6", "no such input"), ("image=1x6x6x4:int8", "float32")],
)
def test_sides_that_are_not_open(text: str, says: str, tmp_path: Path) -> None:
    path = convnet(*KERNELS, BIASES).save(tmp_path / "m.tflite", left_open)
    with pytest.raises(UsageError, match=says):
        open_model(str(path), tmp_path, given=[parse_input(text)])
