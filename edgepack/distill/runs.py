"""Calibration arrays as runs of a program, and many runs of a program at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgepack.distill.graphs import batch_of
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

COMPARED = 3
"""Runs in that comparison."""


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


def choose_call(modules: Sequence[GraphModule], inputs: Sequence[Tensor]) -> Call:
    """How to make several runs of programs of fixed shapes: the fastest way that gives the same answers.

    A program of layers alone takes more samples on the first axis than it was exported for. Where it names its shapes,
    `torch.func.vmap` does it, which has no rule for some operators. Programs that write into their inputs, or mix
    samples, run one by one.

    Args:
        modules: the programs, all with the same inputs.
        inputs: (runs, *input's shape) each, at least two runs.
    """
    import torch

    some = [stacked[:COMPARED] for stacked in inputs]
    ways: list[Call] = [as_batch, at_once]
    with torch.no_grad():
        wanted = [one_by_one(module, some) for module in modules]
        for way in ways:
            if all(_same(way, module, some, answers) for module, answers in zip(modules, wanted, strict=True)):
                return way
    return one_by_one


def _same(way: Call, module: GraphModule, inputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    try:
        found = way(module, inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):  # shapes, or no rule for an operator
        return False
    return all(
        f.shape == w.shape and float((f - w).abs().max()) <= PARITY * float(w.abs().max().clamp_min(1e-6))
        for f, w in zip(found, wanted, strict=True)
        if w.numel()
    )


def as_batch(module: GraphModule, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All runs in one go, one behind the other on the first axis of the program's inputs and outputs.

    Raises:
        ValueError: the program's inputs or outputs have no such axis in common.
    """
    runs, batch = len(inputs[0]), batch_of(module)
    if not batch:
        raise ValueError("the inputs have no axis of samples in common")
    # A program that works in place must not change the data.
    outputs = module.forward(*[stacked.flatten(0, 1).clone() for stacked in inputs])
    return tuple(values.unflatten(0, (runs, len(values) // runs)) for values in outputs)


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
