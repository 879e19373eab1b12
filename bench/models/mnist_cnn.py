"""A small convolutional network on the digits of the multilayer perceptron beside it: two thirds of its time are in
3×3 convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mnist_mlp import SEED, digits, one_thread
from torch import nn

from edgepack import Recipe
from edgepack.model.types import Array

EPOCHS = 8
BATCH = 128
LEARNING_RATE = 3e-3


def _images(rows: Array) -> Array:
    return rows.reshape(-1, 1, 28, 28)


@one_thread()
def train(images: Array, labels: Array) -> nn.Sequential:
    torch.manual_seed(SEED)
    first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    hidden, last = nn.Linear(784, 40), nn.Linear(40, 10)
    pool, relu = nn.MaxPool2d(2), nn.ReLU()
    model = nn.Sequential(first, relu, pool, second, relu, pool, nn.Flatten(), hidden, relu, last)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def recipe() -> Recipe:
    """Train the model and hand it over with its digits; `evaluate` is accuracy in percent on the held-out thousand."""
    train_x, train_y, test_x, test_y = digits()

    def evaluate(predict: Callable[..., Array]) -> float:
        return float((predict(_images(test_x)).argmax(axis=1) == test_y).mean() * 100)

    model = train(_images(train_x), train_y)
    return Recipe(model, (torch.zeros(1, 1, 28, 28),), {"x": _images(train_x), "y": train_y}, evaluate)
