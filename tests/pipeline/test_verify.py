"""The proofs, each on a real file that has the defect it is there to find."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgepack.backends.onnx.contents import read_contents
from edgepack.backends.onnx.emit import to_schemes
from edgepack.backends.onnx.file import save
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, NBITS8, SCHEMES, TABLES4, WEIGHTS8
from edgepack.backends.onnx.session import session
from edgepack.backends.registry import FORMATS
from edgepack.backends.runtime import load, predict
from edgepack.backends.schemes import layer_schemes
from edgepack.data import Samples
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import Structure, low_rank_correction
from edgepack.model.types import Array, Contents, LayerPlan, Product, Proof, Written
from edgepack.pipeline.verify import biases_intact, same_outputs, structures_kept, weights_as_planned
from tests.linear_plans import linear_plan

OUT, IN, RANK = 40, 72, 8
FLOATS = FileScheme.of(FP32)


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
    factors: Replacement
    plan: tuple[LayerPlan, ...]
    biases: dict[str, Array]
    folder: Path

    def write(self, model: ir.Model, scheme: Scheme = FP32, schemes: dict[str, Scheme] | None = None) -> Path:
        ranges = dict.fromkeys(("fc1", "fc1.A", "fc1.B", "fc2"), (-30.0, 30.0))
        save(to_schemes(model, scheme, ranges=ranges, schemes=schemes), self.folder / "m.onnx")
        return self.folder / "m.onnx"

    def source_contents(self) -> Contents:
        save(self.source, self.folder / "source.onnx")
        return read_contents(self.folder / "source.onnx")

    def optimized(self, path: Path) -> Contents:
        session(path, optimized_path=self.folder / "o.onnx")
        return read_contents(self.folder / "o.onnx")

    def structure(self, path: Path, *names: str) -> Proof:
        """The proof of a file whose first layer's products have names that begin so, by default `fc1.`."""
        emitted = read_contents(path)
        own = (product.name for product in emitted.products if product.name.startswith(names or "fc1."))
        return structures_kept(emitted, self.optimized(path), Written({}, {"fc1": tuple(own)}), self.plan)

    def answers(self, path: Path) -> Array:
        return predict(load(path, "onnx"), Samples({"x": normal(50, IN, seed=9)}))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    source = two_layers()
    q = np.linalg.qr(normal(OUT, RANK, seed=4))[0].astype(np.float32)
    weight, bias = normal(IN, OUT).T, normal(OUT, seed=5)
    pair = low_rank(q, q.T @ weight, bias)
    plan = (
        linear_plan("fc1", OUT, IN, RANK, 25, 0.0, ""),
        linear_plan("fc2", 12, OUT, None, 9, 0.0, ""),
    )
    biases = {"fc1": bias, "fc2": normal(12, seed=3)}
    return Case(source, with_factors(source, {"fc1": pair}), pair, plan, biases, tmp_path)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_sound_file_passes_all(case: Case, scheme: Scheme) -> None:
    reference = case.answers(case.write(case.thin))
    path = case.write(case.thin, scheme)
    proofs = [
        same_outputs(case.answers(path), reference, FileScheme.of(scheme)),
        case.structure(path),
        weights_as_planned(read_contents(path), case.source_contents(), case.plan, FileScheme.of(scheme)),
        biases_intact(read_contents(path), case.biases),
    ]
    assert [(p.name, p.passed) for p in proofs] == [
        ("outputs", True),
        ("structure", True),
        ("weight-bytes", True),
        ("biases", True),
    ], proofs
    elements = RANK * (OUT + IN) + 12 * OUT
    assert proofs[1].detail == "2 products of factored layers in the runtime's graph"
    size = elements * scheme.bits // 8
    assert proofs[2].detail == f"{elements} matrix elements, {elements} planned, {size} bytes"
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
    assert weights_as_planned(read_contents(path), case.source_contents(), case.plan, FLOATS).passed
    proof = case.structure(path, "A", "B")
    assert not proof.passed
    assert proof.layers == {"fc1": f"no product with {RANK}×{IN}, {OUT}×{RANK}"}
    assert proof.detail == f"fc1: {proof.layers['fc1']}"


