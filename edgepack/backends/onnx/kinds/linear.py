"""Linear layers in ONNX: Gemm, MatMul with a constant matrix, 1×1 Conv.

Float products in a layer's place, and the schemes: int8 with dynamic or static QDQ activations, block-wise weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.axes import FLOAT, enter, leave
from edgepack.backends.onnx.constexpr import constexpr_layer
from edgepack.backends.onnx.kinds.kind import Storing
from edgepack.backends.onnx.matching import Use, match
from edgepack.backends.onnx.schemes import CONSTEXPR, DOMAIN, SCHEMES
from edgepack.errors import ModelError
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import activation_grid, block_for, pack, quantize_blocks, quantize_matrix

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.constants import Reader
    from edgepack.backends.onnx.rewrite import Build, Builder
    from edgepack.backends.onnx.sites import Placement, Site

Shared = dict[tuple[object, ...], "tuple[ir.Value, ...]"]

CLIPPING = frozenset({"Relu", "Clip"})
"""What a quantizer's own limits can stand for, so that it does not come between a product and its QuantizeLinear."""

AXIS_OPSET = 13
"""DequantizeLinear knows an axis, and so per-channel weights, from this opset on; before it, MatMulInteger serves."""

INT8_COMPUTE = 4
"""Accuracy level: the kernel rounds the input to int8, block by block, where the CPU has such a kernel."""


