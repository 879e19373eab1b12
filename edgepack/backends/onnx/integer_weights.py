"""Weights that a file holds in integers: they become float constants, and the operators that multiply by them layers.

They stand behind DequantizeLinear, or behind Cast, Sub and Mul; or they are those of MatMulInteger, ConvInteger and
DynamicQuantizeLSTM, whose float inputs are put on a grid at every inference, or of MatMulNBits. QLinearMatMul,
QLinearConv and QGemm, which take integers and give some, become DequantizeLinear, the product in float and
QuantizeLinear: the same answers but for what lies half-way between two codes. So do float operators that stand between
such two already, which the runtime makes products of integers.

Their bias is subtracted behind them, zeros where they have none: of a Conv or Gemm that stands right between such nodes
the runtime would round the weight, with one scale for all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.decoded import tensor_of
from edgepack.backends.onnx.folded import INITIALIZERS_APART, WEIGHTS, Folder, along, initializer
from edgepack.backends.onnx.integers import DEEPEST, is_decoded
from edgepack.backends.onnx.kinds import OPERATORS
from edgepack.backends.onnx.kinds.recurrent import GATES, QUANTIZED, STATES, R, W
from edgepack.backends.onnx.schemes import DOMAIN, FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, NBITS8, WEIGHTS8
from edgepack.backends.onnx.values import Names, take_over
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

BIAS = 2
"""Where Gemm and Conv have it."""
KERNELS = (3, 4)
"""Axes of kernels along one axis or two."""
_KEPT = ("ConvInteger", "QLinearConv", "Conv", QUANTIZED)
"""Operators whose attributes those in their place have as well."""
_TOLERANT = (NBITS4, INT8_STATIC, NBITS8, INT8_DYNAMIC, WEIGHTS8)
"""What weights may have been stored in, the least like floats first."""
_FLOAT = 1  # onnx.proto, TensorProto.FLOAT


def decode_weights(model: ir.Model) -> Scheme:
    """Decode them in place; what nothing uses any more is gone.

    Of files older than IR version 4 all stays as it is. A weight takes the name of its integers.

    Returns:
        The scheme by whose tolerance the model answers as it did: float32 where there was nothing to decode.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    if model.ir_version < INITIALIZERS_APART:
        return FP32
    decoder = _Decoder(model)
    found = {scheme for graph in model.graphs() for scheme in (*decoder.products(graph), *decoder.constants(graph))}
    if not found:
        return FP32
    RemoveUnusedNodesPass()(model)
    decoder.name(Names(model))
    return min(found, key=_TOLERANT.index)


