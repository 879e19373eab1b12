"""Whether a result is what another runtime computes, by signal over noise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgepack.metrics.values import LEAST_ERROR, sqnr_db
from edgepack.model.types import Array

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

PARITY_DB = 60.0
"""Least signal over noise of a result against another runtime's: fp32 sums in another order stay far above it, at 100
dB and more, but where large numbers cancel."""
ROUNDED_DB = 30.0
"""The same of integers and truth values, and where a model rounds what it computes: a value between two codes may get
either."""


def difference(want: Array, have: Array, least: float, here: str, there: str) -> str | None:
    """How a result differs from another runtime's, in words that follow its name; None where it has at least so many dB
    of signal over noise. Differences of less than `LEAST_ERROR` count for nothing.

    Args:
        want: what `there` computed.
        have: what `here` computed.
        least: signal over noise of floats, in dB; of others it is `ROUNDED_DB` at most.
        here, there: names of the runtimes.
    """
    if want.shape != have.shape:
        return f"has shape {have.shape} in {here}, {want.shape} in {there}"
    least = least if want.dtype.kind == "f" else min(least, ROUNDED_DB)
    want, have = want.astype(np.float64), have.astype(np.float64)
    wanted, found = (np.where(np.isfinite(each), 0.0, each) for each in (want, have))
    if not np.array_equal(wanted, found, equal_nan=True):
        return f"is infinite or NaN in only one of {here} and {there}"
    numbers = np.isfinite(want)
    noise = sqnr_db(have[numbers], want[numbers], LEAST_ERROR)
    if noise >= least:
        return None
    return f"differs from {there}'s: {noise:.0f} dB of signal over noise, at least {least:.0f} dB were expected"


def least_db(module: GraphModule) -> float:
    """Least signal over noise of what a program computes: less where it rounds."""
    names = (str(node.target) for node in module.graph.nodes if node.op == "call_function")
    return ROUNDED_DB if any(re.search(r"aten\.round|quantize", name) for name in names) else PARITY_DB


def with_all_values(module: GraphModule) -> tuple[GraphModule, list[str]]:
    """A graph that returns every value that it computes, in order, and what computes each, in words."""
    import torch

    from edgepack.torchgraph.factor import copied

    copy = copied(module)
    nodes = [node for node in copy.graph.nodes if node.op == "call_function" and _is_comparable(node)]
    output = next(node for node in copy.graph.nodes if node.op == "output")
    output.args = (tuple(nodes),)
    copy.graph.eliminate_dead_code()
    copy.recompile()
    return torch.fx.GraphModule(copy, copy.graph, class_name="Watched"), [_described(node) for node in nodes]


def _is_comparable(node: Node) -> bool:
    import torch

    value = node.meta.get("val")
    real = isinstance(value, torch.Tensor) and not value.is_complex() and value.dtype != torch.float64
    return real and value.numel() > 0


def _described(node: Node) -> str:
    """The node of the ONNX file that it is of, else the operator of torch and the module that calls it."""
    origin = node.meta.get("custom", {}).get(ORIGIN)
    if origin is not None:
        return str(origin)
    call = node if str(node.target) != "<built-in function getitem>" else node.args[0]
    where = [path for path, _ in (call.meta.get("nn_module_stack") or {}).values() if path]
    return f"{call.target}" + (f" in {where[-1]}" if where else "")


ORIGIN = "onnx"
"""Under which an operator of torch notes the node of an ONNX file that it is of."""


def first_difference(names: Sequence[str], want: Sequence[Array], have: Sequence[Array], least: float) -> str | None:
    """The name of the first value that differs, in order; None where none does."""
    for name, wanted, found in zip(names, want, have, strict=True):
        if difference(wanted, found, least, "", "") is not None:
            return name
    return None
