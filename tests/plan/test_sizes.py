"""Predicted bytes of layers against files: what a layer adds is the difference between two emitted models."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.schemes import FP32, NBITS4, NBITS4_CORRECTED, NBITS8
from edgepack.backends.schemes import FP32 as FLOATS
from edgepack.backends.schemes import SCHEMES
from edgepack.cache import Cache
from edgepack.data import Samples
from edgepack.model.replacement import low_rank
from edgepack.model.scheme import FORMATS, FileScheme, Format, Scheme
from edgepack.backends.backend import Writer
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.model.model import Model
from edgepack.sources import open_model
from edgepack.backends.tflite.writer import TfliteWriter
from edgepack.plan.sizes import size_bytes

IN, OUT, RANK = 384, 256, 32
TAIL = 16
SLACK = 1000


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
    with TfliteWriter(Cache(work / "cache"), work) as tflite:
        tflite.open(opened, Samples({"x": x}), {"x": x[:1]})
        yield {"onnx": OnnxWriter(opened.content, Samples({"x": x}), largest=127), "tflite": tflite}


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


CASES = [scheme for fmt in FORMATS for scheme in SCHEMES[fmt]]


@pytest.mark.parametrize("scheme", CASES, ids=lambda scheme: scheme.key)
def test_what_a_pair_saves(files: dict[Format, Writer], work: Path, opened: Model, scheme: Scheme) -> None:
    """Dense against pair of the same scheme: the rest of both files is the same."""
    sizes = {rank: emitted(files[scheme.backend], work, opened, scheme, rank) for rank in (None, RANK)}
    said = {rank: size_bytes(scheme, OUT, IN, rank, bias=True) for rank in sizes}
    found, predicted = sizes[None] - sizes[RANK], said[None] - said[RANK]
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
    said = {own: size_bytes(own, OUT, IN, rank, bias=True) for own in sizes}
    found, predicted = sizes[fp32] - sizes[scheme], said[fp32] - said[scheme]
    assert found > 0
    assert abs(found - predicted) <= 0.1 * found + SLACK, f"{found} B saved, {predicted} B predicted"


def test_a_bias_is_four_bytes_per_output() -> None:
    for scheme in CASES:
        with_bias, without = (size_bytes(scheme, 100, 50, None, bias=bias) for bias in (True, False))
        assert with_bias - without == 400


def test_more_rank_is_more_bytes_in_every_scheme() -> None:
    for scheme, bias in product(CASES, (True, False)):
        sizes = [size_bytes(scheme, 512, 512, rank, bias=bias) for rank in range(8, 256, 8)]
        assert sizes == sorted(sizes)
        assert len(set(sizes)) == len(sizes)


def test_a_pair_beside_a_dense_matrix_adds_to_it(files: dict[Format, Writer], work: Path, opened: Model) -> None:
    layer = opened.layers[0]
    q = np.linalg.qr(np.random.default_rng(2).normal(size=(OUT, RANK)))[0].astype(np.float32)
    both = low_rank(q, q.T @ layer.weight, layer.bias, layer.weight)
    sizes = {}
    for scheme, factors in ((NBITS4, {}), (NBITS4_CORRECTED, {layer.name: both})):
        path = work / "model.onnx"
        files["onnx"].write(factors, FileScheme.of(FP32), path, {layer.name: scheme})
        sizes[scheme] = path.stat().st_size
    dense = size_bytes(NBITS4, OUT, IN, None, bias=True)
    found, predicted = (
        sizes[NBITS4_CORRECTED] - sizes[NBITS4],
        size_bytes(NBITS4_CORRECTED, OUT, IN, RANK, bias=True) - dense,
    )
    assert abs(found - predicted) <= 0.1 * found + SLACK, f"{found} B added, {predicted} B predicted"
    assert predicted == size_bytes(NBITS8, OUT, IN, RANK, bias=False)
