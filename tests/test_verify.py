"""The proofs, each on a real file that has the defect it is there to find."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgepack.data import Samples
from edgepack.emit.onnx import to_form
from edgepack.inference import load, predict
from edgepack.onnxgraph.contents import read_contents
from edgepack.onnxgraph.files import save
from edgepack.onnxgraph.rewrite import with_factors
from edgepack.onnxgraph.session import session
from edgepack.plan.candidates import at_rank, dense
from edgepack.types import Array, Contents, Factors, LayerPlan, LinearLayer, Spectrum
from edgepack.verify import biases_intact, same_outputs, two_thin_matmuls, weights_as_planned

OUT, IN, RANK = 40, 72, 8
FORMS = ["fp32", "int8-dynamic", "int8-static-qdq"]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def two_layers() -> ir.Model:
    """fc1 will be factored, fc2 stays dense."""
    weights = {
        "fc1": normal(IN, OUT),
        "b1": normal(OUT, seed=1),
        "fc2": normal(OUT, 12, seed=2),
        "b2": normal(12, seed=3),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "fc1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "fc2", "b2"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", IN])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 12])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.serde.deserialize_model(made)


@dataclass(frozen=True)
class Case:
    source: ir.Model
    thin: ir.Model
    factors: Factors
    plan: tuple[LayerPlan, ...]
    biases: dict[str, Array]
    folder: Path

    def write(self, model: ir.Model, form: str = "fp32") -> Path:
        names = ("fc1", "fc1.A", "fc1.B", "fc2")
        save(to_form(model, form, ranges=dict.fromkeys(names, (-30.0, 30.0))), self.folder / "m.onnx")
        return self.folder / "m.onnx"

    def optimized(self, path: Path) -> Contents:
        session(path, optimized_path=self.folder / "o.onnx")
        return read_contents(self.folder / "o.onnx")

    def answers(self, path: Path) -> Array:
        return predict(load(path, "onnx"), Samples({"x": normal(50, IN, seed=9)}))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    source = two_layers()
    q = np.linalg.qr(normal(OUT, RANK, seed=4))[0].astype(np.float32)
    weight, bias = normal(IN, OUT).T, normal(OUT, seed=5)
    pair = Factors(q, q.T @ weight, bias)
    spectrum = Spectrum(q, np.ones(RANK))
    layers = [LinearLayer("fc1", weight, None, "Gemm"), LinearLayer("fc2", normal(12, OUT), None, "Gemm")]
    plan = (at_rank(layers[0], spectrum, RANK, ""), dense(layers[1], ""))
    biases = {"fc1": bias, "fc2": normal(12, seed=3)}
    return Case(source, with_factors(source, {"fc1": pair}), pair, plan, biases, tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_file_passes_all(case: Case, form: str) -> None:
    reference = case.answers(case.write(case.thin))
    path = case.write(case.thin, form)
    source = case.folder / "source.onnx"
    save(case.source, source)
    width = 4 if form == "fp32" else 1
    proofs = [
        same_outputs(case.answers(path), reference, form),
        two_thin_matmuls(case.optimized(path), case.plan),
        weights_as_planned(read_contents(path), read_contents(source), case.plan, width),
        biases_intact(read_contents(path), case.biases),
    ]
    assert [(p.name, p.passed) for p in proofs] == [
        ("outputs", True),
        ("two-thin-matmuls", True),
        ("weight-bytes", True),
        ("biases", True),
    ], proofs
    elements = RANK * (OUT + IN) + 12 * OUT
    assert proofs[1].detail == "2 thin matrices in the runtime's graph"
    assert proofs[2].detail == f"{elements} matrix elements, {elements} planned, {elements * width} bytes"
    assert proofs[3].detail == "2 biases found"


def folded(case: Case) -> ir.Model:
    """A·B written so that the runtime's constant folding makes one dense matrix of it."""
    model = case.source.clone()
    fc1 = model.graph.initializers["fc1"]
    a, b = (
        ir.Value(name=n, const_value=ir.tensor(np.ascontiguousarray(array), name=n))
        for n, array in (("A", case.factors.A.T), ("B", case.factors.B.T))
    )
    for value in (a, b):
        model.graph.register_initializer(value)
    product = ir.node("MatMul", [b, a])
    product.outputs[0].name = "AB"
    model.graph.insert_before(model.graph[0], product)
    fc1.replace_all_uses_with(product.outputs[0])
    del model.graph.initializers["fc1"]
    return model


