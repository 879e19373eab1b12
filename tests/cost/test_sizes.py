"""Predicted bytes of layers against files: what a layer adds is the difference between two emitted models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.backend import Writer, WriterData
from edgepack.backends.onnx.schemes import FP32, NBITS4, NBITS8
from edgepack.backends.registry import FORMATS, backend
from edgepack.backends.schemes import FP32 as FLOATS
from edgepack.backends.schemes import SCHEMES
from edgepack.backends.tflite.schemes import INT8_DYNAMIC
from edgepack.cost.sizes import size_bytes, state_bytes
from edgepack.data import Samples
from edgepack.model import structure as structures
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.kinds.matrix import linear_ops
from edgepack.model.kinds.recurrent import RecurrentGeometry, recurrent_layer
from edgepack.model.model import Model
from edgepack.model.replacement import low_rank, low_rank_correction
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.structure import DENSE, Structure
from edgepack.model.types import Array
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace
from tests.linear_plans import structure_at

IN, OUT, RANK = 384, 256, 32
TAIL = 16
SLACK = 1000
BIAS = np.zeros(OUT, np.float32)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sizes")


@pytest.fixture(scope="module")
def opened(work: Path) -> Model:
    """One layer that is measured, and a small one that never changes."""
    rng = np.random.default_rng(0)
    shapes = {"w": (OUT, IN), "b": (OUT,), "v": (TAIL, OUT), "c": (TAIL,)}
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1, name="fc1"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "v", "c"], ["y"], transB=1, name="fc2"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", IN), ("y", TAIL))]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "two", ends[:1], ends[1:], weights)
    path = work / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return open_model(str(path), work)


@pytest.fixture(scope="module")
def files(opened: Model, work: Path) -> Iterator[dict[Format, Writer]]:
    x = np.random.default_rng(1).normal(size=(40, IN)).astype(np.float32)
    given = WriterData(Samples({"x": x}), {"x": x[:1]}, 127)
    workspace = Workspace(Cache(work / "cache"), work)
    with ExitStack() as stack:
        engines = {fmt: stack.enter_context(backend(fmt).engine()) for fmt in FORMATS}
        yield {fmt: backend(fmt).open(opened, given, engines[fmt], workspace) for fmt in FORMATS}


def emitted(writer: Writer, work: Path, opened: Model, scheme: Scheme, rank: int | None) -> int:
    """Bytes of the file with the first layer in the scheme, dense or as a pair, and the second one in float32; where
    only the whole file can have the scheme, of that."""
    layer = opened.layers[0]
    factors = {}
    if rank is not None:
        q = np.linalg.qr(np.random.default_rng(2).normal(size=(OUT, rank)))[0].astype(np.float32)
        factors[layer.name] = low_rank(q, q.T @ layer.weight, layer.bias)
    path = work / f"model.{writer.fmt}"
    if scheme in writer.layer_schemes():
        writer.write(
            factors, FileScheme.of(FLOATS[writer.fmt]), path, None if scheme.is_float else {layer.name: scheme}
        )
    else:
        writer.write(factors, FileScheme.of(scheme), path)
    return path.stat().st_size


def said(scheme: Scheme, way: int | Structure | None) -> int:
    """Predicted bytes of the first layer, which has a bias; `way` is a rank, None for dense, or any structure."""
    structure = way if isinstance(way, Structure) else structure_at(way)
    return size_bytes(scheme, linear_ops(OUT, IN, structure, 1), BIAS)


CASES = [scheme for fmt in FORMATS for scheme in SCHEMES[fmt]]


@pytest.mark.parametrize("scheme", CASES, ids=lambda scheme: scheme.key)
def test_what_a_pair_saves(files: dict[Format, Writer], work: Path, opened: Model, scheme: Scheme) -> None:
    """Dense against pair of the same scheme: the rest of both files is the same."""
    sizes = {rank: emitted(files[scheme.backend], work, opened, scheme, rank) for rank in (None, RANK)}
    found, predicted = sizes[None] - sizes[RANK], said(scheme, None) - said(scheme, RANK)
    assert found > 0
    assert abs(found - predicted) <= 0.1 * found + SLACK, f"{found} B saved, {predicted} B predicted"


@pytest.mark.parametrize(
    "scheme",
    [scheme for scheme in CASES if not scheme.is_float and scheme.scope == "layer"],
    ids=lambda scheme: scheme.key,
)
@pytest.mark.parametrize("rank", [None, RANK])
def test_what_a_scheme_saves(
    files: dict[Format, Writer], work: Path, opened: Model, scheme: Scheme, rank: int | None
) -> None:
    """Against float32 of the same shape."""
    fp32 = FLOATS[scheme.backend]
    sizes = {own: emitted(files[scheme.backend], work, opened, own, rank) for own in (fp32, scheme)}
    found, predicted = sizes[fp32] - sizes[scheme], said(fp32, rank) - said(scheme, rank)
    assert found > 0
    assert abs(found - predicted) <= 0.1 * found + SLACK, f"{found} B saved, {predicted} B predicted"


def test_a_bias_is_four_bytes_per_output() -> None:
    for scheme in CASES:
        ops = linear_ops(100, 50, DENSE, 1)
        with_bias, without = (size_bytes(scheme, ops, bias) for bias in (np.zeros(100, np.float32), None))
        assert with_bias - without == 400


def test_the_state_of_a_fused_cell_has_the_scheme_of_its_inputs() -> None:
    """In TFLite: in ONNX it is stored apart."""
    cells = recurrent_layer("cells", np.zeros((4 * 24, 40), np.float32), None, RecurrentGeometry("LSTM", 24))
    assert state_bytes("tflite", cells, FLOATS["tflite"]) == 4 * 24 * 24 * 3
    assert state_bytes("tflite", cells, INT8_DYNAMIC) == 0
    assert state_bytes("onnx", cells, FP32) == 0
    plain = linear_layer("fc", np.zeros((4 * 24, 40), np.float32), None)
    assert state_bytes("tflite", plain, FLOATS["tflite"]) == 0


def test_more_rank_is_more_bytes_in_every_scheme() -> None:
    biases: tuple[Array | None, ...] = (np.zeros(512, np.float32), None)
    for scheme, bias in product(CASES, biases):
        sizes = [size_bytes(scheme, linear_ops(512, 512, structure_at(rank), 1), bias) for rank in range(8, 256, 8)]
        assert sizes == sorted(sizes)
        assert len(set(sizes)) == len(sizes)


def test_a_pair_beside_a_dense_matrix_adds_to_it(files: dict[Format, Writer], work: Path, opened: Model) -> None:
    layer = opened.layers[0]
    q = np.linalg.qr(np.random.default_rng(2).normal(size=(OUT, RANK)))[0].astype(np.float32)
    both = low_rank_correction(q, q.T @ layer.weight, layer.bias, layer.weight)
    sizes = []
    for factors in ({}, {layer.name: both}):
        path = work / "model.onnx"
        files["onnx"].write(factors, FileScheme.of(FP32), path, {layer.name: NBITS4})
        sizes.append(path.stat().st_size)
    found = sizes[1] - sizes[0]
    predicted = said(NBITS4, structures.low_rank_correction(RANK)) - said(NBITS4, None)
    assert abs(found - predicted) <= 0.1 * found + SLACK, f"{found} B added, {predicted} B predicted"
    assert predicted == size_bytes(NBITS8, linear_ops(OUT, IN, structure_at(RANK), 1), None)
