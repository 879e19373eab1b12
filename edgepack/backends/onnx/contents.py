"""Reads back from an ONNX file which constant matrices its matmul-like operators use, before or after optimisation."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.decoded import Decoded, broadcasts, decoded
from edgepack.backends.onnx.kinds import FACTORS, bias, sides
from edgepack.model.types import Array, Contents, Product

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCK_GRID = {"MatMulNBits": (2, 3)}
"""Inputs that are scales and zero points of blocks: one per output where there is one block, and yet no bias."""

_VIEWS = frozenset({"DequantizeLinear", "Identity", "Transpose", "Cast", "Reshape", "QuantizeLinear"})

_WIDENED = "InsertedPrecisionFreeCast_"
"""What onnxruntime puts before the name of a constant in float16 that it computes with in float32."""

_SCALING = frozenset({"Mul", "Sub"})
"""What makes numbers of integers, with Cast."""


def read_contents(path: Path) -> Contents:
    """Constant matrices of all matmul-like operators, subgraphs and functions included, and all constant vectors.

    In functions that are given their weights these are seen as `find_sites` sees them.
    """
    from edgepack.backends.onnx.file import read
    from edgepack.backends.onnx.sites import inline_weight_functions

    model = read(path)
    inline_weight_functions(model)
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    nodes = [node for graph in graphs for node in graph.all_nodes()]
    weights: dict[int, tuple[int, int, int]] = {}
    multipliers: dict[int, tuple[str, tuple[int, int, int], Hashable]] = {}
    vectors: dict[tuple[int, int], Array] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            held = decoded(value)
            constant = _constant(value) if held is None else held.tensor
            if value is None or constant is None:
                continue
            if index in FACTORS.get(node.op_type, ()) and (weight := _weight(node, constant, held)) is not None:
                weights[id(constant)] = weight
                content = _content(_scaled(value, constant.numpy()) if held is None else held.matrix)
                multipliers[id(node)] = (constant.name or "").removeprefix(_WIDENED), weight, content
            elif (own := bias(node, index, constant.numpy())) is not None:
                vectors[id(node), index] = own.astype(np.float64)
            elif _is_vector(constant) and index not in BLOCK_GRID.get(node.op_type, ()):
                vectors[id(node), index] = constant.numpy().astype(np.float64).reshape(-1) * _factor(node, index)
        if node.op_type == "DequantizeLinear" and (scaled := _scaled_vector(node)) is not None:
            vectors[id(node), 0] = scaled
    products = tuple(_products(nodes, multipliers))
    return Contents(tuple(sorted(weights.values())), tuple(vectors.values()), products)


def _products(
    nodes: Sequence[ir.Node], multipliers: Mapping[int, tuple[str, tuple[int, int, int], Hashable]]
) -> Iterator[Product]:
    """The nodes that multiply, in order, each with the nearest ones before it.

    A node takes what its producers give and, where it holds a graph, what that graph takes from outside.
    """
    numbers = {node: number for number, node in enumerate(node for node in nodes if id(node) in multipliers)}
    nearest: dict[ir.Value, frozenset[int]] = {}

    def of(value: ir.Value | None) -> frozenset[int]:
        return frozenset() if value is None else nearest.get(value, frozenset())

    for node in nodes:
        behind = frozenset().union(*map(of, node.inputs))
        given = frozenset({numbers[node]}) if node in numbers else behind
        nearest |= dict.fromkeys(node.outputs, given)
        if node in numbers:
            name, (small, large, bits), content = multipliers[id(node)]
            yield Product(name, (small, large), bits, content, behind)


_MIX = np.uint64(0x9E3779B97F4A7C15)


def _content(array: Array) -> Hashable:
    """Equal for arrays of the same numbers in another order or with zeros between, as runtimes store weights, float16
    as float32."""
    flat = np.ascontiguousarray(array, np.float32 if array.dtype == np.float16 else None).reshape(-1)
    width = flat.dtype.itemsize if flat.dtype.itemsize in (1, 2, 4, 8) else 1
    words = flat.view(f"u{width}").astype(np.uint64)
    words = words[words != 0]
    with np.errstate(over="ignore"):
        mixed = words * _MIX
        mixed ^= mixed >> np.uint64(29)
        mixed *= _MIX
    return len(words), int(mixed.sum(dtype=np.uint64)), int(np.bitwise_xor.reduce(mixed, initial=np.uint64(0)))


def _constant(value: ir.Value | None, scaling: Collection[str] = _SCALING) -> ir.TensorProtocol | None:
    """The tensor behind a value, through views, casts and constant scales, or None for a computed one."""
    scales: list[Array] = []
    while value is not None:
        node, held = value.producer(), value.const_value
        if held is None and node is not None and node.op_type == "Constant":
            attribute = node.attributes.get("value")
            held = None if attribute is None else attribute.as_tensor()
        if held is not None:
            return held if all(broadcasts(scale.shape, held.numpy().shape) for scale in scales) else None
        if node is None:
            return None
        if node.op_type in scaling:
            scale = _constant(node.inputs[1], ())
            if scale is None:
                return None
            scales.append(scale.numpy())
        elif node.op_type not in _VIEWS:
            return None
        value = node.inputs[0]
    return None


def _scaled(value: ir.Value, array: Array) -> Array:
    """A constant times the scales between it and a value, which the runtime leaves there in models in float16."""
    node = value.producer()
    while node is not None and node.op_type in (*_VIEWS, "Mul") and node.inputs[0] is not None:
        scale = _constant(node.inputs[1], ()) if node.op_type == "Mul" else None
        if scale is not None and array.dtype.kind == "f":
            array = array * scale.numpy()
        node = node.inputs[0].producer()
    return array


def _weight(node: ir.Node, constant: ir.TensorProtocol, held: Decoded | None) -> tuple[int, int, int] | None:
    """(smaller side, larger side, bits per element) of a weight; None for what is no matrix."""
    packed = sides(node)
    if packed is not None:
        return min(packed), max(packed), node.attributes.get_int("bits", 4)
    plain = sides(node, tuple(int(side) for side in constant.numpy().shape) if held is None else held.sides)
    if plain is None:
        return None
    return min(plain), max(plain), constant.dtype.bitwidth if held is None else held.bits


def _is_vector(constant: ir.TensorProtocol) -> bool:
    """Whether this can be a bias: floats along one axis, all other axes 1."""
    longest = max(constant.numpy().shape, default=1)
    return constant.dtype.is_floating_point() and constant.size == longest > 0


def _factor(node: ir.Node, index: int) -> float:
    """What a constant counts: Gemm's beta for its third input."""
    return node.attributes.get_float("beta", 1.0) if node.op_type in ("Gemm", "FusedGemm") and index == 2 else 1.0


def _scaled_vector(node: ir.Node) -> Array | None:
    """An int32 bias in front of its DequantizeLinear, as float."""
    codes, scales = _constant(node.inputs[0]), _constant(node.inputs[1])
    if codes is None or scales is None or len(codes.shape) != 1:
        return None
    return np.asarray(codes.numpy().astype(np.float64) * scales.numpy().astype(np.float64))
