"""The operators of layers stored in code, in differentiable torch: see `edgepack.model.constexpr.OPERATORS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional


def _cast(a: Tensor, to: str) -> Tensor:
    if to == "float32":  # floats keep the layer's own type
        return a if a.is_floating_point() else a.to(torch.get_default_dtype())
    return a.to(torch.int32)


def _gather(a: Tensor, indices: Tensor, axis: int) -> Tensor:
    """`index_select`, whose backward pass is several times faster than that of indexing."""
    found = a.index_select(axis, indices.reshape(-1))
    return found.reshape(a.shape[:axis] + indices.shape + a.shape[axis + 1 :])


def _scatter(positions: Tensor, values: Tensor, size: int) -> Tensor:
    return values.new_zeros(size).scatter(0, positions.long(), values)


def _conv1d(rows: Tensor, filters: Tensor) -> Tensor:
    return functional.conv1d(rows[:, None], filters[:, None]).transpose(1, 2)


TORCH_OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "cast": _cast,
    "gather": _gather,
    "reshape": lambda a, shape: a.reshape(shape),
    "transpose": lambda a, perm: a.permute(perm),
    "matmul": lambda a, b: a @ b,
    "mul": lambda a, b: a * b,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "cumsum": lambda a: torch.cumsum(a, 0).to(a.dtype),
    "scatter": _scatter,
    "head": lambda a, count: a.reshape(-1)[:count],
    "pad": lambda a, before, after: functional.pad(a, (before, after)),
    "conv1d": _conv1d,
    "sum": lambda a, axes: a.sum(dim=axes),
}
"""Those that can stand behind a trained number or the layer's input. The others make whole numbers of whole numbers:
they are computed once, in numpy."""
