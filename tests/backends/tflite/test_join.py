"""Files of several entry points as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.join import join
from edgepack.backends.tflite.quantizer import quantize
from edgepack.backends.tflite.runtime import interpreter, load
from edgepack.backends.tflite.schemes import INT8_DYNAMIC
from edgepack.backends.tflite.tidy import shorten_names
from edgepack.errors import ModelError
from edgepack.sources.torch import export_program, save_program
from tests.backends.tflite.given_files import mlp


class Autoencoder(nn.Module):
    """Two ways in, one matrix in common."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.cells, self.out = nn.Linear(64, 64), nn.GRU(64, 8, batch_first=True), nn.Linear(64, 64)


class Encode(nn.Module):
    """With a loop, so with graphs of its own."""

    def __init__(self, whole: Autoencoder) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole.cells(torch.relu(self.whole.shared(x)))[0]


class Decode(Encode):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole.out(torch.relu(self.whole.shared(x)))


@pytest.fixture
def parts(emitter: TfliteEmitter, tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    whole = Autoencoder().eval()
    found = {}
    for name, model, given in (
        ("decode", Decode(whole), torch.randn(1, 64)),
        ("encode", Encode(whole), torch.randn(1, 37, 64)),
        ("again", Encode(whole), torch.randn(1, 37, 64)),
    ):
        save_program(export_program(model, (given,)), tmp_path / f"{name}.pt2")
        emitter.load_program(tmp_path / f"{name}.pt2")
        found[name] = tmp_path / f"{name}.tflite"
        emitter.emit(found[name])
        shorten_names(found[name])
    return found


@pytest.mark.parametrize("stored", ["floats", "8 bits"])
def test_each_signature_answers_as_its_file_and_shared_weights_stand_there_once(
    parts: dict[str, Path], tmp_path: Path, stored: str
) -> None:
    if stored == "8 bits":
        for path in parts.values():
            quantize(path, path, INT8_DYNAMIC)
    joined = join(parts, tmp_path / "model.tflite")
    assert [(one.name, one.inputs) for one in joined] == [(name, ("x",)) for name in parts]
    made = interpreter(tmp_path / "model.tflite")
    assert {*made.get_signature_list()} == {*parts}
    rng = np.random.default_rng(1)
    for name, shape in (("encode", (1, 37, 64)), ("decode", (1, 64)), ("again", (1, 37, 64))):
        x = rng.standard_normal(shape).astype(np.float32)
        (have,) = made.get_signature_runner(name)(x=x).values()
        (want,) = load(parts[name], threads=1).run({"x": x})
        np.testing.assert_array_equal(have, want)
    size, apart = (tmp_path / "model.tflite").stat().st_size, [parts[name].stat().st_size for name in parts]
    matrix = 64 * 64 * (4 if stored == "floats" else 1)
    assert size < sum(apart) - 2 * matrix


def test_files_without_a_signature_have_their_tensors_names(tmp_path: Path) -> None:
    weights = np.eye(3, dtype=np.float32)
    paths = {
        name: mlp([(weights, np.full(3, at, np.float32))], x="x").save(tmp_path / name) for at, name in enumerate("ab")
    }
    out = tmp_path / "model.tflite"
    join(paths, out)
    made = interpreter(out)
    for at, name in enumerate("ab"):
        (have,) = made.get_signature_runner(name)(x=np.ones((1, 3), np.float32)).values()
        np.testing.assert_array_equal(have, np.full((1, 3), 1 + at, np.float32))
    with pytest.raises(ModelError, match="has the signatures a, b, one was expected"):
        join({"c": out, **paths}, tmp_path / "more.tflite")
    assert not (tmp_path / "more.tflite").exists()
