"""Operators that compute each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.torchgraph.onnx.node import Node, Operator, operator
from edgepack.torchgraph.onnx.types import WIDE, dtype_of, signed

Scalar = int | float | bool


def _unary(compute: Callable[[Tensor], Tensor]) -> Operator:
    return operator(lambda node, x: compute(x))


def _binary(compute: Callable[[Any, Any], Tensor]) -> Operator:
    return operator(lambda node, a, b: _widened(compute, a, b), scalars=True)


def _logical(compute: Callable[[Any, Any], Tensor]) -> Operator:
    return operator(lambda node, a, b: compute(a, b))


def _compared(compute: Callable[[Any, Any], Tensor], mirrored: Callable[[Any, Any], Tensor]) -> Operator:
    """By a function, and the one for the operands in the other order: torch takes a number as the second one only."""

    def run(node: Node, a: Any, b: Any) -> Tensor:
        return compute(signed(a), signed(b)) if isinstance(a, Tensor) else mirrored(signed(b), a)

    return operator(run, scalars=True)


def _widened(compute: Callable[..., Tensor], *operands: Any) -> Tensor:
    wide = next((each.dtype for each in operands if isinstance(each, Tensor) and each.dtype in WIDE), None)
    return compute(*operands) if wide is None else compute(*map(signed, operands)).to(wide)


def _as_tensor(value: Tensor | Scalar, beside: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=beside.dtype)


def _divide(a: Any, b: Any) -> Tensor:
    tensor = a if isinstance(a, Tensor) else b
    return torch.div(a, b) if tensor.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(node: Node, a: Any, b: Any) -> Tensor:
    if isinstance(a, Tensor) and not a.is_floating_point():
        return torch.pow(a.double(), b).to(a.dtype)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.pow(a, b.to(a.dtype))
    return torch.pow(a, b)


def _modulo(node: Node, a: Any, b: Any) -> Tensor:
    compute = torch.fmod if node.flag("fmod") else torch.remainder
    return _widened(compute, a, b)


def _extreme(compute: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(node: Node, first: Tensor, *others: Tensor) -> Tensor:
        result = first
        for other in others:
            result = _widened(compute, result, other)
        return result

    return operator(run)


def _sum(node: Node, first: Tensor, *others: Tensor) -> Tensor:
    for other in others:
        first = first + other
    return first


def _mean(node: Node, *values: Tensor) -> Tensor:
    return _sum(node, *values) / len(values)


def _clip(node: Node, x: Tensor, least: Any = None, most: Any = None) -> Tensor:
    """Both bounds in one call where they are numbers, which converters know as relu6."""
    if node.version < 11:
        least, most = node.number("min", -math.inf), node.number("max", math.inf)
        least, most = (None if math.isinf(bound) else bound for bound in (least, most))
    return _widened(_between, x, least, most)


def _between(x: Tensor, least: Any, most: Any) -> Tensor:
    if all(isinstance(bound, (int, float)) for bound in (least, most)) and least <= most:
        return torch.clamp(x, least, most)
    if least is not None:
        x = torch.maximum(x, least) if isinstance(least, Tensor) else torch.clamp(x, min=least)
    if most is not None:
        x = torch.minimum(x, most) if isinstance(most, Tensor) else torch.clamp(x, max=most)
    return x


def _gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.text("approximate", "none", ("none", "tanh")))


def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.number("alpha", 0.01))


def _elu(node: Node, x: Tensor) -> Tensor:
    return functional.elu(x, node.number("alpha", 1.0))


def _celu(node: Node, x: Tensor) -> Tensor:
    return functional.celu(x, node.number("alpha", 1.0))


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.number("alpha", 1.6732631921768188), node.number("gamma", 1.0507010221481323)
    return gamma * (torch.clamp(x, min=0) + alpha * torch.expm1(torch.clamp(x, max=0)))


def _thresholded(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.number("alpha", 1.0), x, torch.zeros_like(x))


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


def _shrink(node: Node, x: Tensor) -> Tensor:
    bias, limit = node.number("bias", 0.0), node.number("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero)).to(x.dtype)


def _swish(node: Node, x: Tensor) -> Tensor:
    alpha = node.number("alpha", 1.0)
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    if x.dim() > 1 and list(slope.shape) == [x.shape[1], *[1] * (x.dim() - 2)]:
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _softplus(x: Tensor) -> Tensor:
    # For all x, unlike torch's own, which is x itself above a threshold.
    return torch.clamp(x, min=0) + torch.log1p(torch.exp(-torch.abs(x)))


def _is_infinite(node: Node, x: Tensor) -> Tensor:
    negative, positive = node.flag("detect_negative", 1), node.flag("detect_positive", 1)
    infinite = torch.isinf(x)
    if negative and positive:
        return infinite
    return infinite & (x < 0 if negative else x > 0) if negative or positive else torch.zeros_like(infinite)


def _shift(node: Node, a: Tensor, b: Tensor) -> Tensor:
    left = node.text("direction", "LEFT", ("LEFT", "RIGHT")) == "LEFT"
    x, by = a.long(), b.long()
    return (torch.bitwise_left_shift(x, by) if left else torch.bitwise_right_shift(x, by)).to(a.dtype)


def _inverted(x: Tensor) -> Tensor:
    if x.dtype in WIDE:
        return torch.bitwise_xor(x, torch.full((), torch.iinfo(x.dtype).max, dtype=x.dtype))
    return torch.bitwise_not(x)


def _cast(node: Node, x: Tensor) -> Tensor:
    node.integer("saturate", 1)  # of 8-bit floats, which are refused
    node.text("round_mode", "up", ("up", "down", "nearest"))
    return _converted(x, dtype_of(node.integer("to"), node.label))


def _cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    node.integer("saturate", 1)
    node.text("round_mode", "up", ("up", "down", "nearest"))
    return _converted(x, like.dtype)


def _converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    if x.is_floating_point() and not dtype.is_floating_point and dtype not in (torch.bool, torch.int64):
        return x.long().to(dtype) if dtype in (torch.uint8, torch.int8, torch.int16, *WIDE) else x.to(dtype)
    return x.to(dtype)


def _bit_cast(node: Node, x: Tensor) -> Tensor:
    return x.view(dtype_of(node.integer("to"), node.label))


def _where(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def _identity(node: Node, x: Tensor) -> Tensor:
    return x


def _dropout(node: Node, x: Tensor, ratio: Any = None, training: Any = None) -> Any:
    node.integer("seed", 0)
    node.number("ratio", 0.5)
    if training is not None and bool(training) and (ratio is None or float(ratio) != 0):
        raise node.error("draws random numbers (training_mode)")
    return (x, torch.ones_like(x, dtype=torch.bool)) if node.outputs > 1 else x


ELEMENTWISE: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Acosh": _unary(torch.acosh),
    "Add": _binary(torch.add),
    "And": _logical(torch.logical_and),
    "Asin": _unary(torch.asin),
    "Asinh": _unary(torch.asinh),
    "Atan": _unary(torch.atan),
    "Atanh": _unary(torch.atanh),
    "BitCast": operator(_bit_cast),
    "BitShift": operator(_shift),
    "BitwiseAnd": _logical(torch.bitwise_and),
    "BitwiseNot": _unary(_inverted),
    "BitwiseOr": _logical(torch.bitwise_or),
    "BitwiseXor": _logical(torch.bitwise_xor),
    "Cast": operator(_cast),
    "CastLike": operator(_cast_like),
    "Ceil": _unary(torch.ceil),
    "Celu": operator(_celu),
    "Clip": operator(_clip, scalars=True),
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "Div": _binary(_divide),
    "Dropout": operator(_dropout, 1, 2),
    "Elu": operator(_elu),
    "Equal": _compared(torch.eq, torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": operator(_gelu),
    "Greater": _compared(torch.gt, torch.lt),
    "GreaterOrEqual": _compared(torch.ge, torch.le),
    "HardSigmoid": operator(_hard_sigmoid),
    "HardSwish": _unary(functional.hardswish),
    "Identity": operator(_identity),
    "IsInf": operator(_is_infinite),
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": operator(_leaky_relu),
    "Less": _compared(torch.lt, torch.gt),
    "LessOrEqual": _compared(torch.le, torch.ge),
    "Log": _unary(torch.log),
    "Max": _extreme(torch.maximum),
    "Mean": operator(_mean),
    "Min": _extreme(torch.minimum),
    "Mish": _unary(lambda x: x * torch.tanh(_softplus(x))),
    "Mod": operator(_modulo, scalars=True),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _logical(torch.logical_or),
    "PRelu": operator(_prelu),
    "Pow": operator(_power, scalars=True),
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Selu": operator(_selu),
    "Shrink": operator(_shrink),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Softplus": _unary(_softplus),
    "Softsign": _unary(lambda x: x / (1 + torch.abs(x))),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": operator(_sum),
    "Swish": operator(_swish),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": operator(_thresholded),
    "Where": operator(_where),
    "Xor": _logical(torch.logical_xor),
}
