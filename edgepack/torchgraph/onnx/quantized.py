"""Operators on integers that stand for numbers: what they compute, in numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgepack.torchgraph.onnx.convolution import convolve
from edgepack.torchgraph.onnx.node import Node, Operator, operator
from edgepack.torchgraph.onnx.types import dtype_of


def _beside(value: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points so that they stand beside the elements of x: one, one a channel, or one a block."""
    if value.numel() == 1 and value.dim() <= 1:
        return value.reshape(())
    if value.dim() <= 1:
        return value.reshape([-1 if at == axis else 1 for at in range(x.dim())])
    if block:
        return torch.repeat_interleave(value, block, axis).narrow(axis, 0, x.shape[axis])
    return value


def _grid(node: Node, x: Tensor, values: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    axis = axis % x.dim() if x.dim() else 0
    return [None if value is None else _beside(value, x, axis, block) for value in values]


def _decode(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if node.has("output_dtype") and dtype_of(node.integer("output_dtype"), node.label) != scale.dtype:
        raise node.error("decodes to another type than that of its scale")
    dtype = scale.dtype
    beside, origin = _grid(node, x, (scale, zero))
    values = x.to(dtype) if origin is None else x.to(dtype) - origin.to(dtype)
    return values * beside


def _encode(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    node.integer("saturate", 1)
    if node.integer("precision", 0) not in (0, 1):
        raise node.error("divides in another type than float32")
    given = node.integer("output_dtype", 0)
    dtype = zero.dtype if zero is not None else dtype_of(given, node.label) if given else torch.uint8
    beside, origin = _grid(node, x, (scale, zero))
    return rounded(x / beside, origin, dtype)


def rounded(values: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Codes of numbers that are counted in steps of their grid."""
    codes = torch.round(values)
    codes = codes if zero is None else codes + zero.to(codes.dtype)
    bounds = torch.iinfo(dtype)
    return torch.clamp(codes, bounds.min, bounds.max).to(torch.int32).to(dtype)


def _encode_dynamically(node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    zero = torch.zeros((), dtype=x.dtype)
    low, high = torch.minimum(torch.amin(x), zero), torch.maximum(torch.amax(x), zero)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    origin = torch.clamp(torch.round(-low / scale), 0, 255)
    return rounded(x / scale, origin, torch.uint8), scale, origin.to(torch.int32).to(torch.uint8)


def centred(x: Tensor, zero: Tensor | None, *, rows: bool = False) -> Tensor:
    """Codes less their zero point, in float32, which sums of them fit into nearly always."""
    if zero is None:
        return x.float()
    origin = zero.float()
    if rows and zero.dim() == 1 and len(zero) > 1:
        origin = origin.unsqueeze(-1)
    return x.float() - origin


def _matmul_integer(node: Node, a: Tensor, b: Tensor, *zeros: Tensor | None) -> Tensor:
    a_zero, b_zero = (*zeros, None, None)[:2]
    return torch.matmul(centred(a, a_zero, rows=True), centred(b, b_zero)).to(torch.int32)


def _conv_integer(
    node: Node, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    origin = None if w_zero is None else _along_kernels(w_zero, w)
    return convolve(node, centred(x, x_zero), centred(w, origin)).to(torch.int32)


def _along_kernels(values: Tensor, w: Tensor) -> Tensor:
    """One value, or one for each output, beside the elements of the kernels."""
    return values.reshape(-1, *[1] * (w.dim() - 1))


def _qlinear_matmul(node: Node, *inputs: Tensor) -> Tensor:
    """Codes, scale and zero point of either side, then scale and zero point of the result."""
    a, sa, za, b, sb, zb, scale, zero = inputs
    left = centred(a, za, rows=True) * (sa.unsqueeze(-1) if sa.dim() == 1 and len(sa) > 1 else sa).float()
    product = torch.matmul(left, centred(b, zb) * sb.float())
    return rounded(product / scale.float(), zero, zero.dtype)


def _qlinear_conv(node: Node, *inputs: Tensor | None) -> Tensor:
    """Codes, scale and zero point of input and kernel, scale and zero point of the result, a bias in steps of both."""
    *given, bias = inputs if len(inputs) > 8 else (*inputs, None)
    x, sx, zx, w, sw, zw, scale, zero = (each for each in given if each is not None)
    kernel = centred(w, _along_kernels(zw, w)) * _along_kernels(sw, w)
    offset = None if bias is None else bias.float() * sx * sw.reshape(-1)
    y = convolve(node, centred(x, zx) * sx, kernel, offset)
    return rounded(y / scale, zero, zero.dtype)


QUANTIZED: Mapping[str, Operator] = {
    "ConvInteger": operator(_conv_integer),
    "DequantizeLinear": operator(_decode),
    "DynamicQuantizeLinear": operator(_encode_dynamically),
    "MatMulInteger": operator(_matmul_integer),
    "QLinearConv": operator(_qlinear_conv),
    "QLinearMatMul": operator(_qlinear_matmul),
    "QuantizeLinear": operator(_encode),
}