@pytest.mark.parametrize("names", ["fc1", "nothing"])
def test_a_layer_that_was_never_factored(case: Case, names: str) -> None:
    path = case.write(case.source)
    proof = case.structure(path, names)
    assert not proof.passed
    assert proof.layers == {"fc1": f"no product with {RANK}×{IN}, {OUT}×{RANK}"}
    found = weights_as_planned(read_contents(path), read_contents(path), case.plan, FLOATS)
    assert not found.passed
    assert found.detail.startswith(f"{OUT * IN + 12 * OUT} matrix elements, {RANK * (OUT + IN) + 12 * OUT} planned")


def plans(*shapes: tuple[int, int, int | Structure | None]) -> tuple[LayerPlan, ...]:
    return tuple(linear_plan(f"l{i}", out, inn, way, 99, 0.0, "") for i, (out, inn, way) in enumerate(shapes))


Chain = list[tuple[str, int, int]]
"""Products one behind the other: names, and the sides of their matrices."""


def contents_of(*chains: Chain) -> Contents:
    """What a file or a graph holds; a product's name stands for its numbers."""
    products: list[Product] = []
    for chain in chains:
        for place, (name, *sides) in enumerate(chain):
            behind = frozenset({len(products) - 1} if place else ())
            products.append(Product(name, (min(sides), max(sides)), 32, name, behind))
    weights = {product.name: (*product.sides, product.bits) for product in products}
    return Contents(tuple(sorted(weights.values())), (), tuple(products))


def thin(layer: int, first: tuple[int, int] = (8, 64), second: tuple[int, int] = (64, 8)) -> Chain:
    return [(f"l{layer}.B", *first), (f"l{layer}.A", *second)]


def dense(layer: int, *sides: int) -> Chain:
    rows, columns = sides or (64, 64)
    return [(f"l{layer}", rows, columns)]


FACTORED, DENSE_LAYER = (64, 64, 8), (64, 64, None)


def kept(layers: tuple[LayerPlan, ...], found: Contents, emitted: Contents) -> Proof:
    names = {plan.layer: (f"{plan.layer}.B", f"{plan.layer}.A") for plan in layers}
    return structures_kept(emitted, found, Written({}, names), layers)


