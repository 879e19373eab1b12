"""Recurrent layers in ONNX: LSTM, GRU and RNN with constant weights, one direction or both.

The fused operator stays: it gets other weights for its inputs, and for low-rank factors a product in front of it. With
8 bits and dynamic activations an LSTM becomes the runtime's DynamicQuantizeLSTM, the weights of its state included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.onnx.constants import Reader, root_of
from edgepack.backends.onnx.decoded import decoded
from edgepack.backends.onnx.kinds.kind import Storing, check_part
from edgepack.backends.onnx.matching import Use, is_float
from edgepack.backends.onnx.schemes import DOMAIN, FP32, INT8_DYNAMIC, WEIGHTS4, WEIGHTS8
from edgepack.backends.onnx.values import take_over
from edgepack.model.kinds.recurrent import RecurrentGeometry, recurrent_layer
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import quantize_matrix, quantize_weight

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.rewrite import Build, Builder
    from edgepack.backends.onnx.sites import Placement, Site

GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}
QUANTIZED = "DynamicQuantizeLSTM"
X, W, R, B = 0, 1, 2, 3
"""Inputs of all three operators."""
STATES = 8
"""Inputs of an LSTM up to its peepholes, behind which the quantized one has its scales."""


class OnnxRecurrent:
    """See `OnnxKind`."""

    schemes: tuple[Scheme, ...] = (FP32, WEIGHTS8, WEIGHTS4, INT8_DYNAMIC)
    operators: Mapping[str, tuple[int, ...]] = dict.fromkeys(GATES, (W,))
    factors: Mapping[str, tuple[int, ...]] = {**operators, QUANTIZED: (W,)}

    def match(self, node: ir.Node, reader: Reader) -> Use | None:
        """See `OnnxKind`."""
        if node.domain != "" or node.op_type not in GATES or any(one.is_ref() for one in node.attributes.values()):
            return None
        x, weight = (node.inputs[i] if len(node.inputs) > i else None for i in (X, W))
        matrices, root = (None, None) if weight is None else (reader.read(weight), root_of(weight))
        if x is None or root_of(x) is not None or matrices is None or root is None:
            return None
        if matrices.ndim != 3 or matrices.size == 0 or not is_float(matrices, root):
            return None
        rows = matrices.shape[0] * matrices.shape[1]
        matrix = reader.derive(matrices, ("Reshape", (rows, matrices.shape[2]), True))
        both = _biases(node, reader)
        if matrix is None or (both is None and _has(node, B)):
            return None
        if both is not None and both.shape != (matrices.shape[0], 2 * matrices.shape[1]):
            return None
        bias = None if both is None else _of_input(both)
        # Cells that share a weight for their inputs and have other biases are layers of their own.
        alike = (node.op_type, matrices.shape, None if both is None else both.tobytes())
        return Use(node, "rows", matrix, root, X, bias=bias, alike=alike)

    def layer(self, name: str, use: Use, bias: Array | None, uses: int) -> Layer:
        """See `OnnxKind`."""
        weight, operator = np.asarray(use.weight, np.float32), use.node.op_type
        geometry = RecurrentGeometry(operator, len(weight) // (_directions(use.node) * GATES[operator]))
        return recurrent_layer(name, weight, bias, geometry, uses)

    def sides(self, node: ir.Node, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Of the matrices of all gates and directions as one; the quantized operator has them transposed."""
        if len(shape) != 3:
            return None
        directions, *rest = shape
        inputs, rows = rest if node.op_type == QUANTIZED else reversed(rest)
        return directions * rows, inputs

    def bias(self, node: ir.Node, index: int, constant: Array) -> Array | None:
        """The first half for every direction: the second belongs to the state."""
        return _of_input(constant) if index == B and constant.ndim == 2 else None

    def refuses(self, layer: Layer, scheme: Scheme) -> str | None:
        """See `OnnxKind`."""
        if scheme == INT8_DYNAMIC and layer.geometry.operator != "LSTM":
            return f"the runtime has no integer kernel for {layer.geometry.operator}"
        return None

    def replace(self, site: Site, part: Replacement) -> Build:
        """A product to r features and the operator on top of it, or the operator with another weight.

        Raises:
            ModelError: it is neither, or does not fit the layer.
        """
        layer, is_pair = site.layer, part.structure.is_low_rank
        check_part(layer, part, "a recurrent layer")
        bias = layer.bias if part.bias is None else part.bias

        def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
            if is_pair:
                x = builder.op("MatMul", [x, site.put(builder, part.B.T, "B")])
            role, matrix = ("A", part.A) if is_pair else ("weight", part.weight)
            return _cells(builder, x, placement, site, site.put(builder, _by_gates(matrix, site), role), bias)

        return build

    def stored(self, site: Site, scheme: Scheme, storing: Storing) -> Build | None:
        """See `OnnxKind`."""
        layer, qmax = site.layer, scheme.qmax_within(storing.qmax)
        if scheme == INT8_DYNAMIC:
            return _quantized(site, qmax) if layer.geometry.operator == "LSTM" else None
        if scheme not in (WEIGHTS8, WEIGHTS4):
            return None
        codes, scales = quantize_matrix(layer.weight, qmax=qmax)

        def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
            steps = _by_gates(scales[:, None], site) if scales.ndim else scales
            weight = builder.decoded(_by_gates(codes, site), steps, layer.name, site.dtype, scheme.bits)
            return _cells(builder, x, placement, site, weight, layer.bias)

        return build


