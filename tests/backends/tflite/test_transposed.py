"""Transposed convolutions whose pads are not those of LiteRT's operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.read import operators
from edgepack.backends.tflite.runtime import load
from edgepack.sources.torch import export_program, save_program


def test_what_the_operator_lacks_is_cut_from_the_whole(emitter: TfliteEmitter, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1), nn.Unflatten(1, (2, 3))),
        *(nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 4, (3, 4), (3, 2), (1, 2)), nn.ConvTranspose2d(4, 2, 4, 2, 1)),
    ).eval()
    x = torch.randn(1, 4, 5)
    save_program(export_program(model, (x,)), tmp_path / "m.pt2")
    loaded = emitter.load_program(tmp_path / "m.pt2")
    emitter.emit(tmp_path / "m.tflite")
    assert operators(tmp_path / "m.tflite").count("TRANSPOSE_CONV") == 4
    (answer,) = load(tmp_path / "m.tflite", threads=1).run({loaded.inputs[0]: x.numpy()})
    np.testing.assert_allclose(answer, model(x).detach().numpy(), atol=1e-5)