@pytest.mark.parametrize(
    ("shapes", "emitted", "found", "lost"),
    [
        ([FACTORED], [thin(0)], [thin(0)], ""),
        ([FACTORED], [thin(0)], [thin(0)[:1]], "l0"),
        ([FACTORED] * 2, [thin(0), thin(1)], [thin(0), thin(1)], ""),
        ([FACTORED] * 2, [thin(0), thin(1)], [thin(1), thin(0)], ""),
        ([FACTORED] * 2, [thin(0), thin(1)], [thin(0), thin(1)[1:]], "l1"),
        ([FACTORED] * 2, [thin(0), thin(1)], [thin(0), dense(1)], "l1"),
        ([FACTORED] * 2, [thin(0), thin(1)], [dense(0), dense(1)], "l0 l1"),
        ([FACTORED, DENSE_LAYER], [thin(0), dense(1)], [thin(0), dense(1)], ""),
        # In one of its two places it was multiplied out.
        ([FACTORED, DENSE_LAYER], [thin(0), thin(0), dense(1)], [thin(0), dense(1), [("AB", 64, 64)]], "l0"),
        ([FACTORED, DENSE_LAYER], [thin(0), thin(0), dense(1)], [thin(0), thin(0), dense(1)], ""),
        # Two places that get the same input become one.
        ([FACTORED, DENSE_LAYER], [thin(0), thin(0), dense(1)], [thin(0), dense(1)], ""),
        # A blocked layout rounds 8 up to 16 channels.
        ([FACTORED], [thin(0)], [thin(0, (16, 64), (64, 16))], ""),
        ([FACTORED], [thin(0)], [thin(0, (32, 64), (64, 32))], "l0"),
        # The neighbour's matrix is no stand-in for a missing one, though it is close in shape.
        ([(64, 72, 8)], [thin(0, (8, 72))], [thin(0, (8, 72))[:1]], "l0"),
        ([(64, 72, 8)], [thin(0, (8, 72))], [thin(0, (8, 72), (72, 8))], ""),
        # A square layer whose factor has the shape of a dense layer beside it.
        ([FACTORED, (64, 8, None)], [thin(0), dense(1, 64, 8)], [thin(0), dense(1, 64, 8)], ""),
        ([FACTORED, (64, 8, None)], [thin(0), dense(1, 64, 8)], [thin(0)[:1], dense(1, 64, 8)], "l0"),
        # Of a factored layer the dense matrix, 16×32, has the shape of another one's factor, and of a dense layer.
        (
            [(16, 32, 4), (32, 64, 16), (16, 32, None)],
            [thin(0, (4, 32), (16, 4)), thin(1, (16, 64), (32, 16)), dense(2, 16, 32)],
            [thin(0, (4, 32), (16, 4)), thin(1, (16, 64), (32, 16)), dense(2, 16, 32)],
            "",
        ),
        (
            [(16, 32, 4), (32, 64, 16), (16, 32, None)],
            [thin(0, (4, 32), (16, 4)), thin(1, (16, 64), (32, 16)), dense(2, 16, 32)],
            [[("AB", 16, 32)], thin(1, (16, 64), (32, 16)), dense(2, 16, 32)],
            "l0",
        ),
        # Thin products that do not follow each other are none of this layer's.
        ([FACTORED], [thin(0)], [thin(0)[:1], thin(0)[1:]], "l0"),
    ],
)
def test_products_are_found_where_they_stand(
    shapes: list[tuple[int, int, int | None]], emitted: list[Chain], found: list[Chain], lost: str
) -> None:
    proof = kept(plans(*shapes), contents_of(*found), contents_of(*emitted))
    assert (proof.passed, list(proof.layers)) == (not lost, lost.split())
    assert kept(plans(*shapes), contents_of(*emitted), contents_of(*emitted)).passed


@pytest.mark.parametrize(
    ("optimized", "why"),
    [
        ([[("l0.base", 64, 64)], thin(0)], None),
        ([thin(0)], "no product with 64×64"),
        ([[("l0.base", 64, 64)]], "no product with 8×64, 64×8"),
    ],
)
def test_a_corrected_layer_has_all_three_products(optimized: list[Chain], why: str | None) -> None:
    layers = plans((64, 64, low_rank_correction(8)))
    emitted = contents_of(thin(0), [("l0.base", 64, 64)])
    written = Written({}, {"l0": ("l0.B", "l0.A", "l0.base")})
    proof = structures_kept(emitted, contents_of(*optimized), written, layers)
    assert dict(proof.layers) == ({} if why is None else {"l0": why})


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dropped", ["fc1", "fc2"])
def test_a_dropped_bias(case: Case, scheme: Scheme, dropped: str) -> None:
    other = {"fc1": "fc2", "fc2": "fc1"}[dropped]
    model = case.thin.clone()
    (gemm,) = (n for n in model.graph if n.op_type == "Gemm" and dropped in (n.inputs[1].name or ""))  # type: ignore[union-attr]
    gemm.resize_inputs(2)
    proof = biases_intact(read_contents(case.write(model, scheme)), case.biases)
    assert not proof.passed
    assert proof.detail == f"lost: {dropped}"
    assert biases_intact(read_contents(case.write(model, scheme)), {other: case.biases[other]}).passed


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


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_missing_weight(case: Case, scheme: Scheme) -> None:
    """One thin matrix of the pair is gone."""
    path = case.write(case.thin, scheme)
    whole = read_contents(path)
    for index in range(len(whole.weights)):
        less = Contents(tuple(w for i, w in enumerate(whole.weights) if i != index), whole.vectors)
        assert not weights_as_planned(less, case.source_contents(), case.plan, FileScheme.of(scheme)).passed