class _Decoder:
    """What was decoded of a model; each decoded value once, however many operators use it."""

    def __init__(self, model: ir.Model) -> None:
        self._folder, self._names = Folder(model), Names(model)
        self._made: dict[tuple[ir.Value, bytes], tuple[ir.Value, str]] = {}

    def name(self, names: Names) -> None:
        """Give every weight the name of its integers."""
        for value, name in self._made.values():
            value.name = names.unique(name)

    def constants(self, graph: ir.Graph) -> Iterator[Scheme]:
        """Decodes weights of operators in float, and says what each was stored in."""
        for node in graph:
            for place in _weights_of(node):
                value = node.inputs[place]
                if value is None or not is_decoded(value, DEEPEST):
                    continue
                array = self._folder.array(value)
                made = None if array is None or array.dtype.kind != "f" else self._constant(value, array)
                if made is not None:
                    node.replace_input_with(place, made)
                    yield WEIGHTS8

    def products(self, graph: ir.Graph) -> Iterator[Scheme]:
        """Makes operators of integers ones in float, and says what the weight of each was stored in."""
        for node in list(graph):
            made = _PRODUCTS[node.op_type](self, node) if node.op_type in _PRODUCTS else None
            if made is not None:
                last, new = made
                graph.insert_after(last, new)
                for old, value in zip(last.outputs, new[-1].outputs, strict=True):
                    take_over(old, value)
                yield _scheme(node)

    def _constant(self, integers: ir.Value | None, array: Array) -> ir.Value | None:
        if integers is None:
            return None
        key = integers, array.tobytes()
        if key not in self._made:
            home = self._folder.home(integers)
            if home is None:
                return None
            self._made[key] = initializer(home, array, self._names.unique("decoded")), home.name or "decoded"
        return self._made[key][0]

    def _input(self, node: ir.Node, place: int) -> Array | None:
        return self._folder.array(node.inputs[place]) if len(node.inputs) > place else None

    def _node(self, old: ir.Node, kind: str, inputs: Sequence[ir.Value | None], outputs: int = 1) -> ir.Node:
        import onnx_ir as ir

        kept = list(old.attributes.values()) if old.op_type in _KEPT else []
        return ir.Node("", kind, inputs, kept, num_outputs=outputs, name=old.name)

    def scaled(self, node: ir.Node) -> tuple[ir.Node, Sequence[ir.Node]] | None:
        """MatMulInteger or ConvInteger behind DynamicQuantizeLinear, with the Cast and the Mul that make floats of its
        sums: the Mul, and the product in its place. Old quantizers add the bias of a convolution before these."""
        quantizer = node.inputs[0].producer() if node.inputs[0] is not None else None
        added = _only_user(node, "Add") if node.op_type == "ConvInteger" else None
        bias = None if added is None else _rounded_bias(added, node)
        codes, cast = self._input(node, 1), _only_user(node if bias is None or added is None else added, "Cast")
        last = None if cast is None or cast.attributes.get_int("to", 0) != _FLOAT else _only_user(cast, "Mul")
        if quantizer is None or quantizer.op_type != "DynamicQuantizeLinear" or last is None:
            return None
        if codes is None or codes.ndim < 2:
            return None
        steps = next((value for value in last.inputs if value is not None and value.producer() is not cast), None)
        both = None if steps is None else steps.producer()
        if both is None or both.op_type != "Mul" or quantizer.outputs[1] not in both.inputs:
            return None
        if len(node.inputs) < 3 or node.inputs[2] is not quantizer.outputs[2]:
            return None
        scale = next((self._folder.array(v) for v in both.inputs if v is not quantizer.outputs[1]), None)
        zero = self._input(node, 3)
        axis = 0 if node.op_type == "ConvInteger" else codes.ndim - 1
        step = None if scale is None else along(_flat(scale), codes, axis)
        offset = np.zeros((), np.int8) if zero is None else along(_flat(zero), codes, axis)
        if step is None or offset is None or node.inputs[1] is None:
            return None
        weight = (codes.astype(np.float32) - offset.astype(np.float32)) * step.astype(np.float32)
        made = self._constant(node.inputs[1], np.asarray(weight, np.float32))
        kind = "Conv" if node.op_type == "ConvInteger" else "MatMul"
        given = [quantizer.inputs[0], made, *([] if bias is None else [bias])]
        return None if made is None else (last, [self._node(node, kind, given)])

    def cells(self, node: ir.Node) -> tuple[ir.Node, Sequence[ir.Node]] | None:
        """DynamicQuantizeLSTM: itself, and the LSTM in its place."""
        inputs = list(node.inputs[:STATES])
        for place, first in ((W, STATES), (R, STATES + 2)):
            codes, scale, zero = (self._input(node, at) for at in (place, first, first + 1))
            integers = node.inputs[place] if len(node.inputs) > place else None
            if codes is None or scale is None or zero is None or integers is None:
                return None
            if codes.ndim != 3 or codes.size == 0:
                return None
            if scale.size != zero.size or scale.size not in (len(codes), len(codes) * codes.shape[2]):
                return None
            steps, zeros = (part.reshape(len(codes), 1, -1).astype(np.float32) for part in (scale, zero))
            weight = (codes.astype(np.float32) - zeros) * steps
            made = self._constant(integers, np.ascontiguousarray(weight.transpose(0, 2, 1)))
            if made is None:
                return None
            inputs[place] = made
        return node, [self._node(node, "LSTM", inputs, len(node.outputs))]

    def blocks(self, node: ir.Node) -> tuple[ir.Node, Sequence[ir.Node]] | None:
        """MatMulNBits of 4 or 8 bits, without a bias and an order of its own: itself, and the MatMul in its place."""
        packed, scale, zero = (self._input(node, at) for at in (1, 2, 3))
        integers = node.inputs[1] if len(node.inputs) > 1 else None
        known = zero is not None or not any(node.inputs[3:4])
        if packed is None or scale is None or integers is None or not known or any(node.inputs[4:]):
            return None
        weight = _of_blocks(node, packed, scale, zero)
        made = None if weight is None else self._constant(integers, np.ascontiguousarray(weight.T))
        return None if made is None else (node, [self._node(node, "MatMul", [node.inputs[0], made])])

    def requantized(self, node: ir.Node) -> tuple[ir.Node, Sequence[ir.Node]] | None:
        """QLinearMatMul, QLinearConv of one group or QGemm with a constant weight and a grid for each of its tensors:
        itself, and in its place the product in float between those that make floats of integers and integers of
        floats."""
        import onnx_ir as ir

        gemm, conv = node.op_type == "QGemm", node.op_type == "QLinearConv"
        codes, scale, zero = (self._input(node, at) for at in (3, 4, 5))
        sums, last = (6, 7) if gemm else (8, 6)
        gives_floats = gemm and not any(node.inputs[last:])
        grids = [self._input(node, at) for at in (1, 2, *(() if gives_floats else (last, last + 1)))]
        if codes is None or scale is None or zero is None or node.domain != (DOMAIN if gemm else ""):
            return None
        if codes.ndim not in (KERNELS if conv else (2,)) or not _is_plain(node):
            return None
        if any(grid is None or grid.size != 1 for grid in grids) or grids[0] is None:
            return None
        turned = gemm and node.attributes.get_int("transB", 0) == 1
        steps, zeros = (along(_flat(part), codes, 0 if turned or conv else 1) for part in (scale, zero))
        if steps is None or zeros is None:
            return None
        alpha = np.float32(node.attributes.get_float("alpha", 1.0))
        weight = (codes.astype(np.float32) - zeros.astype(np.float32)) * (steps * alpha).astype(np.float32)
        made = self._constant(node.inputs[3], np.ascontiguousarray(weight.T if turned else weight))
        bias, has_bias = self._input(node, sums), len(node.inputs) > sums and node.inputs[sums] is not None
        if has_bias and (
            bias is None or _flat(bias).shape not in ((), (1,), (codes.shape[0 if turned or conv else 1],))
        ):
            return None
        taken = [self._scalar(node, at) for at in (1, 2)]
        first = ir.Node("", "DequantizeLinear", [node.inputs[0], *taken])
        floats = None if bias is None else _flat(bias) * (alpha * grids[0].reshape(()) * _flat(scale))
        products = self._product(node, first.outputs[0], made, node.inputs[sums] if has_bias else None, floats)
        if products is None:
            return None
        nodes = [first, *products]
        if not gives_floats:
            given = [self._scalar(node, at) for at in (last, last + 1)]
            nodes.append(ir.Node("", "QuantizeLinear", [nodes[-1].outputs[0], *given]))
        return None if any(one.inputs[1] is None for one in nodes) else (node, nodes)

    def between(self, node: ir.Node) -> tuple[ir.Node, Sequence[ir.Node]] | None:
        """A Conv of one group, Gemm or MatMul in float whose input and weight are decoded integers: its last node, the
        Add of a bias behind a MatMul, and what stands in its place."""
        if node.domain != "" or len(node.inputs) < 2 or not _is_dequantized(node.inputs[0]):
            return None
        array, conv = self._input(node, 1), node.op_type == "Conv"
        if array is None or array.dtype != np.float32 or not is_decoded(node.inputs[1], DEEPEST) or not _is_plain(node):
            return None
        if array.ndim not in (KERNELS if conv else (2,)):
            return None
        bias = node.inputs[BIAS] if len(node.inputs) > BIAS else None
        factor, weight, last = node.attributes.get_float("beta", 1.0), array, node
        if node.op_type == "Gemm":
            weight = array.T if node.attributes.get_int("transB", 0) == 1 else array
            weight = weight * np.float32(node.attributes.get_float("alpha", 1.0))
        added = _only_user(node, "Add") if node.op_type == "MatMul" else None
        other = None if added is None else next((one for one in added.inputs if one is not node.outputs[0]), None)
        if added is not None and self._folder.array(other) is not None:
            last, bias = added, other
        floats = self._folder.array(bias)
        if bias is not None and (floats is None or floats.dtype != np.float32):
            return None
        made = self._constant(node.inputs[1], np.ascontiguousarray(weight))
        products = self._product(
            node, node.inputs[0], made, bias, None if floats is None else floats * np.float32(factor)
        )
        return None if products is None else (last, products)

    def _product(
        self, node: ir.Node, x: ir.Value | None, weight: ir.Value | None, bias: ir.Value | None, floats: Array | None
    ) -> list[ir.Node] | None:
        """An operator's product in float, and behind it the bias, which is subtracted.

        Args:
            node: what it is made of.
            weight: of MatMul, or the kernel.
            bias: what the numbers of the bias come from; None where there is none.
            floats: these.
        """
        import onnx_ir as ir

        conv = node.op_type in ("QLinearConv", "Conv")
        if weight is None or weight.const_value is None:
            return None
        made = [self._node(node, "Conv" if conv else "MatMul", [x, weight])]
        if floats is None and not conv:
            return made
        outputs, _, *places = weight.const_value.numpy().shape
        less = np.zeros(outputs, np.float32) if floats is None else -floats.astype(np.float32)
        if conv:
            less = np.broadcast_to(less.reshape(-1), (outputs,)).reshape(-1, *(1 for _ in places))
        subtracted = self._constant(
            node.inputs[3 if node.op_type == "QLinearConv" else 1] if bias is None else bias, less
        )
        if subtracted is None:
            return None
        return [*made, ir.Node("", "Sub", [made[0].outputs[0], subtracted])]

    def _scalar(self, node: ir.Node, place: int) -> ir.Value | None:
        """A constant of one number that an operator has there, without axes."""
        value, array = node.inputs[place], self._input(node, place)
        return value if value is None or array is None or array.ndim == 0 else self._constant(value, array.reshape(()))