def test_factors_folded_back_into_a_dense_matrix(case: Case) -> None:
    """The file itself holds two thin matrices; only the runtime's graph gives it away."""
    path = case.folder / "m.onnx"
    save(folded(case), path)
    assert two_thin_matmuls(read_contents(path), case.plan).passed
    proof = two_thin_matmuls(case.optimized(path), case.plan)
    assert not proof.passed
    assert f"dense again: {OUT}×{IN}" in proof.detail
    assert f"missing: {RANK}×{IN}" in proof.detail or f"missing: {RANK}×{OUT}" in proof.detail


def test_a_layer_that_was_never_factored(case: Case) -> None:
    path = case.write(case.source)
    proof = two_thin_matmuls(case.optimized(path), case.plan)
    assert not proof.passed
    assert "dense again" in proof.detail
    found = weights_as_planned(read_contents(path), read_contents(path), case.plan, 4)
    assert not found.passed
    assert found.detail.startswith(f"{OUT * IN + 12 * OUT} matrix elements, {RANK * (OUT + IN) + 12 * OUT} planned")


def thin_contents(*sides: tuple[int, int]) -> Contents:
    return Contents(tuple((min(s), max(s), 4) for s in sides), ())


def plans(*shapes: tuple[int, int, int | None]) -> tuple[LayerPlan, ...]:
    return tuple(LayerPlan(f"l{i}", out, inn, rank, 99, 0.0, "") for i, (out, inn, rank) in enumerate(shapes))


@pytest.mark.parametrize(
    ("shapes", "found", "passed"),
    [
        ([(64, 64, 8)], [(64, 8), (8, 64)], True),
        ([(64, 64, 8)], [(64, 8)], False),
        ([(64, 64, 8), (64, 64, 8)], [(64, 8)] * 4, True),
        ([(64, 64, 8), (64, 64, 8)], [(64, 8)] * 3, False),
        ([(64, 64, 8), (64, 64, 8)], [(64, 8)] * 2 + [(64, 64)], False),
        ([(64, 64, 8), (64, 64, None)], [(64, 8)] * 2 + [(64, 64)], True),
        ([(64, 64, 8), (64, 64, None)], [(64, 8)] * 2 + [(64, 64)] * 2, False),
        # A blocked layout rounds 8 up to 16 channels.
        ([(64, 64, 8)], [(64, 16), (16, 64)], True),
        ([(64, 64, 8)], [(64, 32), (32, 64)], False),
        # The neighbour's matrix is no stand-in for a missing one, though it is close in shape.
        ([(64, 72, 8)], [(8, 72)], False),
        ([(64, 72, 8)], [(8, 72), (8, 72)], True),
        # A square layer whose factor has the shape of a dense layer beside it.
        ([(64, 64, 8), (64, 8, None)], [(64, 8)] * 3, True),
    ],
)
def test_matrices_are_counted(
    shapes: list[tuple[int, int, int | None]], found: list[tuple[int, int]], passed: bool
) -> None:
    assert two_thin_matmuls(thin_contents(*found), plans(*shapes)).passed is passed


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dropped", ["fc1", "fc2"])
def test_a_dropped_bias(case: Case, form: str, dropped: str) -> None:
    other = {"fc1": "fc2", "fc2": "fc1"}[dropped]
    model = case.thin.clone()
    (gemm,) = (n for n in model.graph if n.op_type == "Gemm" and dropped in (n.inputs[1].name or ""))  # type: ignore[union-attr]
    gemm.resize_inputs(2)
    proof = biases_intact(read_contents(case.write(model, form)), case.biases)
    assert not proof.passed
    assert proof.detail == f"lost: {dropped}"
    assert biases_intact(read_contents(case.write(model, form)), {other: case.biases[other]}).passed


