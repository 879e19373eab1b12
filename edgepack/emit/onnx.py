"""ONNX forms of linear layers: fp32 as it is, int8 with dynamic activations, int8 with static QDQ activations.

Every linear layer of a graph is rewritten, dense and thin ones alike: a pair is simply two layers here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import UsageError
from edgepack.quantize.grid import WEIGHT_MAX, activation_grid, quantize_weight
from edgepack.types import Array, LinearLayer

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.onnxgraph.rewrite import Builder
    from edgepack.onnxgraph.sites import Placement, Site

FLOAT, FLOAT16 = 1, 10
STATIC_MIN_OPSET = 13
"""DequantizeLinear knows an axis, and so per-channel weights, from this opset on."""

Ranges = Mapping[str, tuple[float, float]]
_Shared = dict[tuple[object, ...], "tuple[ir.Value, ...]"]


def supports(form: str, opset: int) -> bool:
    """Whether a model of this opset can hold the form without being lifted to a newer one."""
    return form != "int8-static-qdq" or opset >= STATIC_MIN_OPSET


def to_form(model: ir.Model, form: str, *, ranges: Ranges | None = None, largest: int = WEIGHT_MAX) -> ir.Model:
    """A new model with every linear layer in `form`; the given one is unchanged.

    Args:
        form: one of `FORMS["onnx"]`.
        ranges: (low, high) of each layer's input by layer name, for the static form. A layer that is not in it was never
            seen at work and stays fp32.
        largest: largest weight code.

    Raises:
        UsageError: an unknown form, or the static form without ranges.
    """
    from edgepack.onnxgraph.rewrite import rewrite
    from edgepack.onnxgraph.sites import find_sites

    emitted = model.clone()
    if form == "fp32":
        return emitted
    if form == "int8-static-qdq" and ranges is None:
        raise UsageError("the form int8-static-qdq needs calibration data", hint="give --data, or use int8-dynamic")
    shared: _Shared = {}
    for site in find_sites(emitted):
        if form == "int8-dynamic":
            rewrite(emitted, site, _dynamic(site, shared, largest))
        elif form == "int8-static-qdq":
            if ranges is not None and site.layer.name in ranges:
                rewrite(emitted, site, _static(site, shared, ranges[site.layer.name], largest))
        else:
            raise UsageError(f"unknown ONNX form {form!r}")
    return emitted


_Build = Callable[["Builder", "ir.Value", "Placement"], "ir.Value"]


def _dynamic(site: Site, shared: _Shared, largest: int) -> _Build:
    """DynamicQuantizeLinear → MatMulInteger or ConvInteger → scale."""

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        x = _enter(builder, x, placement.kind, site.dtype)
        key = ("dynamic", id(placement.graph), id(x))
        if key not in shared:
            shared[key] = tuple(builder.op("DynamicQuantizeLinear", [x], outputs=3))
        return _leave(builder, _integer(builder, shared[key], placement, site, largest), placement, site)

    return build


def _static(site: Site, shared: _Shared, low_high: tuple[float, float], largest: int) -> _Build:
    """QuantizeLinear → DequantizeLinear → MatMul or Gemm, which the runtime fuses into one integer kernel."""

    def build(builder: Builder, x: ir.Value, placement: Placement) -> ir.Value:
        name = site.layer.name
        x = _enter(builder, x, placement.kind, site.dtype)
        conv = placement.kind == "conv"
        x_scale, x_zero = activation_grid(*low_high)
        key = ("static", id(placement.graph), id(x), conv, x_scale, x_zero)
        if key not in shared:
            scale = builder.constant(np.asarray(x_scale, np.float32), f"{name}.x_scale")
            # ConvInteger takes unsigned inputs: the same grid, moved up by 128.
            point = np.asarray(x_zero + 128, np.uint8) if conv else np.asarray(x_zero, np.int8)
            zero = builder.constant(point, f"{name}.x_zero_point")
            codes = builder.op("QuantizeLinear", [x, scale, zero])
            shared[key] = (codes, scale, zero) if conv else (builder.op("DequantizeLinear", [codes, scale, zero]),)
        if conv:
            return _leave(builder, _integer(builder, shared[key], placement, site, largest), placement, site)
        (x_grid,) = shared[key]
        if placement.kind == "rows" and x.shape is not None and len(x.shape) == 2:
            y = _static_gemm(builder, x_grid, site.layer, x_scale, largest)
            if y is not None:
                return builder.op("Cast", [y], {"to": FLOAT16}) if site.dtype == np.float16 else y
        codes_w, scales = quantize_weight(site.layer.weight, largest=largest)
        w_grid = _weight_grid(builder, name, np.ascontiguousarray(codes_w.T), scales, axis=1)
        return _leave(builder, builder.op("MatMul", [x_grid, w_grid]), placement, site)

    return build


def _integer(
    builder: Builder, x: tuple[ir.Value, ...], placement: Placement, site: Site, largest: int
) -> ir.Value:
    """Integer product of `x` = (codes, scale, zero point) with the layer's weight, scaled back to float32."""
    codes_x, x_scale, x_zero = x
    name = site.layer.name
    codes, scales = quantize_weight(site.layer.weight, largest=largest)
    if placement.kind == "conv":
        kernel = _kernel(placement)
        weight = builder.constant(codes.reshape(kernel), f"{name}.int8")
        scale = builder.constant(scales.reshape(-1, *(1,) * (len(kernel) - 2)), f"{name}.scale")
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
    builder: Builder, x_grid: ir.Value, layer: LinearLayer, x_scale: float, largest: int
) -> ir.Value | None:
    """Gemm with an int32 bias, which becomes one integer kernel with a float result; None where the bias overflows."""
    codes, scales = quantize_weight(layer.weight, largest=largest)
    inputs = [x_grid, _weight_grid(builder, layer.name, codes, scales, axis=0)]
    if layer.bias is not None:
        bias_scales = (scales * np.float32(x_scale)).astype(np.float32)
        bias = np.rint(layer.bias / bias_scales)
        if not np.abs(bias).max() < 2**30:
            return None
        bias_codes = builder.constant(bias.astype(np.int32), f"{layer.name}.bias.int32")
        scale = builder.constant(bias_scales, f"{layer.name}.bias.scale")
        zeros = builder.constant(np.zeros(len(bias), np.int32), f"{layer.name}.bias.zero_point")
        inputs.append(builder.op("DequantizeLinear", [bias_codes, scale, zeros], {"axis": 0}))
    return builder.op("Gemm", inputs, {"transB": 1})