_PRODUCTS: Mapping[str, Callable[[_Decoder, ir.Node], tuple[ir.Node, Sequence[ir.Node]] | None]] = {
    "MatMulInteger": _Decoder.scaled,
    "ConvInteger": _Decoder.scaled,
    QUANTIZED: _Decoder.cells,
    "MatMulNBits": _Decoder.blocks,
    "QLinearMatMul": _Decoder.requantized,
    "QLinearConv": _Decoder.requantized,
    "QGemm": _Decoder.requantized,
    "Conv": _Decoder.between,
    "Gemm": _Decoder.between,
    "MatMul": _Decoder.between,
}
"""By operator, what finds its last node and makes those in float, of which the last gives what that gave."""


def _scheme(node: ir.Node) -> Scheme:
    """What the weight of an operator of `_PRODUCTS` is stored in."""
    if _PRODUCTS[node.op_type] in (_Decoder.requantized, _Decoder.between):
        return INT8_STATIC
    if node.op_type != "MatMulNBits":
        return INT8_DYNAMIC
    return NBITS4 if node.attributes.get_int("bits", 4) == NBITS4.bits else NBITS8


def _is_plain(node: ir.Node) -> bool:
    """Whether it is a convolution of one group, or a product with an input as it is."""
    return node.attributes.get_int("group", 1) == 1 and node.attributes.get_int("transA", 0) == 0