def test_weights_that_stay_wide_are_named(case: Case) -> None:
    path = case.folder / "m.onnx"
    save(to_schemes(case.thin, INT8_STATIC, ranges={"fc1.A": (-9.0, 9.0), "fc1.B": (-9.0, 9.0)}), path)
    proof = weights_as_planned(read_contents(path), case.source_contents(), case.plan, FileScheme.of(INT8_STATIC))
    assert proof.passed
    assert proof.detail.endswith(f"+ {3 * 12 * OUT} bytes for matrices that the scheme leaves wider")


def mixed(case: Case, first: Scheme | None, second: Scheme | None) -> tuple[LayerPlan, ...]:
    return tuple(replace(plan, scheme=scheme) for plan, scheme in zip(case.plan, (first, second), strict=True))


@pytest.mark.parametrize(("first", "second"), [(NBITS4, INT8_DYNAMIC), (INT8_DYNAMIC, NBITS4), (NBITS4, FP32)], ids=str)
def test_layers_of_their_own_schemes(case: Case, first: Scheme, second: Scheme) -> None:
    """Each layer at its own width; the scheme of the file itself is that of no layer."""
    reference = case.answers(case.write(case.thin))
    path = case.write(case.thin, NBITS8, {"fc1.A": first, "fc1.B": first, "fc2": second})
    plan, contents = mixed(case, first, second), read_contents(path)
    bits = RANK * (OUT + IN) * first.bits + 12 * OUT * second.bits
    proof = weights_as_planned(contents, case.source_contents(), plan, FileScheme(NBITS8, WEIGHTS8))
    assert proof.passed, proof
    assert proof.detail.endswith(f"planned, {bits // 8} bytes")
    assert same_outputs(case.answers(path), reference, FileScheme.of(NBITS8), plan).passed
    assert case.structure(path).passed
    assert biases_intact(contents, case.biases).passed


def test_a_layer_in_fewer_bits_than_planned(case: Case) -> None:
    contents = read_contents(case.write(case.thin, INT8_DYNAMIC, {"fc2": NBITS4}))
    proof = weights_as_planned(contents, case.source_contents(), case.plan, FileScheme.of(INT8_DYNAMIC))
    assert not proof.passed
    assert proof.detail.endswith(f"; in fewer bits than planned: 12×{OUT}")


def test_schemes_of_two_layers_exchanged(case: Case) -> None:
    """More bits for one do not make up for fewer for the other."""
    contents = read_contents(case.write(case.thin, FP32, {"fc1.A": NBITS8, "fc1.B": NBITS8, "fc2": NBITS4}))
    for plan, passed in ((mixed(case, NBITS8, NBITS4), True), (mixed(case, NBITS4, NBITS8), False)):
        assert weights_as_planned(contents, case.source_contents(), plan, FLOATS).passed is passed


def test_half_of_a_pair_in_fewer_bits(case: Case) -> None:
    contents = read_contents(case.write(case.thin, NBITS8, {"fc1.B": NBITS4}))
    proof = weights_as_planned(contents, case.source_contents(), case.plan, FileScheme.of(NBITS8))
    assert not proof.passed
    assert proof.detail.endswith(f"; in fewer bits than planned: {RANK}×{IN}")


def test_a_source_in_float16_is_not_to_be_widened() -> None:
    layers = plans((12, 40, None), (5, 12, None))
    half = Contents(((12, 40, 16), (5, 12, 16)), ())
    assert weights_as_planned(half, half, layers, FLOATS).detail == "540 matrix elements, 540 planned, 1080 bytes"
    eight = Contents(((12, 40, 8), (5, 12, 8)), ())
    assert weights_as_planned(eight, half, layers, FileScheme.of(INT8_DYNAMIC)).passed
    assert not weights_as_planned(eight, half, layers, FLOATS).passed


def test_matrices_outside_of_the_plan_have_any_width() -> None:
    layers = plans((12, 40, None))
    source = Contents(((12, 40, 32), (7, 9, 32)), ())
    for bits in (4, 8, 32):
        found = Contents(((12, 40, 8), (7, 9, bits)), ())
        assert weights_as_planned(found, source, layers, FileScheme.of(INT8_DYNAMIC)).passed


