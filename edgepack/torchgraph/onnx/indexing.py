"""Operators that pick elements by their places, or put some there."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.model.types import Array
from edgepack.torchgraph.onnx.node import Node, Operator, bounded, listed, operator
from edgepack.torchgraph.onnx.types import signed

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_start(node: Node, indices: Tensor, size: int) -> Tensor:
    """Places counted from the start, where negative ones count from the end; runtimes take none of these.

    Args:
        node: which has the places as its second input.
        indices: all places, or one coordinate of each.
        size: how many there are.
    """
    return indices if 1 in node.natural else torch.where(indices < 0, indices + size, indices)


def _gather_computed(node: Node, data: Tensor, indices: Tensor) -> Tensor:
    """Rows of a table come by an embedding."""
    axis = node.integer("axis", 0) % data.dim()
    if axis == 0 and data.dim() == 2 and indices.dim() > 0:
        return functional.embedding(_from_start(node, indices, data.shape[axis]), data)
    picked = data.index_select(axis, _from_start(node, indices.long().reshape(-1), data.shape[axis]))
    return picked.reshape([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])


def _gather_known(node: Node, data: Tensor, indices: Array) -> Tensor:
    """Places that are known: a slice where they follow each other."""
    axis = node.integer("axis", 0) % data.dim()
    size = data.shape[axis]
    places = [place + size if place < 0 else place for place in listed(indices)]
    if any(not 0 <= place < size for place in places):
        raise node.error(f"picks place {max(places)} of {size}")
    if places and places == list(range(places[0], places[0] + len(places))):
        picked = data.narrow(axis, places[0], len(places))
    else:
        picked = data.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return picked.reshape([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])


def _gather(node: Node, data: Tensor, indices: Tensor | Array) -> Tensor:
    """ONNX Gather, from a tensor, by places that are computed or known."""
    return (_gather_computed if isinstance(indices, Tensor) else _gather_known)(node, data, indices)


def _gather_elements(node: Node, data: Tensor, indices: Tensor) -> Tensor:
    axis = node.integer("axis", 0) % data.dim()
    return torch.gather(data, axis, _from_start(node, indices.long(), data.shape[axis]))


def _flat_places(node: Node, indices: Tensor, sizes: list[int]) -> Tensor:
    """Places in a flat array of that shape, of tuples of indices that stand along the last axis."""
    places = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for axis, size in enumerate(sizes):
        places = places * size + _from_start(node, indices[..., axis].long(), size)
    return places


def _gather_nd(node: Node, data: Tensor, indices: Tensor) -> Tensor:
    batch, depth = node.integer("batch_dims", 0), indices.shape[-1]
    sizes, rest = list(data.shape[batch : batch + depth]), data.shape[batch + depth :]
    count = math.prod(data.shape[:batch])
    places = _flat_places(node, indices, sizes).reshape(count, -1)
    places = places + torch.arange(count).unsqueeze(1) * math.prod(sizes)
    picked = data.reshape(count * math.prod(sizes), math.prod(rest)).index_select(0, places.reshape(-1))
    return picked.reshape([*indices.shape[:-1], *rest])


def _scatter_elements(node: Node, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, reduction = node.integer("axis", 0) % data.dim(), node.text("reduction", "none", _REDUCTIONS)
    places = _from_start(node, indices.long(), data.shape[axis])
    if reduction == "none":
        return torch.scatter(data, axis, places, updates)
    flat = torch.zeros(places.shape, dtype=torch.int64)
    for at, size in enumerate(data.shape):
        along = torch.arange(places.shape[at]).reshape([-1 if each == at else 1 for each in range(data.dim())])
        flat = flat * size + (places if at == axis else along)
    columns = (each.reshape(-1, 1) for each in (data, updates))
    return _joined(node, _REDUCTIONS[reduction], flat.reshape(-1), *columns).reshape(data.shape)


def _joined(node: Node, reduction: str, places: Tensor, data: Tensor, updates: Tensor) -> Tensor:
    """Rows (places, columns), joined with those that are meant for them; runtimes scatter without a reduction.

    Args:
        places: of each row of `updates` among those of `data`.
    """
    meant = places == torch.arange(len(data)).unsqueeze(1)
    if reduction == "sum" and data.is_floating_point():
        return data + torch.matmul(meant.to(data.dtype), updates)
    bounded(node, [*meant.shape, data.shape[1]])
    idle = {"sum": 0, "prod": 1}.get(reduction)
    if idle is None:
        limits = torch.finfo(data.dtype) if data.is_floating_point() else torch.iinfo(data.dtype)
        idle = limits.min if reduction == "amax" else limits.max
    rows = torch.where(meant.unsqueeze(2), updates, torch.full((), idle, dtype=data.dtype))
    rows = torch.cat([data.unsqueeze(1), rows], 1)
    dtype = {"dtype": data.dtype} if reduction in ("sum", "prod") else {}
    result: Tensor = getattr(torch, reduction)(rows, 1, **dtype)
    return result


def _scatter_nd(node: Node, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    reduction, depth = node.text("reduction", "none", _REDUCTIONS), indices.shape[-1]
    sizes, rest = list(data.shape[:depth]), math.prod(data.shape[depth:])
    places = _flat_places(node, indices, sizes).reshape(-1)
    flat, new = data.reshape(math.prod(sizes), rest), updates.reshape(-1, rest)
    if reduction == "none":
        return torch.scatter(flat, 0, places.unsqueeze(1).expand(-1, rest), new).reshape(data.shape)
    return _joined(node, _REDUCTIONS[reduction], places, flat, new).reshape(data.shape)


def _tensor_scatter(node: Node, past: Tensor, update: Tensor, places: Tensor | None = None) -> Tensor:
    axis = node.integer("axis", -2) % past.dim()
    circular = node.text("mode", "linear", ("linear", "circular")) == "circular"
    start = torch.zeros(past.shape[0], dtype=torch.int64) if places is None else places.long()
    along = start.unsqueeze(1) + torch.arange(update.shape[axis])
    along = along % past.shape[axis] if circular else along
    shape = [1] * past.dim()
    shape[0], shape[axis] = along.shape
    return torch.scatter(past, axis, along.reshape(shape).expand(update.shape), update)


def _top_k(node: Node, x: Tensor, k: Array | None = None) -> tuple[Tensor, Tensor]:
    axis, largest = node.integer("axis", -1) % x.dim(), node.flag("largest", 1)
    node.flag("sorted", 1)
    count = listed(k)[0] if k is not None else node.integer("k")
    values = signed(x)
    if axis == x.dim() - 1:
        top, places = torch.topk(values, count, -1, largest)
    else:
        # Runtimes look along the last axis alone.
        top, places = torch.topk(values.transpose(axis, -1), count, -1, largest)
        top, places = top.transpose(axis, -1), places.transpose(axis, -1)
    # Of values whose places nothing reads, converters make a sort that runtimes do not have.
    top = torch.where(places < 0, torch.zeros_like(top), top)
    return top.to(x.dtype), places


def _reverse_sequence(node: Node, x: Tensor, lengths: Array) -> Tensor:
    batch, time = node.integer("batch_axis", 1), node.integer("time_axis", 0)
    steps = torch.arange(x.shape[time]).expand(x.shape[batch], -1)
    ends = torch.from_numpy(lengths).long().unsqueeze(1)
    places = torch.where(steps < ends, ends - 1 - steps, steps)
    places = places if batch < time else places.T
    shape = [1] * x.dim()
    shape[batch], shape[time] = x.shape[batch], x.shape[time]
    return torch.gather(x, time, places.reshape(shape).expand(x.shape))


def _compress(node: Node, x: Tensor, condition: Array) -> Tensor:
    taken = torch.from_numpy(condition.nonzero()[0])
    if not node.has("axis"):
        return x.reshape(-1).index_select(0, taken)
    return x.index_select(node.integer("axis") % x.dim(), taken)


def _non_zero(node: Node, x: Array) -> Tensor:
    return torch.nonzero(torch.from_numpy(x)).T.contiguous()


def _hardmax(node: Node, x: Tensor) -> Tensor:
    axis = node.integer("axis", 1 if node.version < 13 else -1)
    if node.version < 13:
        flat = x.reshape(math.prod(x.shape[: axis % x.dim()]), -1)
        return _first_largest(flat, 1).reshape(x.shape)
    return _first_largest(x, axis % x.dim())


def _first_largest(x: Tensor, axis: int) -> Tensor:
    shape = [x.shape[axis] if at == axis else 1 for at in range(x.dim())]
    return (torch.argmax(x, axis, True) == torch.arange(x.shape[axis]).reshape(shape)).to(x.dtype)


INDEXING: Mapping[str, Operator] = {
    "Compress": operator(_compress, 1),
    "Gather": operator(_gather, either=(1,)),
    "GatherElements": operator(_gather_elements),
    "GatherND": operator(_gather_nd),
    "Hardmax": operator(_hardmax),
    "NonZero": operator(_non_zero, 0),
    "ReverseSequence": operator(_reverse_sequence, 1),
    "Scatter": operator(_scatter_elements),
    "ScatterElements": operator(_scatter_elements),
    "ScatterND": operator(_scatter_nd),
    "TensorScatter": operator(_tensor_scatter),
    "TopK": operator(_top_k, 1),
}