def test_an_uncorrected_bias(case: Case) -> None:
    """The dense layer's bias is not the factored layer's: the correction must not be forgotten."""
    uncorrected = {**case.biases, "fc1": normal(OUT, seed=1)}
    assert not biases_intact(read_contents(case.write(case.thin)), uncorrected).passed


@pytest.mark.parametrize(
    ("vector", "passed"),
    [
        ([1.0, -2.0, 3.0], True),
        ([-1.0, 2.0, -3.0], True),
        ([0.25, -0.5, 0.75], True),
        ([1.0, -2.0, 3.02], False),
        ([1.0, -2.0, 3.001], True),
        ([0.0, 0.0, 0.0], False),
        ([1.0, -2.0], False),
        ([1.0, -np.inf, 3.0], False),
        ([1.0, np.nan, 3.0], False),
    ],
)
def test_which_vectors_are_the_bias(vector: list[float], passed: bool) -> None:
    """As it is, negated by a Sub, or scaled by a constant that a converter folded in."""
    found = Contents((), (np.array(vector),))
    assert biases_intact(found, {"l": np.array([1.0, -2.0, 3.0], np.float32)}).passed is passed


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_weight(case: Case, form: str) -> None:
    """One thin matrix of the pair is gone."""
    path = case.write(case.thin, form)
    whole, source = read_contents(path), case.folder / "source.onnx"
    save(case.source, source)
    for index in range(len(whole.weights)):
        less = Contents(tuple(w for i, w in enumerate(whole.weights) if i != index), whole.vectors)
        assert not weights_as_planned(less, read_contents(source), case.plan, 1).passed


def test_weights_that_stay_wide_are_named(case: Case) -> None:
    save(case.source, case.folder / "source.onnx")
    path = case.folder / "m.onnx"
    save(to_form(case.thin, "int8-static-qdq", ranges={"fc1.A": (-9.0, 9.0), "fc1.B": (-9.0, 9.0)}), path)
    proof = weights_as_planned(read_contents(path), read_contents(case.folder / "source.onnx"), case.plan, 1)
    assert proof.passed
    assert proof.detail.endswith(f"+ {3 * 12 * OUT} bytes for matrices that the form leaves wider")


def test_outputs_of_other_weights(case: Case) -> None:
    reference = case.answers(case.write(case.thin))
    for form in FORMS:
        proof = same_outputs(case.answers(case.write(case.source, form)), reference, form)
        assert not proof.passed
        assert "dB against the fp32 factored model, at least" in proof.detail


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite(bad: float) -> None:
    reference = normal(20, 5)
    outputs = reference.copy()
    outputs[3, 2] = bad
    assert not same_outputs(outputs, reference, "int8-dynamic").passed
    assert not same_outputs(np.full_like(reference, bad), reference, "fp32").passed


@pytest.mark.parametrize(("form", "level"), [("fp32", 60), ("int8-dynamic", 10), ("int8-static-qdq+weights", 10)])
def test_tolerance_of_a_form(form: str, level: float) -> None:
    reference, noise = normal(400, 5), normal(400, 5, seed=1)
    noise *= np.linalg.norm(reference) / np.linalg.norm(noise)
    for db, passed in ((level + 1, True), (level - 1, False)):
        assert same_outputs(reference + noise * 10 ** (-db / 20), reference, form).passed is passed


def test_outputs_of_another_shape() -> None:
    proof = same_outputs(normal(4, 5), normal(4, 6), "fp32")
    assert not proof.passed
    assert proof.detail == "shape (4, 5), the reference has (4, 6)"
