"""Small ONNX models for the tests of graph surgery, and the comparison that all of them need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgepack.backends.onnx.file import to_bytes
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.onnx.session import session
from edgepack.backends.onnx.sites import find_sites
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array

Shape = Sequence[int | str | None]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0, dtype: type = np.float32) -> Array:
    return rng(seed).standard_normal(shape).astype(dtype)


def info(name: str, shape: Shape | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def const(name: str, array: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=f"const_{name}", value=numpy_helper.from_array(array))


def proto(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_model(graph, opset_imports=imports, functions=functions)
    made.ir_version = ir_version
    return made


def model(*args: object, **options: object) -> ir.Model:
    return ir.serde.deserialize_model(proto(*args, **options))  # type: ignore[arg-type]


def full_rank(layer: Layer) -> Replacement:
    """Exact factors of the full rank min(out, in), in a random basis."""
    weight, rank = layer.weight.astype(np.float64), min(layer.weight.shape)
    q = np.linalg.qr(rng(7).standard_normal((rank, rank)))[0]
    a, b = (q, q.T @ weight) if layer.out_features <= layer.in_features else (weight @ q, q.T)
    return low_rank(a.astype(np.float32), b.astype(np.float32), layer.bias)


def factored(source: ir.Model) -> ir.Model:
    return with_factors(source, {site.layer.name: full_rank(site.layer) for site in find_sites(source)})


def run(source: ir.Model, feed: Mapping[str, Array]) -> list[Array]:
    return list(session(source).run(None, dict(feed)))


def assert_same(a: ir.Model, b: ir.Model, feed: Mapping[str, Array], tol: float = 2e-4) -> None:
    expected, found = run(a, feed), run(b, feed)
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert np.isfinite(one.astype(np.float64)).all()
        scale = max(1.0, float(np.abs(one).max())) if one.size else 1.0
        np.testing.assert_allclose(other.astype(np.float64), one.astype(np.float64), rtol=0, atol=tol * scale)


def assert_factored_same(source: ir.Model, feed: Mapping[str, Array], tol: float = 2e-4) -> ir.Model:
    """Full-rank factors leave the function as it was, the given model untouched, and the result's layers thin."""
    sites = find_sites(source)
    before = to_bytes(source)
    thin = factored(source)
    assert to_bytes(source) == before
    assert_same(source, thin, feed, tol)
    names = [site.layer.name for site in find_sites(thin)]
    assert names == [f"{site.layer.name}.{part}" for site in sites for part in "BA"]
    assert [v.name for v in thin.graph.outputs] == [v.name for v in source.graph.outputs]
    assert [v.shape for v in thin.graph.outputs] == [v.shape for v in source.graph.outputs]
    if all(value.shape is not None for value in thin.graph.outputs):
        onnx.checker.check_model(ir.serde.serialize_model(thin))
    return thin
