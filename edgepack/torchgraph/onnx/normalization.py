"""Operators that normalize over some axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.torchgraph.onnx.node import Node, Operator, operator
from edgepack.torchgraph.onnx.types import dtype_of


def _softmax(compute: Callable[..., Tensor]) -> Operator:
    def run(node: Node, x: Tensor) -> Tensor:
        if node.version >= 13:
            return compute(x, node.integer("axis", -1))
        axis = node.integer("axis", 1) % x.dim()
        if axis == x.dim() - 1:
            return compute(x, -1)
        return compute(x.reshape(math.prod(x.shape[:axis]), -1), -1).reshape(x.shape)

    return operator(run)


def _along_channels(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.dim() - 2))


def _batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
    epsilon, momentum = node.number("epsilon", 1e-5), node.number("momentum", 0.9)
    if not node.flag("spatial", 1):
        raise node.error("normalizes every place by itself (spatial=0)")
    if not node.flag("training_mode"):
        if x.dim() >= 2 and x.is_floating_point() and x.dtype == scale.dtype == mean.dtype:
            return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
        factor = scale / torch.sqrt(variance + epsilon)
        return x * _along_channels(factor, x) + _along_channels(bias - mean * factor, x)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    now, spread = torch.mean(x, axes), torch.var(x, axes, correction=0)
    centred = (x - _along_channels(now, x)) / torch.sqrt(_along_channels(spread, x) + epsilon)
    y = centred * _along_channels(scale, x) + _along_channels(bias, x)
    return y, mean * momentum + now * (1 - momentum), variance * momentum + spread * (1 - momentum)


def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    axes, epsilon = list(range(2, x.dim())), node.number("epsilon", 1e-5)
    mean = torch.mean(x, axes, True)
    variance = torch.mean(torch.square(x - mean), axes, True)
    return (x - mean) / torch.sqrt(variance + epsilon) * _along_channels(scale, x) + _along_channels(bias, x)


def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, epsilon = node.integer("num_groups"), node.number("epsilon", 1e-5)
    node.integer("stash_type", 1)
    if len(scale) != x.shape[1]:  # opset 18: one for each group
        scale, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, epsilon)


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis, epsilon = node.integer("axis", -1) % x.dim(), node.number("epsilon", 1e-5)
    node.integer("stash_type", 1)
    shape = list(x.shape[axis:])
    if node.outputs == 1 and list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    axes = list(range(axis, x.dim()))
    wide = x if x.dtype == torch.float64 else x.float()
    mean = torch.mean(wide, axes, True)
    inverse = torch.rsqrt(torch.mean(torch.square(wide - mean), axes, True) + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


def _rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axis, epsilon = node.integer("axis", -1) % x.dim(), node.number("epsilon", 1e-5)
    stash = dtype_of(node.integer("stash_type", 1), node.label)
    axes = list(range(axis, x.dim()))
    wide = x.to(stash) if x.dtype != torch.float64 else x
    normal = wide * torch.rsqrt(torch.mean(torch.square(wide), axes, True) + epsilon)
    return normal.to(x.dtype) * scale


def _lp_norm(node: Node, x: Tensor) -> Tensor:
    axis, p = node.integer("axis", -1), node.integer("p", 2)
    size = torch.sum(torch.abs(x), axis, True) if p == 1 else torch.sqrt(torch.sum(torch.square(x), axis, True))
    return x / (size + (size == 0).to(x.dtype))


def _local_response(node: Node, x: Tensor) -> Tensor:
    size, alpha, beta = node.integer("size"), node.number("alpha", 1e-4), node.number("beta", 0.75)
    bias = node.number("bias", 1.0)
    squares = torch.square(x).reshape(x.shape[0], 1, x.shape[1], -1)
    before = (size - 1) // 2
    summed = functional.avg_pool2d(functional.pad(squares, (0, 0, before, size - 1 - before)), (size, 1), stride=1)
    return x / torch.pow(bias + alpha * summed.reshape(x.shape), beta)


def _mean_variance(node: Node, x: Tensor) -> Tensor:
    axes = node.integers("axes", [0, 2, 3])
    mean = torch.mean(x, axes, True)
    variance = torch.mean(torch.square(x), axes, True) - torch.square(mean)
    return (x - mean) / (torch.sqrt(variance) + 1e-9)


NORMALIZATION: Mapping[str, Operator] = {
    "BatchNormalization": operator(_batch_norm),
    "GroupNormalization": operator(_group_norm),
    "InstanceNormalization": operator(_instance_norm),
    "LRN": operator(_local_response),
    "LayerNormalization": operator(_layer_norm),
    "LogSoftmax": _softmax(torch.log_softmax),
    "LpNormalization": operator(_lp_norm),
    "MeanVarianceNormalization": operator(_mean_variance),
    "RMSNormalization": operator(_rms_norm),
    "Softmax": _softmax(torch.softmax),
}
