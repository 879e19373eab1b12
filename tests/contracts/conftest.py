"""The model that backends and sources are held to: three layers in a row, whose answers numpy knows as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.onnx.file import to_bytes
from edgepack.backends.registry import FORMATS
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.sources import open_model
from edgepack.torchgraph.digest import program_digest

RECIPE = '''
import torch
from torch import nn
from edgepack.model.types import Recipe


class Model(nn.Module):
    """64 → 96 → 81 → 10: the last layer has an odd number of inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(64, 96), nn.Linear(96, 81), nn.Linear(81, 10)

    def forward(self, pixels):
        return self.third(torch.relu(self.second(torch.relu(self.first(pixels)))))


def recipe():
    torch.manual_seed(0)
    return Recipe(Model(), (torch.zeros(1, 64),))


def with_argument(size):
    return recipe()


def wrong():
    return Model()


def broken():
    raise RuntimeError("the weights are not here")
'''
SIDES = ((96, 64), (81, 96), (10, 81))


def vectors(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)


def answers(layers: tuple[Layer, ...], x: Array, parts: Mapping[str, Replacement] | None = None) -> Array:
    """What the model comes to in numpy, with some layers replaced."""
    values = x.astype(np.float64)
    for number, layer in enumerate(layers):
        matrix, bias = layer.weight, layer.bias
        if parts and layer.name in parts:
            part = parts[layer.name]
            matrix, bias = part.tensors.get("base", 0) + part.A @ part.B, part.bias
        assert bias is not None
        values = (np.maximum(values, 0) if number else values) @ matrix.T.astype(np.float64) + bias
    return values.astype(np.float32)


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny_mlp.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def opened(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The recipe, with its exports in a folder of its own: `files` and `program`."""
    return open_model(f"{recipe_file}:recipe", tmp_path_factory.mktemp("work"), FORMATS)


def content_of(model: Model) -> object:
    """What must not change of a model in memory."""
    if model.native == "tflite":
        return model.content.content, model.content.source
    return to_bytes(model.content) if model.native == "onnx" else program_digest(model.content.module)
