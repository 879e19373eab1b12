"""A pair beside a dense matrix in 4 bits: on its grids, in the file to the bit, chosen where neither alone will do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.contents import read_contents
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, NBITS4, NBITS8
from edgepack.backends.onnx.split import split_onnx
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.runtime import load
from edgepack.backends.segments import LayerShape
from edgepack.cost.layer_files import layer_files
from edgepack.cost.measure import points_for
from edgepack.cost.measured import (
    Entry,
    Fingerprint,
    MeasuredTable,
    known_measured,
    load_measured,
    measured_path,
    save_measured,
)
from edgepack.errors import InputError, ModelError
from edgepack.factorize import whitened
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model import structure
from edgepack.model.kinds import views_of
from edgepack.model.layer import View
from edgepack.model.point import linear_point_in
from edgepack.model.replacement import Replacement, low_rank, low_rank_correction
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.statistics import moments
from edgepack.model.structure import Structure
from edgepack.model.types import Array, LayerPlan, Moments
from edgepack.pack.facts import facts_of
from edgepack.pipeline import verify
from edgepack.pipeline.build import build
from edgepack.pipeline.rounding import Correction, Rounder, rounded_correction
from edgepack.quantize.gptq import gptq, row_errors
from edgepack.quantize.grids import WeightGrid, block_for, dequantize_blocks, quantize_blocks, unpack
from edgepack.sources.onnx import OnnxSource, open_onnx
from edgepack.workspace import Cache, Workspace
from tests.linear_plans import linear_plan
from tests.pipeline.small_builds import options

OUT, IN, RANK = 96, 160, 8
BESIDE = structure.low_rank_correction(RANK)
STRONG, DIRECTIONS, SMALL = 60.0, 4, 0.03


def strong_layer(out: int = OUT, features: int = IN) -> tuple[Array, Array]:
    """A weight with a few strong directions, and inputs (1500, in) that hardly vary along them.

    Rounding to 4 bits takes its steps from what matters little, and no pair of a low rank holds the flat rest.
    """
    rng = np.random.default_rng(4)
    u = np.linalg.qr(rng.normal(size=(out, DIRECTIONS)))[0]
    v = np.linalg.qr(rng.normal(size=(features, DIRECTIONS)))[0]
    weight = rng.normal(size=(out, features)) / np.sqrt(features) + STRONG * u @ v.T
    x = rng.normal(size=(1500, features))
    x -= (1 - SMALL) * (x @ v) @ v.T
    return weight.astype(np.float32), x.astype(np.float32)


def write_model(path: Path, weight: Array) -> Path:
    bias = np.random.default_rng(5).normal(size=len(weight)).astype(np.float32) * 0.1
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("x", weight.shape[1]), ("y", weight.shape[0]))
    ]
    constants = [numpy_helper.from_array(np.ascontiguousarray(weight), "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], "strong", ends[:1], ends[1:], constants
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxSource:
    return open_onnx(write_model(tmp_path_factory.mktemp("strong") / "strong.onnx", strong_layer()[0]))


@pytest.fixture(scope="module")
def seen() -> Moments:
    return moments([{"x": strong_layer()[1]}])["x"]


@pytest.fixture(scope="module")
def layer(source: OnnxSource) -> View:
    return views_of(source.layers)[0]


@pytest.fixture(scope="module")
def made(layer: View, seen: Moments) -> Replacement:
    return rounded_correction(Correction(layer, seen, NBITS4, RANK, 0))


def error(layer: View, made: Replacement, covariance: Array) -> float:
    whole = made.base.astype(np.float64) + made.A.astype(np.float64) @ made.B
    return float(row_errors(whole - layer.weight, covariance).sum())


def test_every_matrix_is_on_its_grid(made: Replacement) -> None:
    for weight, bits in ((made.base, 4), (made.A, 8), (made.B, 8)):
        codes, scales = quantize_blocks(weight, bits, block_for(weight.shape[1]))
        np.testing.assert_array_equal(dequantize_blocks(codes, scales, weight.shape[1]), weight)


def test_it_loses_far_less_than_the_matrix_alone(layer: View, seen: Moments, made: Replacement) -> None:
    covariance = shrunk_covariance(seen)
    alone = gptq(layer.weight, covariance, WeightGrid(7, 32)).weight - layer.weight
    found = error(layer, made, covariance)
    assert found < 0.1 * float(row_errors(alone, covariance).sum())
    assert found < 0.2 * error(layer, nearest(wrong(layer)), covariance)


def wrong(layer: View) -> Replacement:
    """The layer with the wrong pair beside its matrix: random directions."""
    q = np.linalg.qr(np.random.default_rng(6).normal(size=(OUT, RANK)))[0].astype(np.float32)
    return low_rank_correction(q, q.T @ layer.weight, layer.bias, layer.weight - q @ (q.T @ layer.weight))


def nearest(draft: Replacement) -> Replacement:
    rounded = [
        dequantize_blocks(*quantize_blocks(weight, bits, block_for(weight.shape[1])), weight.shape[1])
        for weight, bits in ((draft.A, 8), (draft.B, 8), (draft.base, 4))
    ]
    return low_rank_correction(rounded[0], rounded[1], draft.bias, rounded[2])


def test_the_mean_answer_stays_and_the_seed_decides(layer: View, seen: Moments, made: Replacement) -> None:
    assert layer.bias is not None
    assert made.bias is not None
    answer = made.base @ seen.mean + made.A @ (made.B @ seen.mean) + made.bias
    np.testing.assert_allclose(answer, layer.weight @ seen.mean + layer.bias, atol=1e-4)
    again, other = (rounded_correction(Correction(layer, seen, NBITS4, RANK, seed)) for seed in (0, 1))
    np.testing.assert_array_equal(again.base, made.base)
    np.testing.assert_array_equal(again.B, made.B)
    assert not np.array_equal(other.B, made.B)


def test_the_file_holds_it_to_the_bit_and_answers_like_it(
    source: OnnxSource, made: Replacement, tmp_path: Path
) -> None:
    path, x = tmp_path / "m.onnx", strong_layer()[1][:20]
    OnnxWriter(source.model, None, qmax=127).write({"w": made}, FileScheme.of(NBITS4), path)
    stored = {array.name: numpy_helper.to_array(array) for array in onnx.load(path).graph.initializer}
    for name, bits, weight in (("w.base", 4, made.base), ("w.B", 8, made.B), ("w.A", 8, made.A)):
        held = dequantize_blocks(unpack(stored[f"{name}.int{bits}"], bits), stored[f"{name}.scale"], weight.shape[1])
        np.testing.assert_array_equal(held, weight)
    expected = x @ made.base.T + (x @ made.B.T) @ made.A.T + made.bias
    (found,) = load(path, "onnx").run({"x": x})
    # The kernels round their inputs to 8 bits, block by block, also along the strong directions.
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
    (dense,) = load(write_model(tmp_path / "d.onnx", strong_layer()[0]), "onnx").run({"x": x})
    assert np.linalg.norm(found - dense) < 0.15 * np.linalg.norm(dense)


def plan_of(scheme: Scheme = NBITS4, way: Structure = BESIDE) -> tuple[LayerPlan, ...]:
    return (linear_plan("w", OUT, IN, way, 59, 0.0, "", scheme=scheme),)


def test_the_proofs_hold_and_can_fail(source: OnnxSource, made: Replacement, tmp_path: Path) -> None:
    files, path = OnnxWriter(source.model, None, qmax=127), tmp_path / "m.onnx"
    files.write_dense(tmp_path / "dense.onnx")
    dense = files.read(tmp_path / "dense.onnx")
    written = files.write({"w": made}, FileScheme.of(NBITS4), path)
    kept = verify.structures_kept(files.read(path), files.read_optimized(path), written, plan_of())
    assert (kept.passed, kept.detail) == (True, "3 products of factored layers in the runtime's graph")
    planned = verify.weights_as_planned(files.read(path), dense, plan_of(), FileScheme.of(NBITS4))
    elements, size = OUT * IN + RANK * (OUT + IN), OUT * IN // 2 + RANK * (OUT + IN)
    assert (planned.passed, planned.detail) == (
        True,
        f"{elements} matrix elements, {elements} planned, {size} bytes",
    )
    # The same file is no proof of a pair alone: the dense matrix is there.
    for other in (plan_of(NBITS8, structure.low_rank(RANK)), plan_of(NBITS4, structure.DENSE)):
        assert not verify.weights_as_planned(files.read(path), dense, other, FileScheme.of(NBITS4)).passed
    # And a pair alone is no proof of a matrix with a pair.
    written = files.write({"w": low_rank(made.A, made.B, made.bias)}, FileScheme.of(NBITS8), path)
    kept = verify.structures_kept(files.read(path), files.read_optimized(path), written, plan_of())
    assert (kept.passed, kept.detail) == (False, f"w: no product with {OUT}×{IN}")
    # Nor is one with its halves in 4 bits.
    narrow = OnnxWriter(with_factors(source.model, {"w": made}), None, qmax=127)
    narrow.write({}, FileScheme.of(NBITS4), path)
    planned = verify.weights_as_planned(files.read(path), dense, plan_of(), FileScheme.of(NBITS4))
    assert "in fewer bits" in planned.detail


def test_a_reference_of_it_is_exact(source: OnnxSource, made: Replacement, tmp_path: Path) -> None:
    x = strong_layer()[1][:5]
    OnnxWriter(source.model, None, qmax=127).write({"w": made}, FileScheme.of(FP32), tmp_path / "m.onnx")
    (found,) = load(tmp_path / "m.onnx", "onnx").run({"x": x})
    whole = made.base.astype(np.float64) + made.A.astype(np.float64) @ made.B
    np.testing.assert_allclose(found, x @ whole.T + made.bias, atol=1e-4)


def test_a_build_in_int4_takes_it_where_neither_alone_will_do(tmp_path: Path) -> None:
    """Agreement of a hundred answers, most of them close: the matrix alone and every pair alone lose most of it."""
    weight, x = strong_layer()
    model = write_model(tmp_path / "strong.onnx", weight)
    np.savez(tmp_path / "data.npz", x=x)
    chosen = options(model, precision="int4", max_drop=20.0, out=tmp_path / "pack")
    found = build(chosen, cache=Cache(tmp_path / "cache")).manifest.record()
    entry = found["files"]["model.onnx"]
    (layer,) = entry["layers"]
    assert (layer["scheme"], layer["rank"]) == (NBITS4.name, 8)
    assert layer["structure"] == BESIDE.name
    assert layer["lost_energy_share"] == 0.0
    assert layer["reason"].startswith("dense nbits4 + rank 8 nbits8: ")
    assert all(proof["passed"] for proof in entry["proofs"].values())
    predicted = layer["predicted"]["size_bytes"]
    assert abs(entry["size_bytes"] - predicted) < 0.1 * predicted + 1000
    held = OnnxWriter(open_onnx(model).model, None, qmax=127).read(tmp_path / "pack" / "model.onnx")
    assert sorted(bits for *_, bits in held.weights) == [4, 8, 8]
    # All that is faster, every pair and the matrix alone, was looked at by what it is predicted to lose.
    assert min(one["loss"] for one in layer["others"]) > 5 * layer["predicted"]["loss"]
    shapes = facts_of(found, tmp_path / "pack").layer_shapes("edgepack", "onnx")
    (segment,) = split_onnx(tmp_path / "pack" / "model.onnx", shapes, tmp_path)
    assert (segment.name, segment.layer) == ("w", True)


def test_two_layers_of_which_one_has_a_pair_beside_it(tmp_path: Path) -> None:
    """Names and schemes go by the order in the graph, and a split finds every layer in one piece."""
    rng = np.random.default_rng(8)
    weights = {name: rng.normal(size=(64, 64)).astype(np.float32) for name in ("a", "b", "c")}
    nodes = [helper.make_node("MatMul", [x, w], [y]) for x, w, y in (("x", "a", "h"), ("h", "b", "i"), ("i", "c", "y"))]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 64]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "three", ends[:1], ends[1:], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "three.onnx")
    files = OnnxWriter(open_onnx(tmp_path / "three.onnx").model, None, qmax=127)
    q = np.linalg.qr(rng.normal(size=(64, 8)))[0].astype(np.float32)
    factors = {
        "a": low_rank(q, q.T @ weights["a"].T, None),
        "b": low_rank_correction(q, q.T @ weights["b"].T, None, weights["b"].T - q @ (q.T @ weights["b"].T)),
    }
    path = tmp_path / "m.onnx"
    files.write(factors, FileScheme.of(INT8_DYNAMIC), path, {"a": NBITS8, "b": NBITS4})
    assert sorted(files.read(path).weights) == sorted([(8, 64, 8)] * 4 + [(64, 64, 4), (64, 64, 8)])
    stored = {array.name for array in onnx.load(path).graph.initializer}
    assert {"b.base.int4", "b.A.int8", "b.B.int8", "a.A.int8", "a.B.int8", "c.int8"} <= stored
    shapes = [
        LayerShape("a", 64, 64, 8),
        LayerShape("b", 64, 64, 8, beside=True),
        LayerShape("c", 64, 64, None),
    ]
    segments = split_onnx(path, shapes, tmp_path)
    assert [(segment.name, segment.layer) for segment in segments] == [("a", True), ("b", True), ("c", True)]
    x = rng.normal(size=(4, 64)).astype(np.float32)
    values = {"x": x}
    for segment in segments:
        model = load(segment.path, "onnx")
        names = [value.name for value in onnx.load(segment.path).graph.output]
        answers = model.run({spec.name: values[spec.name] for spec in model.inputs})
        values.update(zip(names, answers, strict=True))
    np.testing.assert_allclose(values["y"], load(path, "onnx").run({"x": x})[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(OUT, IN - 1), (IN, OUT)])
def test_a_matrix_that_does_not_fit_is_refused(source: OnnxSource, made: Replacement, shape: tuple[int, int]) -> None:
    wrong = low_rank_correction(made.A, made.B, made.bias, np.zeros(shape, np.float32))
    with pytest.raises(
        ModelError, match=rf"found a matrix \({shape[0]}, {shape[1]}\) beside them, expected \(96, 160\)"
    ):
        with_factors(source.model, {"w": wrong})


@pytest.mark.parametrize("kind", ["rows", "columns", "conv"])
def test_every_kind_of_place(kind: str, made: Replacement, tmp_path: Path) -> None:
    weight, x = strong_layer()
    rows = x[:6]
    if kind == "rows":
        node, shape, array = helper.make_node("MatMul", ["x", "w"], ["y"]), [6, IN], weight.T
    elif kind == "columns":
        node, shape, array = helper.make_node("MatMul", ["w", "x"], ["y"]), [IN, 6], weight
    else:
        node, shape, array = helper.make_node("Conv", ["x", "w"], ["y"]), [1, IN, 2, 3], weight[..., None, None]
    feed = rows if kind == "rows" else rows.T.reshape(shape)
    out = [6, OUT] if kind == "rows" else [OUT, 6] if kind == "columns" else [1, OUT, 2, 3]
    graph = helper.make_graph(
        [node],
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.ascontiguousarray(array), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    files = OnnxWriter(open_onnx(tmp_path / "m.onnx").model, None, qmax=127)
    whole = made.base.astype(np.float64) + made.A.astype(np.float64) @ made.B
    expected = rows @ whole.T + made.bias
    expected = expected if kind == "rows" else expected.T.reshape(out)
    for scheme, off in ((None, 1e-5), (NBITS4, 0.1)):
        files.write({"w": made}, FileScheme.of(FP32), tmp_path / "out.onnx", {"w": scheme} if scheme else None)
        (found,) = load(tmp_path / "out.onnx", "onnx").run({"x": feed})
        assert np.linalg.norm(found - expected) < off * np.linalg.norm(expected)


def test_points_of_it_are_measured_where_its_parts_are() -> None:
    points = points_for([(96, 160, 4), (10, 512, 4)], ("onnx", "tflite"))
    assert [p for p in points if p.structure.is_correction] == [linear_point_in(NBITS4, BESIDE, (96, 160), 4)]
    assert not [p for p in points_for([(96, 160, 4)], ("tflite",)) if p.structure.is_correction]
    few: Mapping[Format, Sequence[Scheme]] = {"onnx": (FP32, NBITS4), "tflite": ()}
    assert not [p for p in points_for([(96, 160, 4)], ("onnx",), few) if p.structure.is_correction]


def test_a_table_of_it_is_kept_and_read(tmp_path: Path) -> None:
    mark = Fingerprint("x86_64", ("2x core",), ("avx2",), ("L1d=32768:8",), {"onnx": "onnxruntime 1.31"})
    known = linear_point_in(NBITS4, BESIDE, (96, 160), 4)
    entry = Entry(2e-6, 1e-8, 15)
    table = MeasuredTable(mark, "rpi4", 1, "2026-01-01T00:00:00+00:00", {known: entry}, {"onnx": entry})
    save_measured(table, tmp_path)
    read = known_measured("rpi4", mark, 1, tmp_path)
    assert read is not None
    assert read.entries == {known: entry}
    path = measured_path("rpi4", mark, 1, tmp_path)
    good = json.loads(path.read_text())
    ((fmt, scheme, way, *sides, rank, batch, seconds, spread_s, rounds),) = good["entries"]
    assert (fmt, scheme, way, rank) == ("onnx", "nbits4", "low-rank-correction", 8)
    for wrong in (("onnx", None), ("tflite", 8)):
        row = [wrong[0], scheme, way, *sides, wrong[1], batch, seconds, spread_s, rounds]
        path.write_text(json.dumps({**good, "entries": [row], "calls": {wrong[0]: good["calls"]["onnx"]}}))
        with pytest.raises(InputError, match="a layer that cannot be"):
            load_measured(path)


def test_one_layer_files_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    point = linear_point_in(NBITS4, BESIDE, (96, 160), 2)
    path = layer_files([point])[point]
    assert sorted(read_contents(path).weights) == [(8, 96, 8), (8, 160, 8), (96, 160, 4)]
    assert sum(a * b for a, b, _ in read_contents(path).weights) == point.weights


def test_a_rounder_makes_it_once_and_does_without_data(
    layer: View, seen: Moments, made: Replacement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectrum = whitened.spectrum(replace(layer, moments=seen))

    class Known:
        key = "key"

        def __init__(self, moments: Moments | None) -> None:
            self.moments = moments

        def of(self, name: str) -> Moments | None:
            return self.moments

    def rounder(moments: Moments | None) -> Rounder:
        return Rounder(Known(moments), "whitened", 127, {}, Workspace(Cache(tmp_path), tmp_path))

    first = rounder(seen).factors(layer, spectrum, BESIDE, NBITS4)
    monkeypatch.setattr("edgepack.pipeline.rounding.fit_rounded_correction", None)
    again = rounder(seen).factors(layer, spectrum, BESIDE, NBITS4)
    np.testing.assert_array_equal(first.base, made.base)
    np.testing.assert_array_equal(again.base, first.base)
    np.testing.assert_array_equal(again.A, first.A)
    for blind in (make(layer, spectrum, BESIDE, NBITS4) for make in (rounder(None).factors, rounder(None).draft)):
        np.testing.assert_allclose(blind.base + blind.A @ blind.B, layer.weight, atol=1e-4)
        assert blind.bias is layer.bias
    assert rounder(None).draft(layer, spectrum, structure.low_rank(RANK), NBITS8).structure.is_low_rank
