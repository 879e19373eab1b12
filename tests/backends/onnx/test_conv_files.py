"""Files of models with convolutions: which kernels they get, dense and factored, in every scheme of a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.contents import read_contents
from edgepack.backends.onnx.file import load
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, WEIGHTS4, WEIGHTS8
from edgepack.backends.onnx.session import session
from edgepack.backends.onnx.sites import find_sites
from edgepack.backends.onnx.split import split_onnx
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.runtime import load as load_session
from edgepack.backends.segments import LayerShape
from edgepack.data import Samples
from edgepack.metrics.values import sqnr_db
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement, constexpr, dense, low_rank
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import DENSE, Structure
from edgepack.model.structure import low_rank as low_rank_of
from edgepack.model.types import LayerPlan
from edgepack.natives.onnx import OnnxNative
from edgepack.pipeline.verify import biases_intact, structures_kept, weights_as_planned
from tests.backends.onnx.graph_models import info, model, normal
from tests.contracts.test_kinds import taken_apart
from tests.pipeline.small_convnet import images, write_convnet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

RANK = 16
FACTORED = ("k2", "k3")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_convnet(tmp_path_factory.mktemp("convnet"))


@pytest.fixture(scope="module")
def writer(path: Path) -> OnnxWriter:
    return OnnxWriter(load(path), Samples({"x": images(64, 5)[0]}), qmax=127)


def factors(writer: OnnxWriter) -> dict[str, Replacement]:
    """Of the layers that are worth it, by SVD."""
    found = {}
    for site in find_sites(writer.model.clone()):
        if site.layer.name in FACTORED:
            u, s, v = np.linalg.svd(site.layer.weight, full_matrices=False)
            found[site.layer.name] = low_rank(u[:, :RANK] * s[:RANK], v[:RANK], site.layer.bias)
    assert set(found) == set(FACTORED)
    return found


def plans(writer: OnnxWriter, parts: dict[str, Replacement], schemes: dict[str, Scheme]) -> tuple[LayerPlan, ...]:
    found = []
    for site in find_sites(writer.model.clone()):
        layer, kind = site.layer, kind_of(site.layer)
        structure = low_rank_of(RANK) if layer.name in parts else DENSE
        ops, whole = kind.ops(layer, structure, 1), kind.ops(layer, DENSE, 1)
        found.append(LayerPlan(layer.name, whole, structure, ops, 0, 0.0, "", scheme=schemes.get(layer.name)))
    return tuple(found)


def kernels(path: Path, folder: Path) -> Counter[str]:
    """Operators of the runtime's graph."""
    session(path, optimized_path=folder / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("with_factors", [False, True], ids=["dense", "factored"])
@pytest.mark.parametrize(
    ("file", "own", "integer"),
    [
        (FileScheme.of(FP32), FP32, False),
        (FileScheme(INT8_DYNAMIC, WEIGHTS8), WEIGHTS8, False),
        (FileScheme(INT8_DYNAMIC, WEIGHTS8), WEIGHTS4, False),
        (FileScheme(NBITS4, WEIGHTS8), None, False),
        (FileScheme(INT8_STATIC, WEIGHTS8), WEIGHTS8, False),
        (FileScheme.of(INT8_STATIC), WEIGHTS8, True),
        (FileScheme.of(INT8_STATIC), None, True),
    ],
    ids=lambda value: str(value),
)
def test_a_file_is_proved_and_has_the_kernels_of_its_scheme(
    writer: OnnxWriter, file: FileScheme, own: Scheme | None, integer: bool, with_factors: bool, tmp_path: Path
) -> None:
    parts = factors(writer) if with_factors else {}
    schemes = {} if own is None else dict.fromkeys(("k1", "k2", "k3"), own)
    written = writer.write(parts, file, tmp_path / "m.onnx", schemes)
    got = {**schemes, **written.schemes}
    expected = INT8_STATIC if integer else own or WEIGHTS8
    assert got == {"k1": FP32 if own is None and not integer else expected, "k2": expected, "k3": expected}
    plan = plans(writer, parts, got)
    emitted = writer.read(tmp_path / "m.onnx")
    for proof in (
        structures_kept(emitted, writer.read_optimized(tmp_path / "m.onnx"), written, plan),
        weights_as_planned(emitted, writer.dense_contents, plan, file),
        biases_intact(
            emitted, {s.layer.name: s.layer.bias for s in find_sites(writer.model.clone()) if s.layer.bias is not None}
        ),
    ):
        assert proof.passed, proof
    x = images(32, 6)[0]
    reference, answers = tmp_path / "reference.onnx", []
    writer.write(parts, FileScheme.of(FP32), reference)
    for one in (tmp_path / "m.onnx", reference):
        answers.append(load_session(one, "onnx").run({"x": x})[0])
    assert sqnr_db(*answers) > min(each.min_sqnr_db for each in (*file.schemes, expected))
    found = kernels(tmp_path / "m.onnx", tmp_path)
    assert bool(found["QLinearConv"]) == integer
    assert bool(found["Conv"] + found["FusedConv"]) != integer
    assert found["QLinearConv"] + found["Conv"] + found["FusedConv"] == (5 if with_factors else 3)


@pytest.mark.parametrize("with_factors", [False, True], ids=["dense", "factored"])
def test_files_in_float16_have_8_bits_and_are_proved(path: Path, with_factors: bool, tmp_path: Path) -> None:
    half = onnx.load(path)
    for one in half.graph.initializer:
        one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float16), one.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del half.graph.value_info[:]
    onnx.save(half, tmp_path / "half.onnx")
    writer = OnnxWriter(load(tmp_path / "half.onnx"), None, qmax=127)
    parts, file = factors(writer) if with_factors else {}, FileScheme(INT8_DYNAMIC, WEIGHTS8)
    for schemes in ({}, dict.fromkeys(("k1", "k2", "k3"), WEIGHTS8)):
        written = writer.write(parts, file, tmp_path / "m.onnx", schemes)
        emitted = writer.read(tmp_path / "m.onnx")
        plan = plans(writer, parts, {**schemes, **written.schemes})
        proof = structures_kept(emitted, writer.read_optimized(tmp_path / "m.onnx"), written, plan)
        assert proof.passed, proof
    assert {bits for *_, bits in emitted.weights} == {8}
    x = images(32, 6)[0].astype(np.float16)
    answers = [
        load_session(tmp_path / name, "onnx").run({"x": x})[0].astype(np.float32) for name in ("m.onnx", "half.onnx")
    ]
    assert sqnr_db(*answers) > (8 if with_factors else 25)


