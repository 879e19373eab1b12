"""Predicted bytes of layers against files: what a layer adds is the difference between two emitted models."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.cache import Cache
from edgepack.data import Samples
from edgepack.formats import FORMS, Format
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.onnx_files import OnnxFiles
from edgepack.pipeline.opened import Opened, open_model
from edgepack.pipeline.tflite_files import TfliteFiles
from edgepack.plan.sizes import size_bytes
from edgepack.types import Factors

IN, OUT, RANK = 384, 256, 32
TAIL = 16
SLACK = 1000


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sizes")


@pytest.fixture(scope="module")
def opened(work: Path) -> Opened:
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
def files(opened: Opened, work: Path) -> Iterator[dict[Format, ModelFiles]]:
    x = np.random.default_rng(1).normal(size=(40, IN)).astype(np.float32)
    with TfliteFiles(Cache(work / "cache"), work) as tflite:
        tflite.open(opened, Samples({"x": x}), {"x": x[:1]})
        yield {"onnx": OnnxFiles(opened.model, Samples({"x": x}), largest=127), "tflite": tflite}


def emitted(writer: ModelFiles, work: Path, opened: Opened, scheme: str, rank: int | None) -> int:
    """Bytes of the file with the first layer in the scheme, dense or as a pair, and the second one in float32; where only
    the whole file can have the scheme, of that."""
    layer = opened.layers[0]
    factors = {}
    if rank is not None:
        q = np.linalg.qr(np.random.default_rng(2).normal(size=(OUT, rank)))[0].astype(np.float32)
        factors[layer.name] = Factors(q, q.T @ layer.weight, layer.bias)
    path = work / f"model.{writer.fmt}"
    if scheme in writer.layer_schemes():
        writer.write(factors, "fp32", path, {layer.name: scheme} if scheme != "fp32" else None)
    else:
        writer.write(factors, scheme, path)
    return path.stat().st_size


CASES = [(fmt, scheme) for fmt in ("onnx", "tflite") for scheme in FORMS[fmt]]  # type: ignore[index]


@pytest.mark.parametrize(("fmt", "scheme"), CASES)
def test_what_a_pair_saves(files: dict[Format, ModelFiles], work: Path, opened: Opened, fmt: Format, scheme: str) -> None:
    """Dense against pair of the same scheme: the rest of both files is the same."""
    sizes = {rank: emitted(files[fmt], work, opened, scheme, rank) for rank in (None, RANK)}
    said = {rank: size_bytes(fmt, scheme, OUT, IN, rank, bias=True) for rank in sizes}
    found, predicted = sizes[None] - sizes[RANK], said[None] - said[RANK]
    assert found > 0
    assert abs(found - predicted) <= 0.1 * found + SLACK, f"{found} B saved, {predicted} B predicted"


@pytest.mark.parametrize(("fmt", "scheme"), [case for case in CASES if case[1] not in ("fp32", "int8-static")])
@pytest.mark.parametrize("rank", [None, RANK])
def test_what_a_scheme_saves(
    files: dict[Format, ModelFiles], work: Path, opened: Opened, fmt: Format, scheme: str, rank: int | None
) -> None:
    """Against float32 of the same shape."""
    sizes = {own: emitted(files[fmt], work, opened, own, rank) for own in ("fp32", scheme)}
    said = {own: size_bytes(fmt, own, OUT, IN, rank, bias=True) for own in sizes}
    found, predicted = sizes["fp32"] - sizes[scheme], said["fp32"] - said[scheme]
    assert found > 0
    assert abs(found - predicted) <= 0.1 * found + SLACK, f"{found} B saved, {predicted} B predicted"


def test_a_bias_is_four_bytes_per_output() -> None:
    for fmt, scheme in CASES:
        with_bias, without = (size_bytes(fmt, scheme, 100, 50, None, bias=bias) for bias in (True, False))  # type: ignore[arg-type]
        assert with_bias - without == 400


def test_more_rank_is_more_bytes_in_every_scheme() -> None:
    for (fmt, scheme), bias in product(CASES, (True, False)):
        sizes = [size_bytes(fmt, scheme, 512, 512, rank, bias=bias) for rank in range(8, 256, 8)]  # type: ignore[arg-type]
        assert sizes == sorted(sizes)
        assert len(set(sizes)) == len(sizes)


def test_a_pair_beside_a_dense_matrix_adds_to_it(files: dict[Format, ModelFiles], work: Path, opened: Opened) -> None:
    layer = opened.layers[0]
    q = np.linalg.qr(np.random.default_rng(2).normal(size=(OUT, RANK)))[0].astype(np.float32)
    both = Factors(q, q.T @ layer.weight, layer.bias, layer.weight)
    sizes = {}
    for scheme, factors in (("nbits4", {}), ("nbits4-residual", {layer.name: both})):
        path = work / "model.onnx"
        files["onnx"].write(factors, "fp32", path, {layer.name: scheme})
        sizes[scheme] = path.stat().st_size
    dense = size_bytes("onnx", "nbits4", OUT, IN, None, bias=True)
    found, predicted = (
        sizes["nbits4-residual"] - sizes["nbits4"],
        size_bytes("onnx", "nbits4-residual", OUT, IN, RANK, bias=True) - dense,
    )
    assert abs(found - predicted) <= 0.1 * found + SLACK, f"{found} B added, {predicted} B predicted"
    assert predicted == size_bytes("onnx", "nbits8", OUT, IN, RANK, bias=False)