class OnnxLinear:
    """See `OnnxKind`."""

    schemes: tuple[Scheme, ...] = (*SCHEMES, CONSTEXPR)
    operators: Mapping[str, tuple[int, ...]] = {"Gemm": (0, 1), "MatMul": (0, 1), "Conv": (1,)}
    factors: Mapping[str, tuple[int, ...]] = {
        **operators,
        "MatMulInteger": (0, 1),
        "ConvInteger": (1,),
        "QLinearMatMul": (0, 3),
        "QLinearConv": (3,),
        "FusedMatMul": (0, 1),
        "FusedGemm": (0, 1),
        "FusedConv": (1,),
        "QGemm": (0, 3),
        "DynamicQuantizeMatMul": (1,),
        "MatMulIntegerToFloat": (0, 1),
        "MatMulNBits": (1,),
    }

    def match(self, node: ir.Node, reader: Reader) -> Use | None:
        """See `OnnxKind`."""
        return match(node, reader)

    def layer(self, name: str, use: Use, bias: Array | None, uses: int) -> Layer:
        """See `OnnxKind`."""
        return linear_layer(name, np.asarray(use.weight, np.float32), bias, use.node.op_type, uses)

    def sides(self, node: ir.Node, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Of a matrix, a 1×1 kernel, or (out, in) of a weight in blocks without its padding."""
        if node.op_type == "MatMulNBits":
            return node.attributes.get_int("N", 0), node.attributes.get_int("K", 0)
        return None if len(shape) < 2 or any(side != 1 for side in shape[2:]) else (shape[0], shape[1])

    def bias(self, node: ir.Node, index: int, constant: Array) -> Array | None:
        """None: it has a constant to itself."""
        return None

    def refuses(self, layer: Layer, scheme: Scheme) -> str | None:
        """None: every scheme takes every matrix."""
        return None

    def replace(self, site: Site, part: Replacement) -> Build:
        """Two thin products, three with a dense one beside them, or the operators of code."""
        if part.structure.is_constexpr:
            return constexpr_layer(site, part)
        _check(site.layer, part)
        pair = _pair(site, part)
        return _beside(site, part.base, pair) if "base" in part.tensors else pair

    def stored(self, site: Site, scheme: Scheme, storing: Storing) -> Build | None:
        """See `OnnxKind`."""
        if scheme.granularity == "block":
            return nbits(site, scheme.bits)
        qmax = scheme.qmax_within(storing.qmax)
        if scheme.is_float or scheme.is_constexpr:
            return None
        if scheme.computes_in_float:
            return _decoded(site, scheme.bits, qmax)
        if scheme.activations == "dynamic":
            return _dynamic(site, storing.shared, qmax)
        if scheme.activations == "static" and site.layer.name in storing.ranges:
            return _static(site, storing, storing.ranges[site.layer.name], qmax)
        return None


def _check(layer: Layer, pair: Replacement) -> None:
    name, sides = layer.name, (layer.out_features, layer.in_features)
    if (*pair.A.shape, *pair.B.shape) != (sides[0], pair.rank, pair.rank, sides[1]):
        raise ModelError(
            f"factors of layer {name!r}: found A {pair.A.shape} and B {pair.B.shape}, "
            f"expected ({sides[0]}, r) and (r, {sides[1]})"
        )
    if "base" in pair.tensors and pair.base.shape != sides:
        raise ModelError(f"factors of layer {name!r}: found a matrix {pair.base.shape} beside them, expected {sides}")
    if pair.bias is not None and pair.bias.shape != sides[:1]:
        raise ModelError(f"factors of layer {name!r}: found a bias {pair.bias.shape}, expected {sides[:1]}")


def _pair(site: Site, pair: Replacement) -> Build:
    """B, then A with the bias. A B that other layers have as well is there once."""
    from edgepack.backends.onnx.rewrite import latent_key

    bias = site.layer.bias if pair.bias is None else pair.bias

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        return product(builder, first(builder, x, placement), pair.A, "A", placement, bias)

    def first(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        if not pair.structure.is_shared:
            return product(builder, x, pair.B, "B", placement, None)
        key = latent_key(placement, pair)
        if key not in builder.latents:
            builder.latents[key] = product(builder, x, pair.B, "B", placement, None)
        return builder.latents[key]

    def product(
        builder: Builder, x: ir.Value, matrix: Array, suffix: str, placement: Placement, bias: Array | None
    ) -> ir.Value:
        weight = site.put(builder, _laid_out(matrix, placement)[0], suffix)
        return _float_product(builder, x, weight, placement, site, bias)

    return build


def _laid_out(matrix: Array, placement: Placement) -> tuple[Array, int]:
    """A matrix (out, in) as the float operator of this place takes it, and the axis of its output channels."""
    if placement.kind == "conv":
        return matrix.reshape(*matrix.shape, *(1,) * placement.spatial), 0
    return (matrix, 0) if placement.kind == "columns" else (matrix.T, 1)


def _float_product(
    builder: Builder, x: ir.Value, weight: ir.Value, placement: Placement, site: Site, bias: Array | None
) -> ir.Value:
    """The operator of this place with a weight laid out for it, and the bias."""
    if placement.kind == "conv":
        return builder.op("Conv", [x, weight] if bias is None else [x, weight, site.put(builder, bias, "bias")])
    if placement.kind == "columns":
        y = builder.op("MatMul", [weight, x])
        bias = bias if bias is None or placement.rank == 1 else bias[:, None]
    elif bias is not None and placement.node.op_type == "Gemm":
        return builder.op("Gemm", [x, weight, site.put(builder, bias, "bias")])
    else:
        y = builder.op("MatMul", [x, weight])
    return y if bias is None else builder.op("Add", [y, site.put(builder, bias, "bias")])


def _decoded(site: Site, bits: int, qmax: int) -> Build:
    """The float operator, its weight an integer constant that is decoded at load."""
    codes, scales = quantize_matrix(site.layer.weight, qmax=qmax)

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        stored, axis = _laid_out(codes, placement)
        steps = scales.reshape([-1 if i == axis else 1 for i in range(stored.ndim)]) if scales.ndim else scales
        weight = builder.decoded(np.ascontiguousarray(stored), steps, site.layer.name, site.dtype, bits)
        return _float_product(builder, x, weight, placement, site, site.layer.bias)

    return build


def _beside(site: Site, base: Array, pair: Build) -> Build:
    """The pair, with the bias, and then a dense matrix on the same input."""

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        y = pair(builder, x, placement)
        if placement.kind == "conv":
            weight = site.put(builder, base.reshape(*base.shape, *(1,) * placement.spatial), "base")
            return builder.op("Add", [y, builder.op("Conv", [x, weight])])
        if placement.kind == "columns":
            return builder.op("Add", [y, builder.op("MatMul", [site.put(builder, base, "base"), x])])
        return builder.op("Add", [y, builder.op("MatMul", [x, site.put(builder, base.T, "base")])])

    return build


def _dynamic(site: Site, shared: Shared, qmax: int) -> Build:
    """DynamicQuantizeLinear → MatMulInteger or ConvInteger → scale."""

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        x = enter(builder, x, placement, site.dtype)
        key = ("dynamic", placement.graph, x)
        if key not in shared:
            shared[key] = tuple(builder.op("DynamicQuantizeLinear", [x], outputs=3))
        return _finish(builder, _integer(builder, shared[key], placement, site, qmax), placement, site)

    return build


def _static(site: Site, storing: Storing, low_high: tuple[float, float], qmax: int) -> Build:
    """QuantizeLinear → DequantizeLinear → MatMul or Gemm, which the runtime fuses into one integer kernel."""

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        x = enter(builder, x, placement, site.dtype)
        if placement.kind == "conv" or builder.opset < AXIS_OPSET:
            # ConvInteger takes unsigned inputs: the same grid, moved up by 128.
            key = ("static", placement.graph, x, activation_grid(*low_high))
            if key not in storing.shared:
                storing.shared[key] = _quantized(builder, x, site.layer.name, low_high, unsigned=True)
            return _finish(builder, _integer(builder, storing.shared[key], placement, site, qmax), placement, site)
        # One QuantizeLinear per layer: the runtime's x86 build does not fuse layers that share one.
        codes, scale, zero = _quantized(builder, x, site.layer.name, low_high, unsigned=False)
        x_grid = builder.op("DequantizeLinear", [codes, scale, zero])
        if placement.rank == 2 and not _before_float_clip(placement, storing):
            y = _static_gemm(builder, x_grid, placement, site.layer, activation_grid(*low_high)[0], qmax)
            if y is not None:
                return leave(builder, y, placement, site.dtype)
        weight, scales = quantize_matrix(site.layer.weight, qmax=qmax)
        w_grid = _weight_grid(builder, site.layer.name, np.ascontiguousarray(weight.T), scales, axis=1)
        return _finish(builder, builder.op("MatMul", [x_grid, w_grid]), placement, site)

    return build


def _quantized(
    builder: Builder, x: ir.Value, name: str, low_high: tuple[float, float], *, unsigned: bool
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(codes, scale, zero point) of `x` on its static grid."""
    step, point = activation_grid(*low_high)
    scale = builder.constant(np.asarray(step, np.float32), f"{name}.x_scale")
    zero = builder.constant(
        np.asarray(point + 128, np.uint8) if unsigned else np.asarray(point, np.int8), f"{name}.x_zero_point"
    )
    return builder.op("QuantizeLinear", [x, scale, zero]), scale, zero


def _integer(builder: Builder, x: tuple[ir.Value, ...], placement: Placement, site: Site, qmax: int) -> ir.Value:
    """Integer product of `x` = (codes, scale, zero point) with the layer's weight, scaled back to float32."""
    codes_x, x_scale, x_zero = x
    name = site.layer.name
    codes, scales = quantize_matrix(site.layer.weight, qmax=qmax)
    if placement.kind == "conv":
        spatial = (1,) * placement.spatial
        weight = builder.constant(codes.reshape(*codes.shape, *spatial), f"{name}.int8")
        scale = builder.constant(scales.reshape(-1, *spatial) if scales.ndim else scales, f"{name}.scale")
        total = builder.op("ConvInteger", [codes_x, weight, x_zero])
    else:
        weight = builder.constant(np.ascontiguousarray(codes.T), f"{name}.int8")
        scale = builder.constant(scales, f"{name}.scale")
        total = builder.op("MatMulInteger", [codes_x, weight, x_zero])
    # scale·scale first, then one Mul: the pattern that the runtime fuses into a single kernel.
    both = builder.op("Mul", [x_scale, scale])
    return builder.op("Mul", [builder.op("Cast", [total], {"to": FLOAT}), both])


def _weight_grid(builder: Builder, name: str, codes: Array, scales: Array, *, axis: int) -> ir.Value:
    """DequantizeLinear of an int8 weight. The zero points are spelled out: without them the runtime does not fuse."""
    weight = builder.constant(codes, f"{name}.int8")
    scale = builder.constant(scales, f"{name}.scale")
    zeros = builder.constant(np.zeros(scales.shape, np.int8), f"{name}.zero_point")
    return builder.op("DequantizeLinear", [weight, scale, zeros], {"axis": axis if scales.ndim else None})


def _static_gemm(
    builder: Builder, x_grid: ir.Value, placement: Placement, layer: Layer, x_scale: float, qmax: int
) -> ir.Value | None:
    """Gemm with an int32 bias, which becomes one integer kernel with a float result; None where the bias overflows."""
    codes, scales = quantize_matrix(layer.weight, qmax=qmax)
    inputs = [x_grid, _weight_grid(builder, layer.name, codes, scales, axis=0)]
    bias = layer.bias
    if bias is None and _before_transpose(placement):
        # Without a bias the runtime folds the Transpose into the Gemm, and then finds no integer kernel for it.
        bias = np.zeros(layer.out_features, np.float32)
    if bias is not None:
        bias_scales = np.asarray(scales * np.float32(x_scale), np.float32)
        levels = np.rint(bias / bias_scales)
        if not np.abs(levels).max() < 2**30:
            return None
        bias_codes = builder.constant(levels.astype(np.int32), f"{layer.name}.bias.int32")
        scale = builder.constant(bias_scales, f"{layer.name}.bias.scale")
        zeros = builder.constant(np.zeros(scales.shape, np.int32), f"{layer.name}.bias.zero_point")
        axis = 0 if scales.ndim else None
        inputs.append(builder.op("DequantizeLinear", [bias_codes, scale, zeros], {"axis": axis}))
    return builder.op("Gemm", inputs, {"transB": 1})


def _before_float_clip(placement: Placement, storing: Storing) -> bool:
    """Whether a Relu or Clip follows whose result nothing but one float operator takes.

    The runtime then looks for a quantizer behind the two, finds none, and leaves the Gemm in float: its whole weight is
    decoded at every inference.
    """
    followers = {node for node, _ in placement.y.uses()}
    clip = followers.pop() if len(followers) == 1 else None
    if clip is None or clip.op_type not in CLIPPING or clip.outputs[0].is_graph_output():
        return False
    readers = {node for node, _ in clip.outputs[0].uses()}
    return len(readers) == 1 and not any(one.op_type == "QuantizeLinear" or one in storing.static for one in readers)


def _before_transpose(placement: Placement) -> bool:
    return placement.kind == "columns" or any(node.op_type == "Transpose" for node, _ in placement.y.uses())


def _finish(builder: Builder, y: ir.Value, placement: Placement, site: Site) -> ir.Value:
    """Add the bias and undo `enter`."""
    bias = _shaped_bias(site.layer, placement)
    if bias is not None and _producer(y) == "MatMul":
        # MatMul + Add would be fused into a Gemm, for which the runtime has no integer kernel without an int32 bias: it
        # would dequantize the whole weight at every run. MatMul − (−b) stays an integer MatMul.
        y = builder.op("Sub", [y, builder.constant(-bias, f"{site.layer.name}.bias.negative")])
    elif bias is not None:
        y = builder.op("Add", [y, builder.constant(bias, f"{site.layer.name}.bias")])
    return leave(builder, y, placement, site.dtype)


def _shaped_bias(layer: Layer, placement: Placement) -> Array | None:
    if layer.bias is None:
        return None
    if placement.kind == "conv":
        return layer.bias.reshape(-1, *(1,) * placement.spatial)
    return layer.bias


def _producer(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.op_type


def nbits(site: Site, bits: int) -> Build:
    """One MatMulNBits with the bias as its own input.

    A 1×1 convolution becomes the same product between two Transposes: the operator knows no other place for features.
    The kernels do not saturate, so codes use their whole range on every target.

    Args:
        site: the layer.
        bits: 2, 4 or 8.
    """
    layer = site.layer
    block = block_for(layer.in_features)
    codes, scales = quantize_blocks(layer.weight, bits, block)
    packed = pack(codes, bits)
    attributes = {
        "K": layer.in_features,
        "N": layer.out_features,
        "bits": bits,
        "block_size": block,
        "accuracy_level": INT8_COMPUTE,
    }

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        x = enter(builder, x, placement, site.dtype, convolutions=True)
        inputs: list[ir.Value | None] = [
            x,
            builder.constant(packed, f"{layer.name}.int{bits}"),
            builder.constant(scales, f"{layer.name}.scale"),
        ]
        if layer.bias is not None:
            inputs += [None, None, builder.constant(np.asarray(layer.bias, np.float32), f"{layer.name}.bias")]
        y = builder.op("MatMulNBits", inputs, attributes, domain=DOMAIN)
        return leave(builder, y, placement, site.dtype, convolutions=True)

    return build
