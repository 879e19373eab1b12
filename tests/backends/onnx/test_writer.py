"""ONNX files of mixed schemes: every layer, and both halves of a factored one, in the scheme that it was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgepack.backends.backend import Writer
from edgepack.backends.onnx.schemes import (
    FP32,
    INT8_DYNAMIC,
    INT8_STATIC,
    NBITS4,
    NBITS8,
    SCHEMES,
    TABLES4,
    WEIGHTS4,
    WEIGHTS8,
)
from edgepack.backends.onnx.session import session
from edgepack.backends.onnx.sites import find_sites
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.runtime import load
from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.metrics.values import sqnr_db
from edgepack.model.replacement import Replacement, dense, low_rank
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import DENSE, Op, Structure, low_rank_correction
from edgepack.model.structure import low_rank as low_rank_at
from edgepack.model.types import Array

node = helper.make_node
RANK = 4


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto], x: Sequence[int | str], weights: Mapping[str, Array], opset: int
) -> ir.Model:
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", None))
    ]
    constants = [numpy_helper.from_array(a, name) for name, a in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    imports = [helper.make_opsetid("", opset)]
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=imports, ir_version=8))


def mlp(opset: int = 17) -> ir.Model:
    """Three layers, 20 → 24 → 28 → 10."""
    nodes = [
        node("Gemm", ["x", "fc1", "b1"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "fc2"], ["m"]),
        node("Add", ["m", "b2"], ["a"]),
        node("Gemm", ["a", "fc3", "b3"], ["y"]),
    ]
    weights = {"fc1": normal(20, 24), "fc2": normal(24, 28, seed=1), "fc3": normal(28, 10, seed=2)}
    biases = {f"b{i}": normal(n, seed=7) for i, n in ((1, 24), (2, 28), (3, 10))}
    return model(nodes, ["N", 20], weights | biases, opset)


def with_conv() -> ir.Model:
    """A 3×3 convolution, which is no linear layer, in front of a linear one."""
    nodes = [
        node("Conv", ["x", "k"], ["c"]),
        node("GlobalAveragePool", ["c"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "fc", "b"], ["y"]),
    ]
    weights = {"k": normal(24, 8, 3, 3), "fc": normal(24, 10, seed=1), "b": normal(10, seed=2)}
    return model(nodes, ["N", 8, 6, 6], weights, 17)


def files(source: ir.Model, x: Array | None = None) -> OnnxWriter:
    return OnnxWriter(source, None if x is None else Samples({"x": x}), qmax=127)


def factors(source: ir.Model, *names: str) -> dict[str, Replacement]:
    made = {}
    for site in find_sites(source.clone()):
        if site.layer.name in names:
            q = np.linalg.qr(normal(site.layer.out_features, RANK, seed=9))[0].astype(np.float32)
            made[site.layer.name] = low_rank(q, q.T @ site.layer.weight, site.layer.bias)
    assert set(made) == set(names)
    return made


def bits_by_sides(made: OnnxWriter, path: Path) -> dict[tuple[int, int], int]:
    return {(a, b): bits for a, b, bits in made.read(path).weights}


def test_both_halves_take_the_layers_scheme(tmp_path: Path) -> None:
    x = normal(40, 20, seed=3)
    made, path = files(mlp(), x), tmp_path / "m.onnx"
    pairs = factors(made.model, "fc1", "fc2")
    made.write(pairs, FileScheme.of(INT8_STATIC), path, {"fc1": NBITS4, "fc3": FP32})
    wanted = [(RANK, 20, 4), (RANK, 24, 4), (RANK, 24, 8), (RANK, 28, 8), (10, 28, 32)]
    assert sorted(made.read(path).weights) == sorted(wanted)
    assert sorted(made.read_optimized(path).weights) == sorted(wanted)
    made.write(pairs, FileScheme.of(FP32), tmp_path / "float.onnx")
    one, other = (load(p, "onnx").run({"x": x})[0] for p in (path, tmp_path / "float.onnx"))
    assert np.linalg.norm(one - other) < 0.25 * np.linalg.norm(other)
    assert np.linalg.norm(one - other) > 1e-3 * np.linalg.norm(other)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_static_layer_in_a_file_of_any_scheme_gets_its_range(scheme: Scheme, tmp_path: Path) -> None:
    made, path = files(mlp(), normal(40, 20, seed=3)), tmp_path / "m.onnx"
    made.write(factors(made.model, "fc2"), FileScheme.of(scheme), path, {"fc2": INT8_STATIC})
    bits = bits_by_sides(made, path)
    assert (bits[RANK, 24], bits[RANK, 28]) == (8, 8)
    quantized = [n for n in ir.load(path).graph if n.op_type == "QuantizeLinear"]
    assert len(quantized) == (4 if scheme == INT8_STATIC else 2)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_the_products_of_each_factored_layer_are_called(scheme: Scheme, tmp_path: Path) -> None:
    made, path = files(mlp(), normal(40, 20, seed=3)), tmp_path / "m.onnx"
    written = made.write(factors(made.model, "fc1", "fc2"), FileScheme.of(scheme), path)
    sides = {product.name: product.sides for product in made.read(path).products}
    found = {layer: sorted(sides[name] for name in names if name in sides) for layer, names in written.products.items()}
    assert found == {"fc1": [(RANK, 20), (RANK, 24)], "fc2": [(RANK, 24), (RANK, 28)]}


def test_no_schemes_and_empty_schemes_are_the_same_file(tmp_path: Path) -> None:
    made = files(mlp())
    made.write(factors(made.model, "fc1"), FileScheme.of(NBITS8), tmp_path / "a.onnx")
    made.write(factors(made.model, "fc1"), FileScheme.of(NBITS8), tmp_path / "b.onnx", {})
    made.write(
        factors(made.model, "fc1"),
        FileScheme.of(FP32),
        tmp_path / "c.onnx",
        dict.fromkeys(("fc1", "fc2", "fc3"), NBITS8),
    )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_a_scheme_for_no_layer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a scheme was given for 'fc9'"):
        files(mlp()).write({}, FileScheme.of(FP32), tmp_path / "m.onnx", {"fc9": NBITS8})


def test_halves_whose_names_are_taken(tmp_path: Path) -> None:
    """A layer is called what the half of another one would be called."""
    nodes = [node("MatMul", ["x", "fc"], ["h"]), node("MatMul", ["h", "fc.A"], ["y"])]
    source = model(nodes, ["N", 20], {"fc": normal(20, 24), "fc.A": normal(24, 28)}, 17)
    made, path = files(source), tmp_path / "m.onnx"
    made.write(factors(source, "fc"), FileScheme.of(NBITS8), path, {"fc": NBITS4})
    assert bits_by_sides(made, path) == {(RANK, 20): 4, (RANK, 24): 4, (24, 28): 8}
    made.write(factors(source, "fc"), FileScheme.of(NBITS8), path, {"fc.A": NBITS4})
    assert bits_by_sides(made, path) == {(RANK, 20): 8, (RANK, 24): 8, (24, 28): 4}


def test_a_weight_in_two_orientations(tmp_path: Path) -> None:
    """Two layers, one of which has another name as soon as the other one is factored."""
    nodes = [
        node("MatMul", ["x", "tied"], ["h"], name="encoder"),
        node("Transpose", ["tied"], ["t"], perm=[1, 0]),
        node("MatMul", ["h", "t"], ["y"], name="decoder"),
    ]
    source = model(nodes, ["N", 20], {"tied": normal(20, 24)}, 17)
    made, path = files(source), tmp_path / "m.onnx"
    assert [site.layer.name for site in find_sites(source.clone())] == ["encoder", "decoder"]
    made.write(factors(source, "encoder"), FileScheme.of(INT8_DYNAMIC), path, {"encoder": NBITS8, "decoder": NBITS4})
    assert bits_by_sides(made, path) == {(RANK, 20): 8, (RANK, 24): 8, (20, 24): 4}


def test_a_baseline_that_the_runtime_refuses_is_written_here(tmp_path: Path) -> None:
    source = mlp()
    graph = ir.serde.serialize_model(source).graph
    weights = {one.name: numpy_helper.to_array(one).astype(np.float16) for one in graph.initializer}
    half = [helper.make_tensor_value_info(one.name, onnx.TensorProto.FLOAT16, None) for one in graph.output]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["n", 20])
    constants = [numpy_helper.from_array(a, name) for name, a in weights.items()]
    made = helper.make_model(helper.make_graph(graph.node, "g", [x], half, constants), ir_version=8)
    made.opset_import[0].version = 17
    said: list[str] = []
    writer = OnnxWriter(ir.serde.deserialize_model(made), None, qmax=127, warn=said.append)
    assert writer.write_baseline(INT8_DYNAMIC, tmp_path / "m.onnx") == "edgepack"
    assert "refuses what its own int8-dynamic quantizer makes" in said[0]
    assert set(bits_by_sides(writer, tmp_path / "m.onnx").values()) == {8}


def test_one_layer_alone_in_int8(tmp_path: Path) -> None:
    made = files(mlp())
    made.write({}, FileScheme.of(FP32), tmp_path / "m.onnx", {"fc2": INT8_DYNAMIC})
    assert bits_by_sides(made, tmp_path / "m.onnx") == {(20, 24): 32, (24, 28): 8, (10, 28): 32}


@pytest.mark.parametrize(
    ("opset", "calibrated", "schemes"),
    [
        (17, True, SCHEMES),
        (17, False, (FP32, WEIGHTS8, WEIGHTS4, INT8_DYNAMIC, NBITS8, NBITS4)),
        (10, True, (FP32, WEIGHTS8, WEIGHTS4, INT8_STATIC, NBITS8, NBITS4)),
        (6, True, (FP32,)),
    ],
)
def test_schemes_of_a_layer(opset: int, calibrated: bool, schemes: tuple[Scheme, ...]) -> None:
    made = files(mlp(opset), normal(4, 20) if calibrated else None)
    assert made.layer_schemes() == schemes


def test_schemes_of_a_file() -> None:
    plain: Writer = files(mlp())
    assert plain.rest(NBITS8) == (FileScheme.of(NBITS8),)
    made: Writer = files(with_conv())
    assert made.rest(FP32) == (FileScheme(FP32, WEIGHTS8), FileScheme.of(FP32))
    assert made.rest(INT8_DYNAMIC) == (FileScheme(INT8_DYNAMIC, WEIGHTS8),)
    assert made.rest(INT8_STATIC) == (FileScheme.of(INT8_STATIC), FileScheme(INT8_STATIC, WEIGHTS8))
    assert made.rest(NBITS4) == (FileScheme(NBITS4, WEIGHTS8),)
    assert made.trial_scheme == FileScheme(INT8_DYNAMIC, WEIGHTS8)


@pytest.mark.parametrize(
    "scheme",
    [
        FileScheme.of(FP32),
        FileScheme(FP32, WEIGHTS8),
        FileScheme.of(NBITS8),
        FileScheme(NBITS8, WEIGHTS8),
        FileScheme.of(INT8_STATIC),
    ],
    ids=str,
)
@pytest.mark.parametrize("own", [NBITS4, INT8_DYNAMIC, INT8_STATIC, FP32], ids=str)
def test_the_rest_goes_by_the_files_scheme(scheme: FileScheme, own: Scheme, tmp_path: Path) -> None:
    x = normal(16, 8, 6, 6, seed=3)
    made, path = files(with_conv(), x), tmp_path / "m.onnx"
    made.write({}, scheme, path, {"fc": own})
    weights = {v.name: v.dtype for v in ir.load(path).graph.initializers.values() if v.shape == (24, 8, 3, 3)}
    floats = scheme.layers == FP32 or scheme.others in (FP32, NBITS8)
    wanted = ir.DataType.FLOAT if floats else ir.DataType.INT8
    assert list(weights.values()) == [wanted]
    bits = {NBITS4: 4, FP32: 32}.get(own, 8)
    assert bits_by_sides(made, path)[10, 24] == bits
    reference = session(made.model).run(None, {"x": x})[0]
    found = load(path, "onnx").run({"x": x})[0]
    assert np.linalg.norm(found - reference) < 0.2 * np.linalg.norm(reference)


@pytest.mark.parametrize("scheme", [NBITS8, NBITS4], ids=str)
def test_the_dense_baseline(scheme: Scheme, tmp_path: Path) -> None:
    warnings: list[str] = []
    made = OnnxWriter(with_conv(), None, qmax=127, warn=warnings.append)
    assert made.write_baseline(scheme, tmp_path / "m.onnx") == "edgepack"
    assert bits_by_sides(made, tmp_path / "m.onnx")[10, 24] == scheme.bits
    assert warnings == []


def with_table() -> ir.Model:
    """Rows of a table of 60×64 numbers, looked up by x, and a layer."""
    nodes = [
        node("Cast", ["x"], ["ids"], to=onnx.TensorProto.INT64),
        node("Gather", ["table", "ids"], ["rows"]),
        node("MatMul", ["rows", "fc"], ["y"]),
    ]
    return model(nodes, [5], {"table": normal(60, 64), "fc": normal(64, 48, seed=1)}, 17)


def test_tables_may_have_4_bits(tmp_path: Path) -> None:
    plain, decoded = FileScheme.of(FP32), FileScheme(NBITS4, WEIGHTS8)
    tables = FileScheme(NBITS4, WEIGHTS8, (("table", TABLES4),))
    made, x = files(with_table()), np.array([0.0, 59.0, 7.0, 7.0, 30.0], np.float32)
    assert made.rest(NBITS4) == (decoded,)
    assert made.tables == tables.single
    answers, sizes = {}, {}
    for scheme in (plain, tables, decoded):
        made.write({}, scheme, tmp_path / "m.onnx")
        answers[scheme] = session(tmp_path / "m.onnx").run(None, {"x": x})[0]
        sizes[scheme] = (tmp_path / "m.onnx").stat().st_size
    wide, narrow = (np.square(answers[scheme] - answers[plain]).mean() for scheme in (decoded, tables))
    assert 0 < wide < narrow < 0.05 * np.square(answers[plain]).mean()
    assert sizes[decoded] - sizes[tables] > 60 * 64 // 4


LOOKED_UP = np.array([[0, 59, 7, 7, 30], [7, 7, 8, 0, 7]], np.float32)


def test_rows_are_counted_as_often_as_they_are_looked_up() -> None:
    (table,) = files(with_table(), LOOKED_UP).embeddings
    assert table.layer.name == "table"
    counts = dict(enumerate(table.counts))
    assert {row: count for row, count in counts.items() if count} == {0: 2, 7: 5, 8: 1, 30: 1, 59: 1}
    (blind,) = files(with_table()).embeddings
    assert not blind.counts.any()


def test_a_table_of_which_every_inference_takes_the_same_rows_is_not_planned() -> None:
    """A runtime looks these rows up at load."""
    nodes = [
        node("Slice", ["positions", "first", "last"], ["ids"]),
        node("Gather", ["table", "ids"], ["rows"]),
        node("Add", ["x", "rows"], ["y"]),
    ]
    numbers = {"positions": np.arange(60), "first": np.array([0]), "last": np.array([5])}
    assert files(model(nodes, [5, 64], {"table": normal(60, 64), **numbers}, 17), LOOKED_UP).embeddings == ()


@pytest.mark.parametrize("rows", [None, TABLES4], ids=str)
@pytest.mark.parametrize("layers", [FP32, NBITS8], ids=str)
def test_a_table_as_low_rank_factors(layers: Scheme, rows: Scheme | None, tmp_path: Path) -> None:
    """A narrower table, and a product in float behind it, also beside a layer that is factored itself."""
    source, rank = with_table(), 32
    made, x = files(source, LOOKED_UP), LOOKED_UP[0]
    (table,) = made.embeddings
    single = () if rows is None else (("table", rows),)
    thin = FileScheme(layers, WEIGHTS8, single, (("table", Op("A", "matmul", 64, rank)),))
    part = table.factors(rank)
    kept = part.tensors["B"] @ part.A.T + part.bias
    pair = factors(source, "fc")
    for parts in ({}, pair):
        made.write(parts, thin, tmp_path / "thin.onnx")
        made.write(parts, FileScheme(layers, WEIGHTS8), tmp_path / "whole.onnx")
        weight = pair["fc"].A @ pair["fc"].B if parts else source.graph.initializers["fc"].const_value.numpy().T
        wanted = kept[x.astype(int)] @ weight.T
        answer = session(tmp_path / "thin.onnx").run(None, {"x": x})[0]
        assert sqnr_db(answer, wanted) > (30 if rows is None else 15)
        held = Counter(product.sides for product in made.read(tmp_path / "thin.onnx").products)
        whole = Counter(product.sides for product in made.read(tmp_path / "whole.onnx").products)
        assert held - whole == Counter({(rank, 64): 1})


@pytest.mark.parametrize("scheme", [FP32, INT8_DYNAMIC, NBITS8], ids=str)
def test_another_weight_for_a_dense_layer_beside_a_pair(scheme: Scheme, tmp_path: Path) -> None:
    source, x = mlp(), normal(4, 20, seed=5)
    made = files(source)
    layers = {site.layer.name: site.layer for site in find_sites(source.clone())}
    pair = factors(source, "fc1")
    other = dense(2 * layers["fc3"].weight, np.ones(10, np.float32))
    schemes = {"fc1": FP32, "fc2": FP32}
    answers, sizes = [], []
    for given in (pair, {**pair, "fc3": other}):
        made.write(given, FileScheme.of(scheme), tmp_path / "m.onnx", schemes)
        answers.append(session(tmp_path / "m.onnx").run(None, {"x": x})[0])
        sizes.append((tmp_path / "m.onnx").stat().st_size)
    bias = layers["fc3"].bias if layers["fc3"].bias is not None else 0.0
    if scheme == FP32:  # nothing is rounded, so the layer keeps its own weight
        np.testing.assert_array_equal(answers[0], answers[1])
    else:
        np.testing.assert_allclose(answers[1], 2 * (answers[0] - bias) + 1, atol=0.02 * np.abs(answers[1]).max())
    assert abs(sizes[1] - sizes[0]) < 200


@pytest.mark.parametrize(
    ("opset", "data", "structure", "scheme", "why"),
    [
        (17, True, DENSE, INT8_STATIC, None),
        (17, False, DENSE, INT8_STATIC, "there are no calibration data"),
        (17, False, low_rank_at(8), NBITS8, None),
        (17, False, low_rank_correction(8), NBITS4, None),
        (17, False, low_rank_correction(8), NBITS8, "there are no low-rank factors beside a matrix in nbits8"),
        (9, False, DENSE, INT8_DYNAMIC, "the model has opset 9, the scheme int8-dynamic needs 11"),
    ],
)
def test_what_a_layer_can_be_written_as(
    opset: int, data: bool, structure: Structure, scheme: Scheme, why: str | None
) -> None:
    made = files(mlp(opset), normal(40, 20, seed=3) if data else None)
    layer = find_sites(made.model.clone())[0].layer
    assert made.supports(layer, structure, scheme) == why
