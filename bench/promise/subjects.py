"""The models of the promise table, each trained from several seeds, with samples to build on and samples that no build
sees.

All but magika are trained here on data that neither part holds. Magika comes trained inside its package; its samples
are files of this machine, without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import magika_files
import mnist_70k
import numpy as np
import torch
from mnist_mlp import one_thread
from torch import nn

from edgepack.model.types import Array

POOL = 10_000
"""Samples to build on, at most."""
UNSEEN = 10_000
BATCH = 128
FRIEDMAN_INPUTS = 64
FILES_PER_SUFFIX = 4000
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Data:
    """Arrays with the samples first: inputs by name and, where there are labels, `y`."""

    pool: Mapping[str, Array]
    unseen: Mapping[str, Array]


@dataclass(frozen=True)
class Subject:
    """A model of the table.

    Attributes:
        title: for people.
        write: (path, seed) -> the data; writes an ONNX file trained from the seed.
        limits: `--max-drop`, in the unit of its metric.
        seeds: how many it is trained from.
    """

    title: str
    write: Callable[[Path, int], Data]
    limits: tuple[float, ...] = (0.1, 0.3, 1.0)
    seeds: int = 2


def _digits(seed: int, shape: tuple[int, ...], target: Callable[[Array, Array], Array | None]) -> tuple[Array, ...]:
    """Train images and targets, pool images and targets, unseen images and targets; the test digits are the unseen."""
    x, y, test_x, test_y = mnist_70k.digits()
    order = np.random.default_rng(seed).permutation(len(x))
    parts = [(x[order[POOL:]], y[order[POOL:]]), (x[order[:POOL]], y[order[:POOL]]), (test_x, test_y)]
    return tuple(array for images, labels in parts for array in (images.reshape(-1, *shape), target(images, labels)))


@one_thread()
def _train(model: nn.Module, x: Array, y: Array, loss: Loss, *, epochs: int, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _export(model: nn.Module, example: Array, path: Path) -> None:
    torch.onnx.export(model, (torch.from_numpy(example),), str(path), dynamo=True, verbose=False, input_names=["x"])


def _perceptron(*sides: int) -> nn.Sequential:
    layers = [layer for i in range(len(sides) - 1) for layer in (nn.Linear(sides[i], sides[i + 1]), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def classifier(path: Path, seed: int) -> Data:
    """784-512-10, cross-entropy; labels are classes."""
    torch.manual_seed(seed)
    x, y, pool_x, pool_y, unseen_x, unseen_y = _digits(seed, (784,), lambda _, labels: labels)
    model = _train(_perceptron(784, 512, 10), x, y, nn.functional.cross_entropy, epochs=6, seed=seed)
    _export(model, x[:1], path)
    return Data({"x": pool_x, "y": pool_y}, {"x": unseen_x, "y": unseen_y})


def sigmoid(path: Path, seed: int) -> Data:
    """784-256-1 with a sigmoid: whether a digit is five or more; labels are 0 and 1."""
    torch.manual_seed(seed)
    parts = _digits(seed, (784,), lambda _, labels: (labels >= 5).astype(np.float32)[:, None])
    x, y, pool_x, pool_y, unseen_x, unseen_y = parts
    model = nn.Sequential(_perceptron(784, 256, 1), nn.Sigmoid())
    _export(_train(model, x, y, nn.functional.binary_cross_entropy, epochs=4, seed=seed), x[:1], path)
    return Data({"x": pool_x, "y": pool_y.astype(np.int64)}, {"x": unseen_x, "y": unseen_y.astype(np.int64)})


def autoencoder(path: Path, seed: int) -> Data:
    """784-256-32-256-784, mean square error; no labels."""
    torch.manual_seed(seed)
    x, y, pool_x, _, unseen_x, _ = _digits(seed, (784,), lambda images, _: images)
    model = _train(_perceptron(784, 256, 32, 256, 784), x, y, nn.functional.mse_loss, epochs=6, seed=seed)
    _export(model, x[:1], path)
    return Data({"x": pool_x}, {"x": unseen_x})


def regression(path: Path, seed: int) -> Data:
    """64-256-256-1 on Friedman's first problem (1991) with 59 inputs that mean nothing; labels are values."""
    from sklearn.datasets import make_friedman1

    torch.manual_seed(seed)
    train = 20_000
    x, y = make_friedman1(train + POOL + UNSEEN, n_features=FRIEDMAN_INPUTS, noise=0.5, random_state=seed)
    x, y = x.astype(np.float32), ((y - y[:train].mean()) / y[:train].std()).astype(np.float32)[:, None]
    model = _perceptron(FRIEDMAN_INPUTS, 256, 256, 1)
    _export(_train(model, x[:train], y[:train], nn.functional.mse_loss, epochs=15, seed=seed), x[:1], path)
    pool = slice(train, train + POOL)
    return Data({"x": x[pool], "y": y[pool]}, {"x": x[train + POOL :], "y": y[train + POOL :]})


def lstm(path: Path, seed: int) -> Data:
    """An unrolled LSTM of 96 over the rows of a digit, and its head; labels are classes."""
    torch.manual_seed(seed)
    x, y, pool_x, pool_y, unseen_x, unseen_y = _digits(seed, (28, 28), lambda _, labels: labels)
    model = _train(_RowReader(), x[:25_000], y[:25_000], nn.functional.cross_entropy, epochs=3, seed=seed)
    _export(model, x[:1], path)
    unseen = slice(0, 5000)
    return Data({"x": pool_x, "y": pool_y}, {"x": unseen_x[unseen], "y": unseen_y[unseen]})


class _RowReader(nn.Module):
    """Two rows of a digit at a time."""

    def __init__(self) -> None:
        super().__init__()
        from lstm_classifier import Cell

        self.cell, self.head = Cell(56, 96), nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = x.reshape(-1, 14, 56)
        state = memory = None
        for step in range(14):
            state, memory = self.cell(pairs[:, step], state, memory)
        return self.head(state)


def pipeline(path: Path, seed: int) -> Data:
    """Scikit-learn's StandardScaler and MLPClassifier; outputs are the class number and a map of probabilities."""
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, pool_x, pool_y, unseen_x, unseen_y = _digits(seed, (784,), lambda _, labels: labels)
    network = MLPClassifier((256,), max_iter=6, random_state=seed, early_stopping=True)
    made = make_pipeline(StandardScaler(), network).fit(x[:20_000], y[:20_000])
    path.write_bytes(to_onnx(made, x[:1], target_opset=17).SerializeToString())
    return Data({"X": pool_x, "y": pool_y}, {"X": unseen_x, "y": unseen_y})


def magika(path: Path, seed: int) -> Data:
    """Google's file type detector as it comes; the seed draws the files."""
    path.write_bytes(magika_files.model_path().read_bytes())
    rows = np.random.default_rng(seed).permutation(magika_files.rows(FILES_PER_SUFFIX))
    pool = min(POOL, len(rows) - 5000)
    return Data({"bytes": rows[:pool]}, {"bytes": rows[pool : pool + 5000]})


SUBJECTS: Mapping[str, Subject] = {
    "classifier": Subject("MNIST MLP", classifier, seeds=4),
    "sigmoid": Subject("one sigmoid", sigmoid),
    "autoencoder": Subject("autoencoder", autoencoder),
    "regression": Subject("regression", regression),
    "pipeline": Subject("sklearn pipeline", pipeline),
    "lstm": Subject("LSTM", lstm),
    "magika": Subject("magika", magika, limits=(0.5, 1.0, 2.0), seeds=1),
}
