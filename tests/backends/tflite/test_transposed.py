"""Transposed convolutions whose pads are not those of LiteRT's operator."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgepack.backends.tflite.converter import TfliteEmitter
from tests.backends.tflite.tflite_cases import converted_alike


def test_what_the_operator_lacks_is_cut_from_the_whole(emitter: TfliteEmitter, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1), nn.Unflatten(1, (2, 3))),
        *(nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 4, (3, 4), (3, 2), (1, 2)), nn.ConvTranspose2d(4, 2, 4, 2, 1)),
    ).eval()
    x = torch.randn(1, 4, 5)
    assert converted_alike(emitter, model, x, tmp_path).count("TRANSPOSE_CONV") == 4
