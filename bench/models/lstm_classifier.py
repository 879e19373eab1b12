"""A two-layer LSTM that reads MNIST digits row by row: 28 steps of 28 pixels, trained in under a minute on the CPU.

The gates are two linear layers per cell, one for the input and one for the recurrent state, in an unrolled loop, so
that each is used at every step. Digits and split are those of the multilayer perceptron beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from mnist_mlp import SEED, digits, one_thread, shifted
from torch import nn

from edgepack import Recipe
from edgepack.model.types import Array

STEPS = PIXELS = 28
HIDDEN = 128
EPOCHS = 5
BATCH = 64
PEAK_LEARNING_RATE = 5e-3


class Cell(nn.Module):
    """One LSTM cell (Hochreiter and Schmidhuber, 1997; forget gate of Gers et al., 2000)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 4 * hidden)
        self.recurrent = nn.Linear(hidden, 4 * hidden, bias=False)
        with torch.no_grad():
            self.input.bias[hidden : 2 * hidden] = 1.0  # forget little at first (Jozefowicz et al., 2015)

    def forward(
        self, x: torch.Tensor, state: torch.Tensor | None, memory: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """State and memory of zeros, as at the first step, are None: a file would hold the weights to multiply them."""
        gates = self.input(x) if state is None else self.input(x) + self.recurrent(state)
        take, keep, show, new = gates.chunk(4, dim=1)
        kept = 0.0 if memory is None else torch.sigmoid(keep) * memory
        memory = kept + torch.sigmoid(take) * torch.tanh(new)
        return torch.sigmoid(show) * torch.tanh(memory), memory


class Classifier(nn.Module):
    """(batch, 28, 28) pixels in 0 … 1 → (batch, 10) logits, from the last state of the upper cell."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = Cell(PIXELS, HIDDEN), Cell(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = low_memory = high = high_memory = None
        for step in range(STEPS):
            low, low_memory = self.lower(x[:, step], low, low_memory)
            high, high_memory = self.upper(low, high, high_memory)
        return self.head(high)


@one_thread()
def train(images: Array, labels: Array) -> nn.Module:
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = Classifier()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    batches = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=batches)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH)[: len(x) // BATCH]:
            optimizer.zero_grad()
            rows = shifted(x[batch], generator).view(-1, STEPS, PIXELS)
            nn.functional.cross_entropy(model(rows), y[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def recipe() -> Recipe:
    """Train the model and hand it over with its digits; `evaluate` is accuracy in percent on the held-out thousand."""
    train_x, train_y, test_x, test_y = digits()
    rows = test_x.reshape(-1, STEPS, PIXELS)

    def evaluate(predict: Callable[..., Array]) -> float:
        return float((predict(rows).argmax(axis=1) == test_y).mean() * 100)

    model = train(train_x, train_y)
    calibration = {"x": train_x.reshape(-1, STEPS, PIXELS), "y": train_y}
    return Recipe(model, (torch.zeros(1, STEPS, PIXELS),), calibration, evaluate)