def _has(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _biases(node: ir.Node, reader: Reader) -> Array | None:
    """(directions, 2 · gates · units): of the inputs, then of the state; None where the node has none that is known."""
    value = node.inputs[B] if _has(node, B) else None
    return None if value is None else reader.read(value)


def _of_input(both: Array) -> Array:
    return np.ascontiguousarray(both[:, : both.shape[1] // 2], np.float32).reshape(-1)


def _by_gates(matrix: Array, site: Site) -> Array:
    """A matrix (directions · gates · units, n) as the operators take it, by directions."""
    return np.ascontiguousarray(matrix.reshape(_directions(site.placements[0].node), -1, matrix.shape[1]))


def _directions(node: ir.Node) -> int:
    return 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1


def _biases_with(builder: Builder, placement: Placement, site: Site, bias: Array | None) -> ir.Value | None:
    """The operator's own biases, with another one of the inputs."""
    node = placement.node
    old = node.inputs[B] if _has(node, B) else None
    if bias is None:
        return old
    own = _by_gates(bias[:, None], site)[..., 0]
    known = _biases(node, Reader())
    of_state = np.zeros_like(own) if known is None else known[:, own.shape[1] :]
    return site.put(builder, np.concatenate([own, of_state], axis=1), "bias")


def _cells(
    builder: Builder, x: ir.Value, placement: Placement, site: Site, weight: ir.Value, bias: Array | None
) -> ir.Value:
    """The operator of this place on another input, with another weight for it."""
    node = placement.node
    inputs = [x, weight, *node.inputs[R:]]
    changed = _biases_with(builder, placement, site, bias)
    if changed is not None:
        inputs[B:] = [changed, *inputs[B + 1 :]]
    return _applied(builder, node.op_type, inputs, placement)


def _quantized(site: Site, qmax: int) -> Build:
    """DynamicQuantizeLSTM, the weights of inputs and state on a grid per gate and unit."""

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        node, name = placement.node, site.layer.name
        state = _state_weight(node)
        matrices = _by_gates(site.layer.weight, site)
        if state is None or site.dtype != np.float32 or node.attributes.get_int("layout", 0) != 0:
            return _cells(builder, x, placement, site, site.put(builder, matrices, "weight"), site.layer.bias)
        of_input = _grid(matrices, qmax)
        of_state = _grid(state, qmax)
        inputs: list[ir.Value | None] = [x, *node.inputs[W:STATES]]
        inputs += [None] * (STATES - len(inputs))
        inputs[W] = builder.constant(of_input[0], f"{name}.int8")
        inputs[R] = builder.constant(of_state[0], f"{name}.state.int8")
        inputs[B] = _biases_with(builder, placement, site, site.layer.bias)
        for role, (_, scales) in (("", of_input), ("state.", of_state)):
            inputs.append(builder.constant(scales, f"{name}.{role}scale"))
            inputs.append(builder.constant(np.zeros(scales.shape, np.int8), f"{name}.{role}zero_point"))
        return _applied(builder, QUANTIZED, inputs, placement, DOMAIN)

    return build


def _state_weight(node: ir.Node) -> Array | None:
    """(directions, gates · units, units), also where it is decoded at load by now."""
    value = node.inputs[R] if _has(node, R) else None
    held = decoded(value)
    if held is not None:
        return held.matrix
    return None if value is None else Reader().read(value)


def _grid(matrices: Array, qmax: int) -> tuple[Array, Array]:
    """Codes (directions, in, gates · units) int8, and scales (directions, gates · units)."""
    found = [quantize_weight(matrix, qmax=qmax) for matrix in matrices]
    return np.stack([codes.T for codes, _ in found]), np.stack([scales for _, scales in found])


def _applied(
    builder: Builder, operator: str, inputs: list[ir.Value | None], placement: Placement, domain: str = ""
) -> ir.Value:
    """An operator with the attributes of the one that stands here, which takes over all its outputs but the first.

    The runtime's own operators have no layout, which is the usual one there.
    """
    node, count = placement.node, len(placement.node.outputs)
    given = (one for one in node.attributes.values() if not domain or one.name != "layout")
    attributes: dict[str, Any] = {one.name: one.value for one in given}
    made = builder.op(operator, inputs, attributes, domain, count)
    outputs = made if isinstance(made, tuple) else (made,)
    for old, new in zip(node.outputs[1:], outputs[1:], strict=True):
        take_over(old, new)
    return outputs[0]
