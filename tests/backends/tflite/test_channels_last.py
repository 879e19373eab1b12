"""Files that take images with their channels last have no transpose at their start, and answer alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgepack.backends.tflite.channels_last import take_channels_last
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.read import operators
from edgepack.backends.tflite.runtime import load
from edgepack.backends.tflite.schemes import FP32, INT8_DYNAMIC, INT8_STATIC
from edgepack.sources.torch import export_program, save_program


def converted(emitter: TfliteEmitter, model: nn.Module, x: torch.Tensor, path: Path) -> str:
    """Name of the file's input."""
    save_program(export_program(model.eval(), (x,)), path.with_suffix(".pt2"))
    (name,) = emitter.load_program(path.with_suffix(".pt2")).inputs
    emitter.emit(path)
    return name


def test_the_input_has_the_order_of_the_first_convolution(emitter: TfliteEmitter, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 12, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(480, 5))
    name = converted(emitter, model, x, tmp_path / "source.tflite")
    samples = {name: np.random.default_rng(0).standard_normal((8, *x.shape)).astype(np.float32)}
    for scheme in (FP32, INT8_DYNAMIC, INT8_STATIC):
        path = tmp_path / f"{scheme.name}.tflite"
        if scheme == FP32:
            path.write_bytes((tmp_path / "source.tflite").read_bytes())
        else:
            emitter.quantize(tmp_path / "source.tflite", path, scheme, samples if scheme == INT8_STATIC else None)
        before, transposes = load(path, threads=1).run({name: x.numpy()}), operators(path).count("TRANSPOSE")
        assert take_channels_last(path) == (name,)
        assert operators(path).count("TRANSPOSE") == transposes - 1
        made = load(path, threads=1)
        assert made.inputs[0].shape == (1, 12, 8, 3)
        for given in (x.numpy(), np.moveaxis(x.numpy(), 1, 3)):
            np.testing.assert_allclose(made.run({name: given})[0], before[0], atol=1e-5)
        assert take_channels_last(path) == ()


def test_an_input_that_something_else_reads_stays(emitter: TfliteEmitter, tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.stem(x), x.flatten(1)

    for model, x in ((Both(), torch.randn(1, 3, 4, 5)), (nn.Conv2d(3, 2, 1), torch.randn(1, 3, 3, 3))):
        converted(emitter, model, x, tmp_path / "m.tflite")
        before = (tmp_path / "m.tflite").read_bytes()
        assert take_channels_last(tmp_path / "m.tflite") == ()
        assert (tmp_path / "m.tflite").read_bytes() == before
