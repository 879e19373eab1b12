"""A file shrinks by what its parameters promise, and so does what travels: within three points, in both formats.

In int8 this model is so small that its graph and biases are a twentieth of the file. There the promise for the file is
a byte for every parameter that goes; what travels, where names and scales hardly count, keeps the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgepack.archive.archive import pack
from edgepack.backends.backend import Writer, WriterData
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.schemes import DENSE_INT8, FP32
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.writer import TfliteWriter
from edgepack.data import Samples
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import FileScheme, Format
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

RECIPE = """
import torch
from torch import nn
from edgepack.model.types import Recipe

def recipe():
    torch.manual_seed(0)
    sizes = (784, 128, 128, 128, 10)
    layers = [part for pair in zip(sizes, sizes[1:]) for part in (nn.Linear(*pair), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    for part in model[::2]:
        nn.init.normal_(part.weight, std=part.in_features**-0.5)  # like trained weights, which are no uniform noise
    return Recipe(model, (torch.zeros(1, 784),))
"""
PARAMETERS = 784 * 128 + 2 * 128 * 128 + 128 * 10 + 3 * 128 + 10
RANKS: Mapping[float, tuple[int, int]] = {0.434: (60, 39), 0.66: (36, 22)}
"""Share of the parameters that goes → ranks of the first layer and of the two square ones; the last stays dense."""
POINTS = 3.0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("promised")


@pytest.fixture(scope="module")
def opened(work: Path) -> Model:
    (work / "model.py").write_text(RECIPE)
    return open_model(f"{work / 'model.py'}:recipe", work)


@pytest.fixture(scope="module")
def files(work: Path, opened: Model) -> Iterator[Mapping[Format, Writer]]:
    data = Samples({opened.inputs[0].name: np.random.default_rng(0).random((32, 784), np.float32)})
    (work / "plans").mkdir()
    given = WriterData(data, {opened.inputs[0].name: np.zeros((1, 784), np.float32)}, 127)
    with TfliteEmitter() as converter:
        tflite = TfliteWriter(converter, opened, given, Workspace(Cache(work / "cache"), work / "plans"))
        yield {"onnx": OnnxWriter(opened.content, data, qmax=127), "tflite": tflite}


def pairs(opened: Model, share: float) -> dict[str, Replacement]:
    """The layers' factors, and a check that so many parameters go."""
    first, square = RANKS[share]
    made, left = {}, 0
    for layer in opened.layers:
        rank = {784: first, 128: square}[layer.in_features] if layer.out_features == 128 else None
        left += layer.out_features
        if rank is None:
            left += layer.weight.size
            continue
        u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
        root = np.sqrt(s[:rank], dtype=np.float32)
        made[layer.name] = low_rank(u[:, :rank] * root, root[:, None] * v[:rank], layer.bias)
        left += rank * sum(layer.weight.shape)
    assert 1 - left / PARAMETERS == pytest.approx(share, abs=0.001)
    return made


@pytest.mark.parametrize("share", RANKS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("fmt", ["onnx", "tflite"])
def test_bytes_fall_as_parameters_do(
    files: Mapping[Format, Writer], opened: Model, work: Path, fmt: Format, precision: str, share: float
) -> None:
    scheme = FileScheme.of(FP32[fmt] if precision == "fp32" else DENSE_INT8[fmt][0])
    dense, thin = work / f"dense.{precision}.{fmt}", work / f"thin.{precision}.{share}.{fmt}"
    files[fmt].write({}, scheme, dense)
    files[fmt].write(pairs(opened, share), scheme, thin)
    before, after = dense.stat().st_size, thin.stat().st_size
    gone = share if precision == "fp32" else share * PARAMETERS / before
    assert 100 * (1 - after / before) == pytest.approx(100 * gone, abs=POINTS)
    on_the_wire = len(pack(thin.name, thin.read_bytes())) / len(pack(dense.name, dense.read_bytes()))
    assert 100 * (1 - on_the_wire) == pytest.approx(100 * share, abs=POINTS)
