"""Channels last: what stands between two convolutions costs no transpose."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgepack.backends.tflite.converter import TfliteEmitter
from tests.backends.tflite.tflite_cases import converted_alike


def test_only_inputs_and_outputs_are_transposed(emitter: TfliteEmitter, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ELU(), nn.ConstantPad2d((0, 1, 2, 3), 0.5), nn.Conv2d(8, 6, 3, stride=2)),
        *(nn.ReLU(), nn.ZeroPad2d((1, 0, 1, 0)), nn.MaxPool2d(2), nn.ReflectionPad2d(1), nn.Conv2d(6, 5, 1)),
    ).eval()
    x = torch.randn(1, 3, 16, 12)
    assert converted_alike(emitter, model, x, tmp_path).count("TRANSPOSE") == 2
