"""Operators of onnxruntime's own that its optimizer and its quantizers write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.torchgraph.onnx.convolution import convolve
from edgepack.torchgraph.onnx.elementwise import ELEMENTWISE
from edgepack.torchgraph.onnx.node import Node, Operator, operator
from edgepack.torchgraph.onnx.quantized import QUANTIZED, centred, rounded


def _numbers(inputs: Sequence[Any]) -> list[Tensor]:
    """Of inputs that come by three: codes, their scale, and their zero point if there is one."""
    return [_number(*inputs[at : at + 3]) for at in range(0, len(inputs), 3)]


def _number(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    return centred(codes, zero) * scale


def _codes(values: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    return rounded(values / scale, zero, torch.uint8 if zero is None else zero.dtype)


def _of_two(compute: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return operator(lambda node, *inputs: _codes(compute(*_numbers(inputs[:6])), *inputs[6:]))


def _of_one(compute: Callable[[Node, Tensor], Tensor]) -> Operator:
    return operator(lambda node, *inputs: _codes(compute(node, *_numbers(inputs[:3])), *inputs[3:]))


def _softmax(node: Node, x: Tensor) -> Tensor:
    if node.integer("opset") < 13:
        raise node.error("is a softmax in the sense of opset 12")
    return torch.softmax(x, node.integer("axis", -1))


def _global_mean(node: Node, x: Tensor) -> Tensor:
    last = node.flag("channels_last")
    return torch.mean(x, list(range(1, x.dim() - 1) if last else range(2, x.dim())), True)


def _concat(node: Node, scale: Tensor, zero: Tensor, *parts: Tensor) -> Tensor:
    return _codes(torch.cat(_numbers(parts), node.integer("axis")), scale, zero)


def _gemm(node: Node, *inputs: Any) -> Tensor:
    """Codes, scale and zero point of either side, a bias in steps of both, then the grid of the result, if any."""
    a, sa, za, b, sb, zb, bias, scale, zero = (*inputs, *[None] * 3)[:9]
    alpha = node.number("alpha", 1.0)
    left, right = _number(a, sa, za), _number(b.t() if node.flag("transB") else b, sb, zb)
    product = alpha * torch.matmul(left.t() if node.flag("transA") else left, right)
    if bias is not None:
        product = product + bias.float() * (alpha * sa * sb)
    return product if scale is None else _codes(product, scale, zero)


def _dynamic_matmul(node: Node, a: Tensor, b: Tensor, scale: Tensor, zero: Any = None, bias: Any = None) -> Tensor:
    codes, own, origin = QUANTIZED["DynamicQuantizeLinear"].run(node, a)
    return _matmul_to_float(node, codes, b, own, scale, origin, zero, bias)


def _matmul_to_float(node: Node, *inputs: Any) -> Tensor:
    """Codes, then scales, then zero points of both sides, and a bias."""
    a, b, sa, sb, za, zb, bias = (*inputs, *[None] * 3)[:7]
    product = torch.matmul(_number(a, sa, za), _number(b, sb, zb))
    return product if bias is None else product + bias


def _matmul_codes(node: Node, x: Tensor, codes: Tensor, scales: Tensor, zeros: Any = None, *rest: Any) -> Tensor:
    """MatMulNBits: codes of 4 or 8 bits, on a grid for every block of a row."""
    columns, rows, bits, block = (node.integer(name) for name in ("K", "N", "bits", "block_size"))
    group, bias = (*rest, None, None)[:2]
    node.integer("accuracy_level", 0)
    if group is not None or bits not in (4, 8):
        raise node.error(f"has codes of {bits} bits{' in an order of their own' if group is not None else ''}")
    blocks = -(-columns // block)
    values = _unpacked(codes, bits).reshape(rows, blocks, -1).float()
    middle: Any = 1 << bits - 1
    if zeros is not None:
        packed = zeros.dtype == torch.uint8
        middle = _unpacked(zeros.reshape(rows, -1), bits)[:, :blocks].float() if packed else zeros.reshape(rows, -1)
        middle = middle.unsqueeze(-1)
    weight = ((values - middle) * scales.reshape(rows, blocks, 1)).reshape(rows, -1)[:, :columns]
    return functional.linear(x, weight.to(x.dtype), bias)


def _unpacked(codes: Tensor, bits: int) -> Tensor:
    """Two codes of a byte along the last axis, the low one first."""
    return codes if bits == 8 else torch.stack([codes & 15, codes >> 4], -1).flatten(-2)


def _fused_matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    if node.flag("transBatchA") or node.flag("transBatchB"):
        raise node.error("turns its batches")
    a = a.swapaxes(-1, -2) if node.flag("transA") else a
    b = b.swapaxes(-1, -2) if node.flag("transB") else b
    alpha = node.number("alpha", 1.0)
    product = torch.matmul(a, b)
    return product if alpha == 1 else alpha * product


def _fused_conv(node: Node, x: Tensor, weight: Tensor, bias: Any = None, beside: Any = None) -> Tensor:
    y = convolve(node, x, weight, bias)
    y = y if beside is None else y + beside
    name = node.text("activation", "", ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid"))
    given = node.numbers("activation_params", ())
    match name, given:
        case "", _:
            return y
        case "LeakyRelu", [alpha]:
            return functional.leaky_relu(y, alpha)
        case "Clip", [least, most]:
            return torch.clamp(y, least, most)
        case "HardSigmoid", [alpha, beta]:
            return torch.clamp(alpha * y + beta, 0, 1)
        case "Relu" | "Sigmoid" | "Tanh", _:
            return {"Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh}[name](y)
    raise node.error(f"has activation {name} with {len(given)} numbers")


def _gelu(node: Node, x: Tensor, bias: Any = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias)


def _fast_gelu(node: Node, x: Tensor, bias: Any = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _quick_gelu(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.number("alpha", 1.702) * x)


def _skip_layer_norm(node: Node, x: Tensor, skip: Tensor, gamma: Tensor, beta: Any = None, bias: Any = None) -> Tensor:
    total = x + skip if bias is None else x + skip + bias
    if node.outputs > 1:
        raise node.error("gives more than its result")
    return functional.layer_norm(total, [total.shape[-1]], gamma, beta, node.number("epsilon", 1e-12))


MICROSOFT: Mapping[str, Operator] = {
    "BiasGelu": operator(_gelu),
    "DequantizeLinear": QUANTIZED["DequantizeLinear"],
    "DynamicQuantizeMatMul": operator(_dynamic_matmul),
    "FastGelu": operator(_fast_gelu),
    "FusedConv": operator(_fused_conv),
    "FusedMatMul": operator(_fused_matmul),
    "Gelu": operator(_gelu),
    "MatMulIntegerToFloat": operator(_matmul_to_float),
    "MatMulNBits": operator(_matmul_codes),
    "QGemm": operator(_gemm),
    "QLinearAdd": _of_two(torch.add),
    "QLinearConcat": operator(_concat),
    "QLinearGlobalAveragePool": _of_one(_global_mean),
    "QLinearLeakyRelu": _of_one(ELEMENTWISE["LeakyRelu"].run),
    "QLinearMul": _of_two(torch.mul),
    "QLinearSigmoid": _of_one(ELEMENTWISE["Sigmoid"].run),
    "QLinearSoftmax": _of_one(_softmax),
    "QuantizeLinear": QUANTIZED["QuantizeLinear"],
    "QuickGelu": operator(_quick_gelu),
    "SkipLayerNormalization": operator(_skip_layer_norm),
}
