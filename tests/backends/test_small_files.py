"""What files in 8 bits hold beside the weights of the layers: scales, biases, names and tables are few bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.backend import Writer, WriterData
from edgepack.backends.registry import FORMATS, backend
from edgepack.backends.runtime import predict
from edgepack.backends.schemes import DENSE_INT8
from edgepack.data import Samples
from edgepack.factorize import whitened
from edgepack.metrics.values import sqnr_db
from edgepack.model.layer import View
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.structure import low_rank as low_rank_of
from edgepack.model.types import Array, InputSpread, Moments
from edgepack.pipeline.rounding import Rounder
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace
from tests.contracts.conftest import answers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

IN, RANK = 784, 40
OVERHEAD = 0.08
RECIPE = '''
import torch
from torch import nn
from edgepack.model.types import Recipe


def recipe():
    """The shapes of the MNIST model, untrained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
    return Recipe(model, (torch.zeros(1, 784),))
'''


def images(count: int, seed: int) -> Array:
    """As correlated as images of digits are: most of what varies lies in a few dozen directions."""
    mixing = np.random.default_rng(0).standard_normal((IN, IN)) * np.geomspace(1, 1e-3, IN)[:, None] / 30
    return (np.random.default_rng(seed).standard_normal((count, IN)) @ mixing).astype(np.float32)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("small")
    (folder / "mlp.py").write_text(RECIPE)
    return open_model(f"{folder / 'mlp.py'}:recipe", folder, FORMATS)


@pytest.fixture(scope="module")
def files(opened: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Format, Writer]]:
    (name,) = (spec.name for spec in opened.inputs)
    data = WriterData(Samples({name: images(64, 1)}), {name: images(1, 1)}, 127)
    folder = tmp_path_factory.mktemp("files")
    with ExitStack() as stack:
        engines = {fmt: stack.enter_context(backend(fmt).engine()) for fmt in FORMATS}
        workspace = Workspace(Cache(folder / "cache"), folder)
        yield {fmt: backend(fmt).open(opened, data, engines[fmt], workspace) for fmt in FORMATS}


@pytest.fixture(scope="module")
def rounder(tmp_path_factory: pytest.TempPathFactory) -> Rounder:
    folder = tmp_path_factory.mktemp("rounder")
    return Rounder(Seen(), "whitened", 127, {}, Workspace(Cache(folder), folder))


class Seen:
    """Moments of the images."""

    key = "images"

    def of(self, name: str) -> Moments:
        x = images(2000, 2).astype(np.float64)
        row_range = float(np.ptp(x, axis=1).mean())
        return Moments(len(x), x.mean(axis=0), x.T @ x / len(x), float(x.min()), float(x.max()), row_range)


def factors(opened: Model, rounder: Rounder, scheme: Scheme) -> dict[str, Replacement]:
    """The first layer's, as a build makes them."""
    layer, seen = opened.layers[0], Seen().of("")
    view = View(layer.name, layer.weight, layer.bias, seen)
    inputs = InputSpread(seen.variance, seen.low, seen.high, seen.row_range)
    spectrum = replace(whitened.spectrum(view), inputs=inputs)
    return {layer.name: rounder.factors(view, spectrum, low_rank_of(RANK), scheme)}


INT8 = [scheme for fmt in FORMATS for scheme in DENSE_INT8[fmt]]


@pytest.mark.parametrize("scheme", INT8, ids=lambda scheme: scheme.key)
def test_little_beside_the_weights(
    scheme: Scheme, opened: Model, files: dict[Format, Writer], rounder: Rounder, tmp_path: Path
) -> None:
    writer, parts, path = files[scheme.backend], factors(opened, rounder, scheme), tmp_path / "m"
    writer.write(parts, FileScheme.of(scheme), path)
    payload = sum(a * b * bits // 8 for a, b, bits in writer.read(path).weights)
    assert payload == RANK * (IN + 512) + 512 * 10
    overhead = path.stat().st_size / payload - 1
    assert 0 < overhead <= OVERHEAD, f"{overhead:.1%} of {payload} bytes"
    (name,) = (spec.name for spec in opened.inputs)
    x = images(32, 3)
    found = predict(backend(scheme.backend).load(path), Samples({name: x}))
    assert sqnr_db(found, answers(opened.layers, x, parts)) > 25
