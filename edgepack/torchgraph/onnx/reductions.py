"""Operators that reduce axes or accumulate along one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edgepack.model.types import Array
from edgepack.torchgraph.onnx.node import Node, Operator, listed, operator


def _axes(node: Node, x: Tensor, given: Array | None) -> list[int] | None:
    """Axes to reduce, None for a node that does nothing."""
    axes, idle = node.integers("axes", ()) or listed(given), node.flag("noop_with_empty_axes")
    if not axes and idle:
        return None
    return [axis % x.dim() for axis in axes] if axes else list(range(x.dim()))


def _reduce(
    compute: Callable[[Tensor, list[int], bool], Tensor], before: Callable[[Tensor], Tensor] | None = None
) -> Operator:
    """A reduction; `before` is applied to each element, also where there is no axis to reduce."""

    def run(node: Node, x: Tensor, given: Array | None = None) -> Tensor:
        keep, axes = node.flag("keepdims", 1), _axes(node, x, given)
        values = x if before is None else before(x)
        if axes is None:
            return values if compute not in _OF_ONE else compute(values.unsqueeze(0), [0], False)
        return compute(values, axes, keep) if axes else compute(values.unsqueeze(0), [0], False)

    return operator(run, 1)


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keep)
    return torch.mean(x.double(), axes, keep).to(x.dtype)


def _root(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sqrt(_sum(x, axes, keep)) if x.is_floating_point() else _sum(x, axes, keep).double().sqrt().to(x.dtype)


def _log(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.log(_sum(x, axes, keep))


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keep)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _extreme(compute: Callable[[Tensor, list[int], bool], Tensor], empty: int) -> Callable[..., Tensor]:
    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.dtype == torch.bool:
            return run(x.to(torch.int32), axes, keep).to(torch.bool)
        if any(x.shape[axis] == 0 for axis in axes):
            bound = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
            value = empty * float("inf") if x.is_floating_point() else (bound.max if empty > 0 else bound.min)
            return torch.sum(x, axes, keep, dtype=x.dtype) + value
        return compute(x, axes, keep)

    return run


_OF_ONE = (_log, _root, _log_sum_exp)


def _best(compute: Callable[[Tensor, int, bool], Tensor]) -> Operator:
    def run(node: Node, x: Tensor) -> Tensor:
        axis, keep = node.integer("axis", 0) % x.dim(), node.flag("keepdims", 1)
        if not node.flag("select_last_index"):
            return compute(x, axis, keep)
        return x.shape[axis] - 1 - compute(torch.flip(x, [axis]), axis, keep)

    return operator(run)


def _accumulate(compute: Callable[[Tensor, int], Tensor], start: int) -> Operator:
    def run(node: Node, x: Tensor, axis: Array) -> Tensor:
        along, exclusive, reverse = listed(axis)[0] % x.dim(), node.flag("exclusive"), node.flag("reverse")
        values = torch.flip(x, [along]) if reverse else x
        if exclusive:
            first = torch.full_like(values.narrow(along, 0, 1), start)
            values = torch.cat([first, values.narrow(along, 0, values.shape[along] - 1)], along)
        summed = compute(values, along).to(x.dtype)
        return torch.flip(summed, [along]) if reverse else summed

    return operator(run, 1)


def _products(x: Tensor, axis: int) -> Tensor:
    """Of all elements up to each, over twice as many from step to step; converters have no operator for it."""
    reach, size = 1, x.shape[axis]
    while reach < size:
        first, others = torch.ones_like(x.narrow(axis, 0, reach)), x.narrow(axis, 0, size - reach)
        x, reach = x * torch.cat([first, others], axis), 2 * reach
    return x


REDUCTIONS: Mapping[str, Operator] = {
    "ArgMax": _best(torch.argmax),
    "ArgMin": _best(torch.argmin),
    "CumProd": _accumulate(_products, 1),
    "CumSum": _accumulate(torch.cumsum, 0),
    "ReduceL1": _reduce(_sum, torch.abs),
    "ReduceL2": _reduce(_root, torch.square),
    "ReduceLogSum": _reduce(_log),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_extreme(torch.amax, -1)),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(_extreme(torch.amin, 1)),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(_sum),
    "ReduceSumSquare": _reduce(_sum, torch.square),
}
