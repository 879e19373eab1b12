"""Runs a flat graph on numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import ModelError
from edgepack.model.types import Array, TensorSpec
from edgepack.torchgraph.flat import input_names

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule


def input_specs(module: GraphModule) -> tuple[TensorSpec, ...]:
    """The inputs of a graph, in its fixed shapes.

    Raises:
        ModelError: one is no tensor, or of a type that numpy lacks.
    """
    import torch

    found = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor):
                raise ModelError(
                    f"the input {node.target!r} is {type(value).__name__}, expected a tensor",
                    hint="bind other arguments inside the model",
                )
            try:
                dtype = torch.empty(0, dtype=value.dtype).numpy().dtype
            except TypeError as err:
                raise ModelError(f"the input {node.target!r} is {value.dtype}, which numpy does not know") from err
            found.append(TensorSpec(str(node.target), tuple(value.shape), dtype))
    return tuple(found)


def arguments(module: GraphModule, feed: Mapping[str, Array]) -> list[Tensor]:
    """The arguments of a graph, by input name or in the order of its inputs.

    Raises:
        ModelError: there are more of them, or fewer.
    """
    import torch

    names = input_names(module)
    values = [feed[name] for name in names] if set(names) == set(feed) else list(feed.values())
    if len(values) != len(names):
        raise ModelError(f"the program takes the inputs {names}, found {list(feed)}")
    dtypes = [node.meta["val"].dtype for node in module.graph.nodes if node.op == "placeholder"]
    return [torch.from_numpy(np.array(v)).to(dtype) for v, dtype in zip(values, dtypes, strict=True)]


def run(module: GraphModule, feed: Mapping[str, Array], *, threads: int) -> list[Tensor]:
    """The outputs of one run.

    Raises:
        ModelError: the graph does not run on these inputs.
    """
    import torch

    with torch.no_grad(), torch_threads(threads):
        try:
            return list(module(*arguments(module, feed)))
        except (RuntimeError, TypeError, IndexError) as err:  # what torch raises for shapes and values
            shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in feed.items())
            raise ModelError(
                f"the model does not run on inputs of shape {shapes}: {first_line(err)}",
                hint="give real inputs with --data",
            ) from err


def macs(module: GraphModule, feed: Mapping[str, Array]) -> int:
    """Multiplications of one run in matrix products, convolutions and recurrent steps; errors as of `run`."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # Recurrent layers are counted by the products that they come apart into without a kernel of their own.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        run(module, feed, threads=1)
    return int(counter.get_total_flops()) // 2


def first_line(err: BaseException) -> str:
    """What an error says, in short."""
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of an operator within the block."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
