"""Moments of layer inputs, gathered by hooks while a model trains: bounded memory, one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import DataError, UsageError
from edgepack.model.types import Moments

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from edgepack.training.modules import CompressedLinear

WINDOW = 100
"""Steps before the schedule begins whose inputs count: those before come from layers that have changed much since."""


@dataclass
class InputSums:
    """Sums over the input rows of one layer.

    Attributes:
        count: rows.
        total: (in,) float64.
        second: (in, in) float64, Σ x xᵀ.
        extremes: (2,) float64, the smallest and largest value.
    """

    count: int
    total: Tensor
    second: Tensor
    extremes: Tensor

    def add(self, rows: Tensor) -> None:
        """Count rows (N, in) in."""
        import torch

        rows = rows.detach().to(self.total)
        self.count += len(rows)
        self.total += rows.sum(dim=0)
        self.second.addmm_(rows.T, rows)
        low, high = torch.aminmax(rows)
        self.extremes[0] = torch.minimum(self.extremes[0], low)
        self.extremes[1] = torch.maximum(self.extremes[1], high)

    def moments(self, name: str) -> Moments:
        """What the sums come to.

        Raises:
            DataError: no row was seen, or NaN or infinity.
        """
        import numpy as np

        if not self.count:
            raise DataError(
                f"{name}: no input came by in the {WINDOW} training steps before the schedule began",
                hint="leave this layer out, or use compressor='low-rank'",
            )
        total, second, extremes = (part.cpu().numpy() for part in (self.total, self.second, self.extremes))
        if not np.isfinite(second).all():
            raise DataError(f"{name}: NaN or infinity among its inputs", hint="look for an overflow in the model")
        return Moments(self.count, total / self.count, second / self.count, float(extremes[0]), float(extremes[1]))


def empty_sums(layer: CompressedLinear) -> InputSums:
    """Sums of nothing, on the layer's device where that has float64."""
    import torch

    kind = layer.dense.device.type
    device = "cpu" if kind == "mps" else layer.dense.device
    size = layer.in_features
    zeros = torch.zeros(size, dtype=torch.float64, device=device)
    extremes = torch.tensor([float("inf"), float("-inf")], dtype=torch.float64, device=device)
    return InputSums(0, zeros, torch.zeros(size, size, dtype=torch.float64, device=device), extremes)


def watch(layer: CompressedLinear, sums: InputSums) -> RemovableHandle:
    """Count the layer's inputs in from now on, those of training only.

    Gradient checkpointing runs a layer again during the backward pass; those rows were counted the first time.
    """
    import torch

    def hook(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x = args[0] if args else kwargs.get("x", kwargs.get("input"))
        in_backward = torch._C._current_graph_task_id() != -1
        if module.training and not in_backward and isinstance(x, torch.Tensor) and x.numel():
            sums.add(x.reshape(-1, module.in_features))

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def sums_state(sums: InputSums) -> dict[str, Any]:
    """Copies of the sums for a checkpoint: a number and tensors."""
    parts = {name: getattr(sums, name).clone() for name in ("total", "second", "extremes")}
    return {"count": sums.count, **parts}


def load_sums(sums: InputSums, state: Mapping[str, Any], name: str) -> None:
    """Take the sums of a checkpoint.

    Raises:
        UsageError: they are those of another layer.
    """
    for part in ("total", "second", "extremes"):
        own, saved = getattr(sums, part), state[part]
        if own.shape != saved.shape:
            raise UsageError(f"{name}: input statistics of {tuple(saved.shape)}, {tuple(own.shape)} were expected")
        own.copy_(saved)
    sums.count = int(state["count"])
