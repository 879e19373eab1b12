"""A small network, data for it, and a training loop that a test can stop and go on with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgepack.training import Compression

FEATURES, HIDDEN, CLASSES = 24, 20, 5


def network(seed: int = 0, *, bias: bool = True) -> nn.Sequential:
    """24-20-20-5: at rank 4 a pair pays in layers 0 and 2, in layer 4 it does not."""
    torch.manual_seed(seed)
    layers = nn.Linear(FEATURES, HIDDEN, bias), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN, bias), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES))


def batch(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Inputs and labels of one step, always the same."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(size, FEATURES, generator=generator)
    return x * torch.linspace(0.1, 2, FEATURES) + 0.5, torch.randint(0, CLASSES, (size,), generator=generator)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compression: Compression | None,
    steps: range,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """One batch per step; `after` is called with the number of steps done."""
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if compression is not None:
            compression.step()
        after(step + 1)
