"""Small models of convolutions and recurrent layers, trained on real digits from a seed and written as ONNX files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mnist_70k
import numpy as np
import torch
from mnist_mlp import one_thread
from torch import nn

from edgepack.model.types import Array

BATCH = 64
PEAK_LEARNING_RATE = 3e-3
CLASSES = 10


@dataclass(frozen=True)
class Sizes:
    """How many digits are trained on, built on and scored on, and for how long is trained."""

    train: int = 12_000
    pool: int = 4_000
    unseen: int = 10_000
    epochs: int = 3


def vgg() -> nn.Module:
    """Five 3×3 convolutions in three steps of size."""
    layers: list[nn.Module] = []
    for given, taken, is_last in ((1, 32, False), (32, 32, True), (32, 64, False), (64, 64, True), (64, 128, False)):
        layers += [nn.Conv2d(given, taken, 3, padding=1), nn.BatchNorm2d(taken), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if is_last else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, CLASSES))


class _Block(nn.Module):
    def __init__(self, given: int, taken: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(given, taken, 3, stride, 1), nn.Conv2d(taken, taken, 3, 1, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(taken) for _ in range(2))
        self.beside = nn.Identity() if stride == 1 else nn.Conv2d(given, taken, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.beside(x))


def resnet8() -> nn.Module:
    """Of MLPerf Tiny (Banbury et al., 2021), for one channel."""
    stem = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


class _Rows(nn.Module):
    """Reads a digit row by row in two layers of 128 units."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cells, self.head = kind(28, 128, num_layers=2, batch_first=True), nn.Linear(128, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(x)[0][:, -1])


@dataclass(frozen=True)
class Subject:
    """A model: what makes it, and the shape of a digit that it takes."""

    title: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


SUBJECTS: Mapping[str, Subject] = {
    "vgg": Subject("VGG-like", vgg, (1, 28, 28)),
    "resnet8": Subject("ResNet-8", resnet8, (1, 28, 28)),
    "lstm": Subject("LSTM, 2 layers", lambda: _Rows(nn.LSTM), (28, 28)),
    "gru": Subject("GRU, 2 layers", lambda: _Rows(nn.GRU), (28, 28)),
}


def write(name: str, seed: int, sizes: Sizes, folder: Path) -> None:
    """`model.onnx`, `data.npz` to build on, and `test.npz`, which no build sees."""
    subject = SUBJECTS[name]
    x, y, test_x, test_y = mnist_70k.digits()
    order = np.random.default_rng(seed).permutation(len(x))
    pool, train = np.split(order[: sizes.pool + sizes.train], [sizes.pool])
    images = x.reshape(-1, *subject.shape)
    torch.manual_seed(seed)
    model = _trained(subject.make(), images[train], y[train], sizes.epochs)
    example = (torch.from_numpy(images[:1]),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, example, str(folder / "model.onnx"), dynamo=True, verbose=False, input_names=["x"])
    np.savez(folder / "data.npz", x=images[pool], y=y[pool])
    unseen = slice(0, sizes.unseen)
    np.savez(folder / "test.npz", x=test_x[unseen].reshape(-1, *subject.shape), y=test_y[unseen])


@one_thread()
def _trained(model: nn.Module, x: Array, y: Array, epochs: int) -> nn.Module:
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.parameters(), PEAK_LEARNING_RATE)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()
