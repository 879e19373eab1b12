"""Operators that rearrange, cut, join and make tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgepack.model.types import Array
from edgepack.torchgraph.onnx.node import Node, Operator, bounded, listed, operator
from edgepack.torchgraph.onnx.types import dtype_of, tensor_of


def _shape(node: Node, x: Tensor) -> Tensor:
    start, end = node.integer("start", 0), node.integer("end", x.dim())
    return torch.tensor(list(x.shape)[slice(start, end)], dtype=torch.int64)


def _size(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def _reshape(node: Node, x: Tensor, shape: Array) -> Tensor:
    sizes, keep_zeros = listed(shape), node.flag("allowzero")
    if not keep_zeros:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _axes(node: Node, given: Array | None) -> list[int]:
    return node.integers("axes") if node.has("axes") else listed(given)


def _squeeze(node: Node, x: Tensor, given: Array | None = None) -> Tensor:
    axes = {axis % x.dim() for axis in _axes(node, given)}
    if given is None and not node.has("axes"):
        axes = {axis for axis, size in enumerate(x.shape) if size == 1}
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])


def _unsqueeze(node: Node, x: Tensor, given: Array | None = None) -> Tensor:
    axes = _axes(node, given)
    total = x.dim() + len(axes)
    for axis in sorted(axis % total for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _transpose(node: Node, x: Tensor) -> Tensor:
    order = node.integers("perm", range(x.dim())[::-1])
    return x if order == list(range(x.dim())) else x.permute(order)


def _concat(node: Node, *parts: Tensor) -> Tensor:
    axis = node.integer("axis", 1 if node.version < 4 else None)
    return torch.cat(parts, axis) if len(parts) > 1 else parts[0]


def _split(node: Node, x: Tensor, given: Array | None = None) -> tuple[Tensor, ...]:
    axis = node.integer("axis", 0) % x.dim()
    sizes = node.integers("split") if node.has("split") else listed(given)
    parts = node.integer("num_outputs", node.outputs)
    if not sizes:
        each = -(-x.shape[axis] // parts)
        sizes = [max(0, min(each, x.shape[axis] - each * part)) for part in range(parts)]
    return tuple(torch.split(x, sizes, axis)) if len(sizes) > 1 else (x,)


def _slice(
    node: Node,
    x: Tensor,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Tensor:
    if node.version < 10:
        begin, end = node.integers("starts"), node.integers("ends")
        along = node.integers("axes", range(len(begin)))
    else:
        begin, end = listed(starts), listed(ends)
        along = listed(axes) if axes is not None else list(range(len(begin)))
    strides = listed(steps) if steps is not None else [1] * len(begin)
    for axis, first, last, step in zip(along, begin, end, strides, strict=True):
        x = _cut(x, axis % x.dim(), first, last, step)
    return x


def _cut(x: Tensor, axis: int, first: int, last: int, step: int) -> Tensor:
    """A slice along one axis; nothing is done where it keeps everything."""
    size = x.shape[axis]
    if step < 0:
        # What slice() makes of a stop before the first element is an element from the end.
        first = min(max(first + size if first < 0 else first, -1), size - 1)
        last = min(max(last + size if last < 0 else last, -1), size - 1)
        taken = range(first, last, step)
        if taken == range(size - 1, -1, -1):
            return torch.flip(x, [axis])
        return x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64))
    first, last, _ = slice(first, last).indices(size)
    if (first, last, step) == (0, size, 1):
        return x
    return x[(slice(None),) * axis + (slice(first, max(first, last), step),)]


def _expand(node: Node, x: Tensor, shape: Array) -> Tensor:
    sizes = bounded(node, np.broadcast_shapes(tuple(x.shape), tuple(listed(shape))))
    return x if sizes == tuple(x.shape) else x.expand(sizes)


def _tile(node: Node, x: Tensor, repeats: Array) -> Tensor:
    counts = listed(repeats)
    bounded(node, [size * count for size, count in zip(x.shape, counts, strict=True)])
    return x.repeat(counts)


def _constant_of_shape(node: Node, shape: Array) -> Tensor:
    value = node.array("value")
    fill = torch.zeros(1) if value is None else tensor_of(value, node.label)
    return fill.reshape(()).expand(bounded(node, listed(shape))).clone()


def _constant(node: Node) -> Tensor:
    """A constant, by whichever attribute gives it."""
    if node.has("value"):
        return tensor_of(node.array("value"), node.label)
    for name, read, dtype in (
        ("value_float", node.number, torch.float32),
        ("value_int", node.integer, torch.int64),
        ("value_floats", node.numbers, torch.float32),
        ("value_ints", node.integers, torch.int64),
    ):
        if node.has(name):
            return torch.tensor(read(name), dtype=dtype)
    raise node.error("is a constant that is no tensor of numbers")


def _range(node: Node, start: Array, limit: Array, delta: Array) -> Tensor:
    begin, end, step = (each.reshape(-1)[0] for each in (start, limit, delta))
    (count,) = bounded(node, [max(0, math.ceil((float(end) - float(begin)) / float(step)))])
    return torch.from_numpy((begin + np.arange(count) * step).astype(start.dtype))


def _eye_like(node: Node, x: Tensor) -> Tensor:
    dtype = dtype_of(node.integer("dtype"), node.label) if node.has("dtype") else x.dtype
    rows, columns = x.shape
    return torch.diag(torch.ones(max(rows, columns)), node.integer("k", 0))[:rows, :columns].to(dtype)


def _trilu(node: Node, x: Tensor, k: Array | None = None) -> Tensor:
    diagonal = listed(k)[0] if k is not None else 0
    return torch.triu(x, diagonal) if node.flag("upper", 1) else torch.tril(x, diagonal)


_PADDINGS = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(
    node: Node, x: Tensor, pads: Array | None = None, value: Array | None = None, axes: Array | None = None
) -> Tensor:
    mode = node.text("mode", "constant", _PADDINGS)
    if node.version < 11:
        widths, fill = node.integers("pads"), node.number("value", 0.0)
    else:
        widths = listed(pads)
        fill = value.reshape(-1)[0].item() if value is not None and value.size else 0
    along = [axis % x.dim() for axis in listed(axes)] if axes is not None else list(range(x.dim()))
    before, behind = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(along):
        before[axis], behind[axis] = widths[place], widths[place + len(along)]
    bounded(node, [max(0, size + a + b) for size, a, b in zip(x.shape, before, behind, strict=True)])
    return padded(x, before, behind, mode, fill)


def padded(x: Tensor, before: list[int], behind: list[int], mode: str, fill: Any) -> Tensor:
    """A tensor with so many elements more (less, where negative) at the two ends of each axis."""
    for axis, (first, last) in enumerate(zip(before, behind, strict=True)):
        if first < 0 or last < 0:
            x = _cut(x, axis, max(0, -first), x.shape[axis] + min(0, last), 1)
    widths = [(max(0, first), max(0, last)) for first, last in zip(before, behind, strict=True)]
    if not any(map(any, widths)):
        return x
    flat = [width for pair in reversed(widths) for width in pair]
    while flat[-2:] == [0, 0]:
        flat = flat[:-2]
    if mode == "constant":
        return functional.pad(x, flat, value=fill)
    if mode == "reflect" and x.dim() in (3, 4) and len(flat) <= 2 * (x.dim() - 2) and x.is_floating_point():
        room = all(max(pair) < size for pair, size in zip(widths, x.shape, strict=True))
        if room:  # runtimes have an operator for it
            return functional.pad(x, [*flat, *[0] * (2 * (x.dim() - 2) - len(flat))], mode="reflect")
    for axis, (first, last) in enumerate(widths):
        if first or last:
            x = x.index_select(axis, torch.from_numpy(_places(x.shape[axis], first, last, mode)))
    return x


def _places(size: int, first: int, last: int, mode: str) -> Array:
    """Which element stands at each place of an axis that is padded with its own."""
    places = np.arange(-first, size + last)
    if mode == "edge":
        return np.clip(places, 0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(1, 2 * (size - 1))
    folded = places % period
    return np.minimum(folded, period - folded)


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    block, mode = node.integer("blocksize"), node.text("mode", "DCR", ("DCR", "CRD"))
    n, c, h, w = x.shape
    if mode == "CRD":
        return functional.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // block**2, h, w)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    block, mode = node.integer("blocksize"), node.text("mode", "DCR", ("DCR", "CRD"))
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.permute(order).reshape(n, c * block**2, h // block, w // block)


def _one_hot(node: Node, indices: Tensor, depth: Array, values: Tensor) -> Tensor:
    count, axis = listed(depth)[0], node.integer("axis", -1)
    off, on = values
    bounded(node, [*indices.shape, count])
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    places = indices.long().unsqueeze(axis)
    places = torch.where(places < 0, places + count, places)
    classes = torch.arange(count).reshape([count if at == axis else 1 for at in range(indices.dim() + 1)])
    return torch.where(places == classes, on, off)


def _col_to_im(node: Node, x: Tensor, image: Array, block: Array) -> Tensor:
    sizes, kernel = listed(image), listed(block)
    if len(sizes) != 2:
        raise node.error(f"has an image of {len(sizes)} axes, 2 were expected")
    pads = node.integers("pads", [0] * 4)
    dilations, strides = node.integers("dilations", [1, 1]), node.integers("strides", [1, 1])
    wide = [sizes[0] + pads[0] + pads[2], sizes[1] + pads[1] + pads[3]]
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    steps = [(size - each) // stride + 1 for size, each, stride in zip(wide, reach, strides, strict=True)]
    # By a transposed convolution that puts each element of a block in its place: runtimes have nothing else that sums.
    elements, (height, width) = math.prod(kernel), reach
    places = np.arange(0, height, dilations[0])[:, None] * width + np.arange(0, width, dilations[1])
    weight = torch.from_numpy(np.eye(height * width)[places.reshape(-1)].reshape(elements, 1, height, width)).to(
        x.dtype
    )
    whole = functional.conv_transpose2d(x.reshape(-1, elements, *steps), weight, stride=strides)
    behind = [size - have for size, have in zip(wide, whole.shape[2:], strict=True)]
    whole = functional.pad(whole, [0, behind[1], 0, behind[0]]).reshape(len(x), -1, *wide)
    return whole[:, :, pads[0] : pads[0] + sizes[0], pads[1] : pads[1] + sizes[1]]


def _center_crop_pad(node: Node, x: Tensor, shape: Array) -> Tensor:
    axes, sizes = [axis % x.dim() for axis in node.integers("axes", range(x.dim()))], listed(shape)
    before, behind = [0] * x.dim(), [0] * x.dim()
    for axis, size in zip(axes, sizes, strict=True):
        more = size - x.shape[axis]
        before[axis] = more // 2 if more >= 0 else -(-more // 2)
        behind[axis] = more - before[axis]
    return padded(x, before, behind, "constant", 0)


SHAPES: Mapping[str, Operator] = {
    "CenterCropPad": operator(_center_crop_pad, 1),
    "Col2Im": operator(_col_to_im, 1, 2),
    "Concat": operator(_concat),
    "Constant": operator(_constant),
    "ConstantOfShape": operator(_constant_of_shape, 0),
    "DepthToSpace": operator(_depth_to_space),
    "Expand": operator(_expand, 1),
    "EyeLike": operator(_eye_like, static=True),
    "Flatten": operator(_flatten),
    "OneHot": operator(_one_hot, 1),
    "Pad": operator(_pad, 1, 2, 3),
    "Range": operator(_range, 0, 1, 2),
    "Reshape": operator(_reshape, 1),
    "Shape": operator(_shape, static=True),
    "Size": operator(_size, static=True),
    "Slice": operator(_slice, 1, 2, 3, 4),
    "SpaceToDepth": operator(_space_to_depth),
    "Split": operator(_split, 1),
    "Squeeze": operator(_squeeze, 1),
    "Tile": operator(_tile, 1),
    "Transpose": operator(_transpose),
    "Trilu": operator(_trilu, 1),
    "Unsqueeze": operator(_unsqueeze, 1),
}