def _only_user(node: ir.Node, kind: str) -> ir.Node | None:
    """The node that reads the only output of another, if it is of a kind and the only one."""
    users = [user for user, _ in node.outputs[0].uses()]
    alone = len(users) == 1 and not node.outputs[0].is_graph_output()
    return users[0] if alone and users[0].op_type == kind else None


def _rounded_bias(added: ir.Node, node: ir.Node) -> ir.Value | None:
    """The constant bias that is put on the grid of a product's sums, one number a channel, to be added to these."""
    value = next((one for one in added.inputs if one is not None and one.producer() is not node), None)
    for kind in ("Reshape", "Cast", "Floor", "Div"):
        before = None if value is None else value.producer()
        if before is None or before.op_type != kind:
            return None
        value = before.inputs[0]
    tensor = tensor_of(value)
    return value if tensor is not None and len(tensor.shape) == 1 else None


def _flat(part: Array) -> Array:
    """Numbers along one axis, without axes of 1 around it."""
    return part.reshape(-1) if max(part.shape, default=1) == part.size else part


def _of_blocks(node: ir.Node, packed: Array, scale: Array, zero: Array | None) -> Array | None:
    """(N, K) in the type of the scales; None where the sizes do not fit each other."""
    bits = node.attributes.get_int("bits", 4)
    rows, columns, block = (node.attributes.get_int(name, 0) for name in ("N", "K", "block_size"))
    if bits not in (4, 8) or min(rows, columns, block) < 1 or scale.dtype.kind != "f":
        return None
    runs = ceil(columns / block)
    if block * bits % 8 or packed.dtype != np.uint8:
        return None
    if packed.size * 8 != rows * runs * block * bits or scale.size != rows * runs:
        return None
    zeros: Array = np.full(scale.size, 1 << (bits - 1), np.float32)
    if zero is not None:
        packs = zero.dtype.kind != "f"
        if zero.size != (rows * ceil(runs * bits / 8) if packs else scale.size):
            return None
        each = _unpacked(zero.reshape(rows, -1), bits)[:, :runs] if packs else zero
        zeros = each.reshape(-1).astype(np.float32)
    codes = _unpacked(packed.reshape(scale.size, -1), bits).astype(np.float32)
    weight = (codes - zeros[:, None]) * scale.reshape(-1, 1).astype(np.float32)
    return weight.reshape(rows, -1)[:, :columns].astype(scale.dtype)


def _unpacked(packed: Array, bits: int) -> Array:
    """(n, codes) of (n, bytes), of 4 bits the lower ones first."""
    return packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _weights_of(node: ir.Node) -> tuple[int, ...]:
    """The inputs of an operator that may be such weights; none where the others are decoded integers too."""
    places = OPERATORS.get(node.op_type, ()) if node.domain == "" else ()
    if any(_is_dequantized(value) for place, value in enumerate(node.inputs) if place in (0, *places)):
        return ()
    if not places:
        return ()
    own = (*places, *(WEIGHTS if node.op_type in GATES else (BIAS,)))
    return tuple(dict.fromkeys(place for place in own if place < len(node.inputs)))


def _is_dequantized(value: ir.Value | None) -> bool:
    """Whether a value is decoded from integers that an inference computes."""
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "DequantizeLinear" and not is_decoded(value, DEEPEST)
