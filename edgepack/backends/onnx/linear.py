"""Writes linear layers in their schemes: int8 with dynamic or with static QDQ activations, block-wise weights.

Every linear layer of a graph is rewritten, dense and thin ones alike: a pair is simply two layers here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.axes import FLOAT, enter, leave
from edgepack.backends.onnx.constexpr import coded_layer, least_opset
from edgepack.backends.onnx.schemes import CONSTEXPR, SCHEMES
from edgepack.errors import ModelError, UsageError
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.quantize.grids import WEIGHT_MAX, activation_grid, block_for, pack, quantize_blocks, quantize_weight

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.rewrite import Builder
    from edgepack.backends.onnx.sites import Placement, Site

AXIS_OPSET = 13
"""DequantizeLinear knows an axis, and so per-channel weights, from this opset on; before it, MatMulInteger serves."""

Ranges = Mapping[str, tuple[float, float]]
_Shared = dict[tuple[object, ...], "tuple[ir.Value, ...]"]
_Build = Callable[["Builder", "ir.Value", "Placement"], "ir.Value"]

DOMAIN = "com.microsoft"

INT8_COMPUTE = 4
"""Accuracy level: the kernel rounds the input to int8, block by block, where the CPU has such a kernel."""


def supports(scheme: Scheme, opset: int) -> bool:
    """Whether a model of this opset can hold the scheme without being lifted to a newer one."""
    return opset >= scheme.min_version


def to_schemes(
    model: ir.Model,
    scheme: Scheme,
    *,
    ranges: Ranges | None = None,
    largest: int = WEIGHT_MAX,
    schemes: Mapping[str, Scheme] | None = None,
    weights: Mapping[str, Replacement] | None = None,
) -> ir.Model:
    """A new model with every linear layer in a scheme; the given one is unchanged.

    Args:
        scheme: of `edgepack.backends.onnx.schemes`.
        ranges: (low, high) of each layer's input by layer name, for the static scheme. A layer that is not in it was
            never seen at work and stays fp32.
        largest: largest weight code of the int8 schemes; block-wise weights use all of their codes.
        schemes: the schemes of layers that differ from `scheme`, by layer name.
        weights: by layer name, what is written instead of a layer's own weight and bias; a layer stored in code is
            written so whatever its scheme.

    A layer W X with X of unknown rank stays fp32: its two last axes cannot be exchanged.

    Raises:
        UsageError: a scheme of no single matrix in ONNX, one that the model's opset is too old for, or the static one
            without ranges.
        ModelError: `schemes` names a layer that is not there.
    """
    from edgepack.backends.onnx.constants import note_ranks
    from edgepack.backends.onnx.rewrite import rewrite
    from edgepack.backends.onnx.sites import find_sites

    schemes, weights = schemes or {}, weights or {}
    for each in dict.fromkeys((scheme, *schemes.values())):
        _check(each, model.opset_imports.get("", 1), ranges)
    emitted = model.clone()
    coded = {name: part for name, part in weights.items() if part.structure.is_constexpr}
    if scheme.is_float and not schemes and not coded:
        return emitted
    sites = [_with_weight(site, weights.get(site.layer.name)) for site in find_sites(emitted)]
    _check_names([*schemes, *coded], [site.layer.name for site in sites])
    chosen = [(site, schemes.get(site.layer.name, scheme)) for site in sites]
    if any(_unknown_axes(site) for site, own in chosen if not own.is_float):
        note_ranks(emitted)
    shared: _Shared = {}
    for site, own in chosen:
        part = coded.get(site.layer.name)
        build = None if _unknown_axes(site) else _build(site, own, shared, ranges or {}, largest)
        if part is not None:
            build = _coded(site, part, model.opset_imports.get("", 1))
        if build is not None:
            rewrite(emitted, site, build)
    # A layer in several places may have quantized an input that an earlier node takes as well.
    emitted.graph.sort()
    for function in emitted.functions.values():
        function.sort()
    return emitted


def _coded(site: Site, part: Replacement, opset: int) -> _Build:
    if opset < least_opset(part):
        raise ModelError(
            f"{site.layer.name}: the model has opset {opset}, its code needs {least_opset(part)}",
            hint="export the model with a newer opset",
        )
    if _unknown_axes(site):
        raise ModelError(f"{site.layer.name}: stands in a product W X with X of unknown rank, and cannot be coded")
    return coded_layer(site, part)


def _with_weight(site: Site, part: Replacement | None) -> Site:
    if part is None or part.structure.is_constexpr:
        return site
    bias = site.layer.bias if part.bias is None else part.bias
    return replace(site, layer=site.layer.with_weight(part.weight, bias))


def _unknown_axes(site: Site) -> bool:
    return any(placement.kind == "columns" and placement.rank is None for placement in site.placements)


def _check(scheme: Scheme, opset: int, ranges: Ranges | None) -> None:
    if scheme not in (*SCHEMES, CONSTEXPR):
        raise UsageError(
            f"no single matrix of an ONNX file is in {scheme.key}; there are {', '.join(map(str, SCHEMES))}"
        )
    if not supports(scheme, opset):
        raise UsageError(
            f"the model has opset {opset}, the scheme {scheme} needs {scheme.min_version}",
            hint="export the model with a newer opset, or use --precision fp32",
        )
    if scheme.is_static and ranges is None:
        raise UsageError(f"the scheme {scheme} needs calibration data", hint="give --data, or use int8-dynamic")


def _check_names(wanted: Sequence[str], names: Sequence[str]) -> None:
    for name in wanted:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its layers are: {', '.join(names) or 'none'}"
            raise ModelError(f"a scheme was given for {name!r}, the model has no such linear layer", hint=hint)


def _build(site: Site, scheme: Scheme, shared: _Shared, ranges: Ranges, largest: int) -> _Build | None:
    """How a layer is written; None where it stays as it is."""
    if scheme.granularity == "block":
        return nbits(site, scheme.bits)
    largest = scheme.largest_code(largest)
    if scheme.activations == "dynamic":
        return _dynamic(site, shared, largest)
    if scheme.activations == "static" and site.layer.name in ranges:
        return _static(site, shared, ranges[site.layer.name], largest)
    return None


def _dynamic(site: Site, shared: _Shared, largest: int) -> _Build:
    """DynamicQuantizeLinear → MatMulInteger or ConvInteger → scale."""

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        x = enter(builder, x, placement, site.dtype)
        key = ("dynamic", placement.graph, x)
        if key not in shared:
            shared[key] = tuple(builder.op("DynamicQuantizeLinear", [x], outputs=3))
        return _finish(builder, _integer(builder, shared[key], placement, site, largest), placement, site)

    return build


def _static(site: Site, shared: _Shared, low_high: tuple[float, float], largest: int) -> _Build:
    """QuantizeLinear → DequantizeLinear → MatMul or Gemm, which the runtime fuses into one integer kernel."""

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        x = enter(builder, x, placement, site.dtype)
        if placement.kind == "conv" or builder.opset < AXIS_OPSET:
            # ConvInteger takes unsigned inputs: the same grid, moved up by 128.
            key = ("static", placement.graph, x, activation_grid(*low_high))
            if key not in shared:
                shared[key] = _quantized(builder, x, site.layer.name, low_high, unsigned=True)
            return _finish(builder, _integer(builder, shared[key], placement, site, largest), placement, site)
        # One QuantizeLinear per layer: the runtime's x86 build does not fuse layers that share one.
        codes, scale, zero = _quantized(builder, x, site.layer.name, low_high, unsigned=False)
        x_grid = builder.op("DequantizeLinear", [codes, scale, zero])
        if placement.rank == 2:
            y = _static_gemm(builder, x_grid, placement, site.layer, activation_grid(*low_high)[0], largest)
            if y is not None:
                return leave(builder, y, placement, site.dtype)
        weight, scales = quantize_weight(site.layer.weight, largest=largest)
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


def _integer(builder: Builder, x: tuple[ir.Value, ...], placement: Placement, site: Site, largest: int) -> ir.Value:
    """Integer product of `x` = (codes, scale, zero point) with the layer's weight, scaled back to float32."""
    codes_x, x_scale, x_zero = x
    name = site.layer.name
    codes, scales = quantize_weight(site.layer.weight, largest=largest)
    if placement.kind == "conv":
        spatial = (1,) * placement.spatial
        weight = builder.constant(codes.reshape(*codes.shape, *spatial), f"{name}.int8")
        scale = builder.constant(scales.reshape(-1, *spatial), f"{name}.scale")
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
    zeros = builder.constant(np.zeros(len(scales), np.int8), f"{name}.zero_point")
    return builder.op("DequantizeLinear", [weight, scale, zeros], {"axis": axis})


