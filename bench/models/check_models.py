"""A perceptron with a layer in its middle, on the digits of the other models."""

from __future__ import annotations

import torch
from mnist_mlp import digits, train

from edgepack import Recipe
from edgepack.model.types import Array


def perceptron() -> Recipe:
    """784-512-512-10; `evaluate` is accuracy in percent on the held-out thousand."""
    train_x, train_y, test_x, test_y = digits()

    def evaluate(predict: object) -> float:
        answers: Array = predict(test_x)  # type: ignore[operator]
        return float((answers.argmax(axis=1) == test_y).mean() * 100)

    return Recipe(
        train(train_x, train_y, (784, 512, 512, 10)), (torch.zeros(1, 784),), {"x": train_x, "y": train_y}, evaluate
    )