def test_outputs_of_other_weights(case: Case) -> None:
    reference = case.answers(case.write(case.thin))
    for scheme in SCHEMES:
        proof = same_outputs(case.answers(case.write(case.source, scheme)), reference, FileScheme.of(scheme))
        assert not proof.passed
        assert "dB against the fp32 factored model, at least" in proof.detail


def test_what_runtimes_cut_off_is_no_noise() -> None:
    tail = np.full((20, 1), 1e-12)
    assert same_outputs(tail + 1e-8, tail, FLOATS).passed
    assert not same_outputs(tail + 1e-6, tail, FLOATS).passed


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite(bad: float) -> None:
    reference = normal(20, 5)
    outputs = reference.copy()
    outputs[3, 2] = bad
    assert not same_outputs(outputs, reference, FileScheme.of(INT8_DYNAMIC)).passed
    assert not same_outputs(np.full_like(reference, bad), reference, FLOATS).passed
    assert not same_outputs(reference, outputs, FLOATS).passed
    assert same_outputs(outputs, outputs, FLOATS).passed


LEVELS = {
    FLOATS: 60,
    FileScheme(FP32, WEIGHTS8): 10,
    FileScheme(FP32, WEIGHTS8, (("table", TABLES4),)): 5,
    FileScheme.of(INT8_DYNAMIC): 10,
    FileScheme(INT8_STATIC, WEIGHTS8): 10,
    FileScheme.of(NBITS8): 10,
    FileScheme(NBITS8, WEIGHTS8, (("table", TABLES4),)): 5,
    FileScheme(NBITS4, WEIGHTS8): 5,
}


@pytest.mark.parametrize(("scheme", "level"), LEVELS.items(), ids=str)
def test_tolerance_of_a_scheme(scheme: FileScheme, level: float) -> None:
    reference, noise = normal(400, 5), normal(400, 5, seed=1)
    noise *= np.linalg.norm(reference) / np.linalg.norm(noise)
    for db, passed in ((level + 1, True), (level - 1, False)):
        assert same_outputs(reference + noise * 10 ** (-db / 20), reference, scheme).passed is passed


def test_every_scheme_has_a_tolerance() -> None:
    tolerances = {scheme.key: scheme.min_sqnr_db for backend in FORMATS for scheme in layer_schemes(backend).values()}
    assert tolerances == {
        "onnx:fp32": 60.0,
        "onnx:constexpr": 60.0,
        "onnx:int8-weights": 10.0,
        "onnx:int4-weights": 5.0,
        "onnx:int8-dynamic": 10.0,
        "onnx:int8-static-qdq": 10.0,
        "onnx:nbits8": 10.0,
        "onnx:nbits4": 5.0,
        "tflite:fp32": 60.0,
        "tflite:constexpr": 60.0,
        "tflite:int8-weights": 10.0,
        "tflite:int8-dynamic-range": 10.0,
        "tflite:int8-static": 10.0,
        "tflite:int4-dynamic-range": 5.0,
    }


@pytest.mark.parametrize(
    ("scheme", "own", "level"),
    [
        (FLOATS, NBITS4, 5),
        (FileScheme.of(NBITS4), FP32, 5),
        (FLOATS, None, 60),
        (FileScheme(FP32, WEIGHTS8), FP32, 10),
        (FileScheme(FP32, WEIGHTS8), NBITS4, 5),
        (FileScheme(NBITS8, WEIGHTS8, (("table", TABLES4),)), FP32, 5),
    ],
)
def test_a_mixed_file_has_the_tolerance_of_its_weakest_scheme(
    scheme: FileScheme, own: Scheme | None, level: float
) -> None:
    reference, layers = normal(400, 5), plans((12, 40, None), (5, 12, None))
    layers = (layers[0], replace(layers[1], scheme=own))
    assert same_outputs(reference, reference, scheme, layers).detail.endswith(f"at least {level} dB")


def test_outputs_of_another_shape() -> None:
    proof = same_outputs(normal(4, 5), normal(4, 6), FLOATS)
    assert not proof.passed
    assert proof.detail == "shape (4, 5), the reference has (4, 6)"