def _static_gemm(
    builder: Builder, x_grid: ir.Value, placement: Placement, layer: Layer, x_scale: float, largest: int
) -> ir.Value | None:
    """Gemm with an int32 bias, which becomes one integer kernel with a float result; None where the bias overflows."""
    codes, scales = quantize_weight(layer.weight, largest=largest)
    inputs = [x_grid, _weight_grid(builder, layer.name, codes, scales, axis=0)]
    bias = layer.bias
    if bias is None and _before_transpose(placement):
        # Without a bias the runtime folds the Transpose into the Gemm, and then finds no integer kernel for it.
        bias = np.zeros(layer.out_features, np.float32)
    if bias is not None:
        bias_scales = (scales * np.float32(x_scale)).astype(np.float32)
        levels = np.rint(bias / bias_scales)
        if not np.abs(levels).max() < 2**30:
            return None
        bias_codes = builder.constant(levels.astype(np.int32), f"{layer.name}.bias.int32")
        scale = builder.constant(bias_scales, f"{layer.name}.bias.scale")
        zeros = builder.constant(np.zeros(len(levels), np.int32), f"{layer.name}.bias.zero_point")
        inputs.append(builder.op("DequantizeLinear", [bias_codes, scale, zeros], {"axis": 0}))
    return builder.op("Gemm", inputs, {"transB": 1})


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


def nbits(site: Site, bits: int) -> Callable[[Builder, ir.Value, Placement], ir.Value]:
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
