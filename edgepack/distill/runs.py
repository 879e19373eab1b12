"""Calibration arrays as runs of a program, and many runs of a program at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import DataError
from edgepack.model.types import Array
from edgepack.torchgraph.flat import input_names

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule

Call = Callable[["GraphModule", Sequence["Tensor"]], tuple["Tensor", ...]]
"""(graph, inputs (runs, *input's shape)) → outputs (runs, *output's shape)."""

PARITY = 1e-3
"""Largest difference between runs made at once and one by one, relative to the largest value."""


def as_runs(module: GraphModule, inputs: Mapping[str, Array]) -> list[Tensor]:
    """The inputs of all runs, (runs, *input's shape) each, in the order of the program's inputs.

    Programs have fixed shapes. Where samples are rows of a batch, as many rows make a run as the program takes, and a
    rest that fills none is left out; where each entry is one whole input, it is a run.

    Args:
        inputs: arrays (samples, …) by input name, or in the order of the program's inputs.

    Raises:
        DataError: the arrays do not fit the program.
    """
    import torch

    names = input_names(module)
    arrays = [inputs[name] for name in names] if set(names) == set(inputs) else list(inputs.values())
    wanted = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    if len(arrays) != len(wanted):
        raise DataError(f"the program takes the inputs {names}, found arrays for {list(inputs)}")
    shapes = [tuple(int(size) for size in value.shape) for value in wanted]
    whole = any(array.ndim > len(shape) for array, shape in zip(arrays, shapes, strict=True))
    runs = []
    for name, array, shape in zip(inputs, arrays, shapes, strict=True):
        stacked = array if array.ndim > len(shape) else _stacked(array, 1 if whole else shape[0])
        if stacked.shape[1:] != shape or not len(stacked):
            raise DataError(f"{name!r} has shape {array.shape}, which makes no run of the program's {shape}")
        runs.append(stacked)
    if len({len(stacked) for stacked in runs}) != 1:
        raise DataError(f"the inputs differ in samples: {[len(array) for array in arrays]}")
    return [
        torch.from_numpy(np.ascontiguousarray(stacked)).to(value.dtype)
        for stacked, value in zip(runs, wanted, strict=True)
    ]


def _stacked(array: Array, size: int) -> Array:
    """(samples, …) → (runs, size, …)."""
    rows = np.resize(array, (size, *array.shape[1:])) if len(array) < size else array
    runs = len(rows) // size
    return rows[: runs * size].reshape(runs, size, *rows.shape[1:])


def choose_call(module: GraphModule, inputs: Sequence[Tensor]) -> Call:
    """How to make several runs of a program of fixed shapes: at once, if that gives the same answers.

    `torch.func.vmap` has no rule for some operators, and programs may write into their inputs: those run one by one.
    """
    import torch

    some = [stacked[:2] for stacked in inputs]
    with torch.no_grad():
        wanted = one_by_one(module, some)
        try:
            found = at_once(module, some)
        except (RuntimeError, ValueError, NotImplementedError):  # an operator without a rule
            return one_by_one
    same = all(
        float((f - w).abs().max()) <= PARITY * float(w.abs().max().clamp_min(1e-6))
        for f, w in zip(found, wanted, strict=True)
        if w.numel()
    )
    return at_once if same else one_by_one


def at_once(module: GraphModule, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All runs in one go."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        outputs: tuple[Tensor, ...] = torch.func.vmap(module.forward, randomness="different")(*inputs)
    return outputs


def one_by_one(module: GraphModule, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run after run."""
    import torch

    # A program that works in place must not change the data.
    runs = [module.forward(*[stacked[i].clone() for stacked in inputs]) for i in range(len(inputs[0]))]
    return tuple(torch.stack(values) for values in zip(*runs, strict=True))
