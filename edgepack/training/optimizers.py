"""Keeps the parameter groups of optimizers in step with the layers: factors in, dense weights out.

Factors join the group of their dense weight, so learning rate, weight decay and schedulers go on as they are. They
stand where `model.parameters()` has them: an optimizer made anew from a restored model numbers its parameters alike,
and its saved state fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from edgepack.training.modules import CompressedLinear


def check_optimizer(optimizer: object) -> None:
    """Refuses what cannot take new parameters while it runs.

    Raises:
        UsageError: no torch optimizer, or one that lays out its state for all parameters at once.
    """
    import torch

    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"attach() got {type(optimizer).__name__}, a torch.optim.Optimizer was expected")
    if isinstance(optimizer, torch.optim.LBFGS | torch.optim.Adagrad):
        raise UsageError(
            f"{type(optimizer).__name__} sets up its state for a fixed list of parameters, factors could not join",
            hint="use SGD, Adam, AdamW or another optimizer that makes its state on the first step",
        )


def add_factors(optimizer: Optimizer, layer: CompressedLinear, weight: Tensor) -> None:
    """Put the layer's factors into the group that holds its dense weight, if this optimizer has it."""
    if not layer.trainable:
        return
    for group in optimizer.param_groups:
        place = _index(group["params"], weight)
        held = _ids([group])
        new = [factor for factor in layer.small.values() if id(factor) not in held]
        if place is None or not new:
            continue
        after = _index(group["params"], layer.own_bias)
        place = max(place, -1 if after is None else after) + 1
        group["params"][place:place] = new


def remove(optimizer: Optimizer, weight: Tensor) -> None:
    """Take a parameter and its state out of an optimizer."""
    for group in optimizer.param_groups:
        place = _index(group["params"], weight)
        if place is not None:
            del group["params"][place]
    optimizer.state.pop(weight, None)


def unheld(optimizers: Iterable[Optimizer], layers: Mapping[str, CompressedLinear]) -> list[str]:
    """Names of the trainable parameters of the layers that no optimizer has."""
    held = _ids(group for optimizer in optimizers for group in optimizer.param_groups)
    return [
        f"{name}.{part}"
        for name, layer in layers.items()
        for part, parameter in (("weight", layer.dense), *layer.small.items())
        if parameter is not None and parameter.requires_grad and id(parameter) not in held
    ]


def _ids(groups: Iterable[Mapping[str, Any]]) -> set[int]:
    return {id(parameter) for group in groups for parameter in group["params"]}


def _index(parameters: list[Tensor], wanted: Tensor | None) -> int | None:
    return next((place for place, parameter in enumerate(parameters) if parameter is wanted), None)