def test_rounded_weights_are_those_of_the_file(writer: OnnxWriter, tmp_path: Path) -> None:
    layer = next(site.layer for site in find_sites(writer.model.clone()) if site.layer.name == "k3")
    assert layer.bias is not None
    weight, bias = np.round(layer.weight, 2).astype(np.float32), layer.bias + 1
    for file in (FileScheme(INT8_DYNAMIC, WEIGHTS8), FileScheme.of(INT8_STATIC)):
        writer.write({"k3": dense(weight, bias)}, file, tmp_path / "m.onnx", {"k3": WEIGHTS8})
        assert biases_intact(writer.read(tmp_path / "m.onnx"), {"k3": bias}).passed


def test_the_runtimes_baseline_has_every_weight_in_8_bits(writer: OnnxWriter, tmp_path: Path) -> None:
    for scheme in (INT8_DYNAMIC, INT8_STATIC):
        assert writer.write_baseline(scheme, tmp_path / "m.onnx") == "onnxruntime"
        assert {bits for *_, bits in read_contents(tmp_path / "m.onnx").weights} == {8}


def test_code_is_for_linear_layers(writer: OnnxWriter) -> None:
    assert writer.takes({"k2": constexpr({}, (), np.zeros((48, 216), np.float32), None)}) == {}


def test_a_factored_convolution_is_one_segment(writer: OnnxWriter, tmp_path: Path) -> None:
    parts = factors(writer)
    writer.write(
        parts, FileScheme(INT8_DYNAMIC, WEIGHTS8), tmp_path / "m.onnx", dict.fromkeys(("k1", *parts), WEIGHTS8)
    )
    shapes = [
        LayerShape(s.layer.name, s.layer.out_features, s.layer.in_features, RANK if s.layer.name in parts else None)
        for s in find_sites(writer.model.clone())
    ]
    segments = split_onnx(tmp_path / "m.onnx", shapes, tmp_path)
    assert [segment.name for segment in segments if segment.layer] == ["k1", "k2", "k3", "head"]
    x = images(1, 7)[0]
    values = {"x": x}
    for segment in segments:
        opened = session(segment.path)
        names = [value.name for value in opened.get_outputs()]
        fed = {value.name: values[value.name] for value in opened.get_inputs()}
        values |= dict(zip(names, opened.run(names, fed), strict=True))
    (whole,) = session(tmp_path / "m.onnx").run(None, {"x": x})
    np.testing.assert_allclose(values["scores"], whole, atol=1e-4)


