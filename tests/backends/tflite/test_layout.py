"""Channels last: what stands between two convolutions costs no transpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.read import operators
from edgepack.backends.tflite.runtime import load
from edgepack.sources.torch import export_program, save_program


def test_only_inputs_and_outputs_are_transposed(emitter: TfliteEmitter, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ELU(), nn.ConstantPad2d((0, 1, 2, 3), 0.5), nn.Conv2d(8, 6, 3, stride=2)),
        *(nn.ReLU(), nn.ZeroPad2d((1, 0, 1, 0)), nn.MaxPool2d(2), nn.ReflectionPad2d(1), nn.Conv2d(6, 5, 1)),
    ).eval()
    x = torch.randn(1, 3, 16, 12)
    save_program(export_program(model, (x,)), tmp_path / "m.pt2")
    loaded = emitter.load_program(tmp_path / "m.pt2")
    emitter.emit(tmp_path / "m.tflite")
    assert operators(tmp_path / "m.tflite").count("TRANSPOSE") == 2
    (answer,) = load(tmp_path / "m.tflite", threads=1).run({loaded.inputs[0]: x.numpy()})
    np.testing.assert_allclose(answer, model(x).detach().numpy(), atol=1e-5)
