"""A recipe with layers of every kind that the TFLite converter folds, shares or turns around, and its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgepack.backends.backend import WriterData
from edgepack.backends.runtime import load, predict
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.writer import TfliteWriter
from edgepack.data import Samples
from edgepack.model.model import Model
from edgepack.model.types import Array
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace

RECIPE = """
import torch
from torch import nn
from edgepack.model.types import Recipe

class Model(nn.Module):
    '''A layer norm, an MLP of three layers, the second of which is used twice, and a product the other way round.'''

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(64)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias)
        self.first, self.second, self.third = nn.Linear(64, 96), nn.Linear(96, 96), nn.Linear(96, 10)
        self.left = nn.Parameter(torch.randn(6, 3))

    def forward(self, x):
        hidden = torch.relu(self.second(torch.relu(self.second(torch.relu(self.first(self.norm(x)))))))
        return self.left @ self.third(hidden)

def recipe():
    torch.manual_seed(0)
    return Recipe(Model(), (torch.zeros(1, 3, 64),))
"""


def normed_mlp(folder: Path) -> Model:
    """The model, read from a recipe that is written to the folder."""
    (folder / "model.py").write_text(RECIPE)
    return open_model(f"{folder / 'model.py'}:recipe", folder)


def samples(count: int) -> Samples:
    return Samples({"x": np.random.default_rng(0).standard_normal((count, 3, 64)).astype(np.float32)})


@contextmanager
def tflite_files(opened: Model, data: Samples, folder: Path) -> Iterator[TfliteWriter]:
    """With one converter process for all that is written."""
    (folder / "plans").mkdir()
    given = WriterData(data, {"x": np.zeros((1, 3, 64), np.float32)}, 127)
    with TfliteEmitter() as converter:
        yield TfliteWriter(converter, opened, given, Workspace(Cache(folder / "cache"), folder / "plans"))


def answers(path: Path, data: Samples) -> Array:
    return predict(load(path, "tflite"), data)