def test_a_kernel_taken_apart_is_one_segment(writer: OnnxWriter, tmp_path: Path) -> None:
    layers = {site.layer.name: site.layer for site in find_sites(writer.model.clone())}
    chosen = {"k2": Structure("spatial-svd", (8,)), "k3": Structure("tucker-2", (16, 24))}
    parts = {name: taken_apart(views_of([layers[name]])[0], structure) for name, structure in chosen.items()}
    writer.write(parts, FileScheme.of(FP32), tmp_path / "m.onnx")

    def shape(layer: Layer) -> LayerShape:
        ops = kind_of(layer).ops(layer, chosen.get(layer.name, DENSE), 1)
        products = tuple((op.rows, op.inputs) for op in ops) if layer.name in chosen else ()
        return LayerShape(layer.name, layer.out_features, layer.in_features, None, products=products)

    segments = split_onnx(tmp_path / "m.onnx", [shape(layer) for layer in layers.values()], tmp_path)
    assert [segment.name for segment in segments if segment.layer] == ["k1", "k2", "k3", "head"]
    (third,) = (segment.path for segment in segments if segment.name == "k3")
    assert Counter(node.op_type for node in onnx.load(third).graph.node) == {"Conv": 3, "Relu": 1}


def test_a_normalization_that_the_runtime_folds_into_the_second_product(tmp_path: Path) -> None:
    constants = {"k": normal(32, 16, 3, 3), "b": normal(32, seed=1), "fc": normal(8, 32, seed=2)}
    constants |= {name: np.abs(normal(32, seed=3)) + 1 for name in ("gain", "variance")}
    constants |= {name: normal(32, seed=4) for name in ("shift", "mean")}
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc"], ["y"], transB=1),
    ]
    source = model(nodes, [info("x", ["N", 16, 8, 8])], [info("y", ["N", 8])], constants)
    made = OnnxWriter(source, None, qmax=127)
    layer = next(site.layer for site in find_sites(source.clone()) if site.layer.name == "k")
    u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
    parts = {"k": low_rank(u[:, :RANK] * s[:RANK], v[:RANK], layer.bias)}
    file = FileScheme(INT8_DYNAMIC, WEIGHTS8)
    written = made.write(parts, file, tmp_path / "m.onnx", {"k": WEIGHTS8})
    plan = plans(made, parts, {"k": WEIGHTS8})
    emitted, optimized = made.read(tmp_path / "m.onnx"), made.read_optimized(tmp_path / "m.onnx")
    assert structures_kept(emitted, optimized, written, plan).passed
    made.write({}, file, tmp_path / "dense.onnx", {"k": WEIGHTS8})
    lost = structures_kept(emitted, made.read_optimized(tmp_path / "dense.onnx"), written, plan)
    assert set(lost.layers) == {"k"}


def test_a_reference_has_another_weight_in_its_place(writer: OnnxWriter) -> None:
    layer = next(site.layer for site in find_sites(writer.model.clone()) if site.layer.name == "k3")
    assert layer.bias is not None
    x = images(8, 8)[0]
    (wanted,) = session(writer.model).run(None, {"x": x})
    same, other = dense(layer.weight.copy(), layer.bias), dense(layer.weight, layer.bias + 1)
    answers = [OnnxNative().session(writer.model, {"k3": part}, threads=1).run({"x": x})[0] for part in (same, other)]
    np.testing.assert_allclose(answers[0], wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(answers[1] - wanted).max() > 0.01


def test_a_kernel_of_convolutions_that_go_in_different_ways_is_stored_once(tmp_path: Path) -> None:
    ends = (("y", 1), ("z", 2))
    source = model(
        [helper.make_node("Conv", ["x", "k"], [y], name=f"to_{y}", strides=[step, step]) for y, step in ends],
        [info("x", [1, 32, 9, 9])],
        [info(y, None) for y, _ in ends],
        {"k": normal(32, 32, 3, 3)},
    )
    shared = OnnxWriter(source, None, qmax=127)
    layers = [site.layer for site in find_sites(source.clone())]
    assert [layer.shared for layer in layers] == [True, True]
    reason = shared.supports(layers[0], low_rank_of(8), WEIGHTS8)
    assert reason == "other layers have the same weight, which is stored once for all of them"
    assert shared.supports(layers[0], DENSE, WEIGHTS4) == reason
    assert shared.supports(layers[0], DENSE, WEIGHTS8) is None
    assert shared.takes({layer.name: dense(layer.weight / 2, None) for layer in layers}) == {}
    scheme = FileScheme(INT8_DYNAMIC, WEIGHTS8)
    written = shared.write({}, scheme, tmp_path / "m.onnx", dict.fromkeys((one.name for one in layers), WEIGHTS8))
    assert read_contents(tmp_path / "m.onnx").weights == ((32, 288, 8),)
    plan = tuple(replace(one, scheme=written.schemes[one.layer]) for one in plans(shared, {}, {}))
    assert weights_as_planned(shared.read(tmp_path / "m.onnx"), shared.dense_contents, plan, scheme).passed