def _kernel(placement: Placement) -> tuple[int, ...]:
    """Shape of a convolution's weight, (out, in, 1, …)."""
    shape = placement.node.inputs[1].shape  # type: ignore[union-attr]
    return tuple(int(d) for d in shape)  # type: ignore[union-attr, arg-type]


def _enter(builder: Builder, x: ir.Value, kind: str, dtype: np.dtype[np.generic]) -> ir.Value:
    """Bring the input to float32 with features on the last axis (convolutions keep theirs)."""
    if dtype == np.float16:
        x = builder.op("Cast", [x], {"to": FLOAT})
    return _swapped(builder, x) if kind == "columns" else x


def _leave(builder: Builder, y: ir.Value, placement: Placement, site: Site) -> ir.Value:
    """Add the bias and undo `_enter`."""
    bias = _shaped_bias(site.layer, placement)
    if bias is not None and _producer(y) == "MatMul":
        # MatMul + Add would be fused into a Gemm, for which the runtime has no integer kernel without an int32 bias: it
        # would dequantize the whole weight at every run. MatMul − (−b) stays an integer MatMul.
        y = builder.op("Sub", [y, builder.constant(-bias, f"{site.layer.name}.bias.negative")])
    elif bias is not None:
        y = builder.op("Add", [y, builder.constant(bias, f"{site.layer.name}.bias")])
    if placement.kind == "columns":
        y = _swapped(builder, y)
    return builder.op("Cast", [y], {"to": FLOAT16}) if site.dtype == np.float16 else y


def _shaped_bias(layer: LinearLayer, placement: Placement) -> Array | None:
    if layer.bias is None:
        return None
    if placement.kind == "conv":
        return layer.bias.reshape(-1, *(1,) * (len(_kernel(placement)) - 2))
    return layer.bias


def _producer(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.op_type


def _swapped(builder: Builder, x: ir.Value) -> ir.Value:
    """Exchange the last two axes."""
    rank = len(x.shape) if x.shape is not None else 2
    return builder.op("Transpose", [x], {"perm": [*range(rank - 2), rank - 1, rank - 2]})
