"""Convolutions and pools."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgepack.model.types import Array
from edgepack.torchgraph.onnx.node import Node, Operator, operator
from edgepack.torchgraph.onnx.shapes import padded

_AUTO_PAD = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_MAX_POOL = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGE = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


@dataclass(frozen=True)
class Window:
    """What slides over the places of an input; a value for each axis."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    behind: list[int]

    @property
    def reach(self) -> list[int]:
        """Places from the first element of the window to its last one."""
        return [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]

    @property
    def pads(self) -> list[int] | None:
        """Places in front, where there are as many behind."""
        return self.before if self.before == self.behind else None


def window(node: Node, x: Tensor, kernel: list[int]) -> Window:
    """The window of a convolution or pool, with its automatic pads."""
    axes = x.dim() - 2
    if len(kernel) != axes or not 1 <= axes <= 3:
        raise node.error(f"has a kernel of {len(kernel)} axes on an input of {axes}, 1 to 3 were expected")
    strides, dilations = node.integers("strides", [1] * axes), node.integers("dilations", [1] * axes)
    pads, auto = node.integers("pads", [0] * 2 * axes), node.text("auto_pad", "NOTSET", _AUTO_PAD)
    before, behind = pads[:axes], pads[axes:]
    if auto.startswith("SAME"):
        totals = [
            max(0, (-(-size // step) - 1) * step + (k - 1) * d + 1 - size)
            for size, step, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)
        ]
        before, behind = _halves(totals, auto)
    elif auto == "VALID":
        before, behind = [0] * axes, [0] * axes
    return Window(kernel, strides, dilations, before, behind)


def _halves(totals: list[int], auto: str) -> tuple[list[int], list[int]]:
    """Pads in front and behind, the larger half where the node wants it."""
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def around(x: Tensor, window: Window, fill: float) -> Tensor:
    """The input with the pads of the window."""
    return padded(x, [0, 0, *window.before], [0, 0, *window.behind], "constant", fill)


def convolve(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ONNX Conv."""
    node.integers("kernel_shape", ())
    slid, groups = window(node, x, list(weight.shape[2:])), node.integer("group", 1)
    run = _CONV[x.dim() - 3]
    if slid.pads is None:
        return run(around(x, slid, 0.0), weight, bias, slid.strides, 0, slid.dilations, groups)
    return run(x, weight, bias, slid.strides, slid.pads, slid.dilations, groups)


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes, groups = x.dim() - 2, node.integer("group", 1)
    node.integers("kernel_shape", ())
    kernel, strides = list(weight.shape[2:]), node.integers("strides", [1] * axes)
    dilations, extra = node.integers("dilations", [1] * axes), node.integers("output_padding", [0] * axes)
    pads, auto = node.integers("pads", [0] * 2 * axes), node.text("auto_pad", "NOTSET", _AUTO_PAD)
    wanted = node.integers("output_shape", ())[-axes:]
    if auto.startswith("SAME") and not wanted:
        wanted = [size * step for size, step in zip(x.shape[2:], strides, strict=True)]
    whole = [
        step * (size - 1) + more + (k - 1) * d + 1
        for size, step, more, k, d in zip(x.shape[2:], strides, extra, kernel, dilations, strict=True)
    ]
    before, behind = pads[:axes], pads[axes:]
    if wanted:
        totals = [size - want for size, want in zip(whole, wanted, strict=True)]
        before, behind = _halves(totals, auto)
    run = _TRANSPOSED[axes - 1]
    if before == behind and all(pad >= 0 for pad in before) and all(map(_less, extra, strides, dilations)):
        return run(x, weight, bias, strides, before, extra, groups, dilations)
    result = run(x, weight, bias, strides, 0, 0, groups, dilations)
    if any(extra):
        # Places that no element reaches hold the bias alone.
        result = run(x, weight, None, strides, 0, 0, groups, dilations)
        result = padded(result, [0] * (axes + 2), [0, 0, *extra], "constant", 0.0)
        result = result if bias is None else result + bias.reshape(-1, *[1] * axes)
    return padded(result, [0, 0, *(-pad for pad in before)], [0, 0, *(-pad for pad in behind)], "constant", 0.0)


def _less(extra: int, stride: int, dilation: int) -> bool:
    """Whether torch takes so many places more."""
    return extra < max(stride, dilation)


def _pool_window(node: Node, x: Tensor) -> tuple[Window, list[int]]:
    """The window of a pool, and how many places it needs behind the pads so that the last stride is whole."""
    slid = window(node, x, node.integers("kernel_shape"))
    if not node.flag("ceil_mode"):
        return slid, [0] * len(slid.kernel)
    more = []
    for size, reach, step, first, last in zip(
        x.shape[2:], slid.reach, slid.strides, slid.before, slid.behind, strict=True
    ):
        steps = -(-(size + first + last - reach) // step)
        if steps * step >= size + first:  # a window that starts behind the input counts for nothing
            steps -= 1
        more.append(max(0, steps * step + reach - size - first - last))
    return slid, more


def _max_pool(node: Node, x: Tensor) -> Any:
    slid, more = _pool_window(node, x)
    column_major = node.flag("storage_order")
    run = _MAX_POOL[x.dim() - 3]
    if node.outputs > 1:
        return _max_pool_places(node, x, slid, more, column_major=column_major)
    halves = slid.pads is not None and all(2 * pad <= size for pad, size in zip(slid.before, slid.kernel, strict=True))
    if x.is_floating_point() and halves and not any(more):
        return run(x, slid.kernel, slid.strides, slid.before, slid.dilations)
    wide = x if x.is_floating_point() else x.float()
    wide = padded(around(wide, slid, -math.inf), [0] * x.dim(), [0, 0, *more], "constant", -math.inf)
    return run(wide, slid.kernel, slid.strides, 0, slid.dilations).to(x.dtype)


def _max_pool_places(
    node: Node, x: Tensor, slid: Window, more: list[int], *, column_major: bool
) -> tuple[Tensor, Tensor]:
    """Largest values and where they stand in the whole input, counted in its order or in that of columns."""
    sizes = list(x.shape[2:])
    wide = padded(around(x.float(), slid, -math.inf), [0] * x.dim(), [0, 0, *more], "constant", -math.inf)
    values, flat = _MAX_POOL[x.dim() - 3](wide, slid.kernel, slid.strides, 0, slid.dilations, return_indices=True)
    places: list[Tensor] = []
    rest = flat
    for axis in reversed(range(len(sizes))):
        places.insert(0, rest % wide.shape[2 + axis] - slid.before[axis])
        rest = rest // wide.shape[2 + axis]
    order = list(range(len(sizes)))
    where = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * len(sizes))
    for axis in reversed(order) if column_major else order:
        where = where * sizes[axis] + places[axis]
    return values.to(x.dtype), where


def _average_pool(node: Node, x: Tensor) -> Tensor:
    slid, more = _pool_window(node, x)
    all_count = node.flag("count_include_pad")
    run = _AVERAGE[x.dim() - 3]
    plain = slid.pads is not None and not any(more) and set(slid.dilations) == {1}
    halves = all(2 * pad <= size for pad, size in zip(slid.before, slid.kernel, strict=True))
    if plain and halves and (all_count or not any(slid.before)):
        return run(x, slid.kernel, slid.strides, slid.before)
    means = _window_means(padded(around(x, slid, 0.0), [0] * x.dim(), [0, 0, *more], "constant", 0.0), slid)
    shares = _shares_counted(list(x.shape[2:]), slid, list(means.shape[2:]), all_count=all_count)
    return means / torch.from_numpy(shares).to(x.dtype)


def _shares_counted(sizes: list[int], slid: Window, results: list[int], *, all_count: bool) -> Array:
    """(1, 1, *results) float64: of each window the share of its places that a mean is over."""
    shares = np.ones((1, 1))
    for axis, (size, result) in enumerate(zip(sizes, results, strict=True)):
        places = np.arange(result)[:, None] * slid.strides[axis] - slid.before[axis]
        places = places + np.arange(slid.kernel[axis]) * slid.dilations[axis]
        first, last = (-slid.before[axis], size + slid.behind[axis]) if all_count else (0, size)
        shares = shares[..., None] * ((places >= first) & (places < last)).mean(axis=1)
    return shares


def _window_means(x: Tensor, slid: Window) -> Tensor:
    """Mean of each window of an input that has its pads."""
    if set(slid.dilations) == {1}:
        return _AVERAGE[x.dim() - 3](x, slid.kernel, slid.strides)
    channels = x.shape[1]
    kernel = torch.full([channels, 1, *slid.kernel], 1 / math.prod(slid.kernel), dtype=x.dtype)
    return _CONV[x.dim() - 3](x, kernel, None, slid.strides, 0, slid.dilations, channels)


def _lp_pool(node: Node, x: Tensor) -> Tensor:
    p = node.integer("p", 2)
    slid, more = _pool_window(node, x)
    wide = padded(around(_power(x, p), slid, 0.0), [0] * x.dim(), [0, 0, *more], "constant", 0.0)
    return _root(_window_means(wide, slid) * math.prod(slid.kernel), p)


def _power(x: Tensor, p: int) -> Tensor:
    return torch.square(x) if p == 2 else torch.pow(torch.abs(x), p)


def _root(x: Tensor, p: int) -> Tensor:
    return torch.sqrt(x) if p == 2 else torch.pow(x, 1 / p)


def _all_places(compute: Callable[[Tensor, list[int]], Tensor]) -> Operator:
    return operator(lambda node, x: compute(x, list(range(2, x.dim()))))


def _global_lp(node: Node, x: Tensor) -> Tensor:
    p = node.integer("p", 2)
    return _root(torch.sum(_power(x, p), list(range(2, x.dim())), True), p)


def _max_unpool(node: Node, x: Tensor, places: Tensor, shape: Any = None) -> Tensor:
    slid = window(node, x, node.integers("kernel_shape"))
    pads = zip(slid.before, slid.behind, strict=True)
    sizes = [
        (size - 1) * step + kernel - sum(pad)
        for size, step, kernel, pad in zip(x.shape[2:], slid.strides, slid.kernel, pads, strict=True)
    ]
    total = math.prod(x.shape[:2]) * math.prod(sizes)
    flat = torch.scatter(torch.zeros(total, dtype=x.dtype), 0, places.reshape(-1), x.reshape(-1))
    whole = flat.reshape(*x.shape[:2], *sizes)
    if shape is None:
        return whole
    more = [int(want) - have for want, have in zip(shape.reshape(-1), whole.shape, strict=True)]
    return padded(whole, [0] * x.dim(), more, "constant", 0.0)


CONVOLUTION: Mapping[str, Operator] = {
    "AveragePool": operator(_average_pool),
    "Conv": operator(convolve),
    "ConvTranspose": operator(_conv_transpose),
    "GlobalAveragePool": _all_places(lambda x, axes: torch.mean(x, axes, True)),
    "GlobalLpPool": operator(_global_lp),
    "GlobalMaxPool": _all_places(lambda x, axes: torch.amax(x, axes, True)),
    "LpPool": operator(_lp_pool),
    "MaxPool": operator(_max_pool),
    "MaxUnpool": operator(_max_unpool, 2),
}
