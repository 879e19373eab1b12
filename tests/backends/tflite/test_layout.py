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


class AlongTime(nn.Module):
    """As TensorFlow has it: an image of height 1, whose height goes before the bias is added."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(6, 8, (1, width), bias=False) for width in (2, 3))
        self.shift = nn.Parameter(torch.randn(8, 1))
        self.heads = nn.ModuleList(nn.Linear(8, 5) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image, results = x.unsqueeze(1).permute(0, 3, 1, 2), []
        for convolution, head in zip(self.convolutions, self.heads, strict=True):
            steps = torch.relu(convolution(image).squeeze(2) + self.shift).permute(0, 2, 1)
            results.append(head(steps).sum(1))
        return torch.cat(results, 1)


def test_convolutions_along_time_have_no_transpose(emitter: TfliteEmitter, tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = converted_alike(emitter, AlongTime().eval(), torch.randn(1, 12, 6), tmp_path)
    assert names.count("CONV_2D") == 2
    assert "TRANSPOSE" not in names


def test_a_transposition_that_more_than_one_reads_stays(emitter: TfliteEmitter, tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.stem(x))
            return y + y.permute(0, 1, 3, 2)

    torch.manual_seed(0)
    converted_alike(emitter, Both().eval(), torch.randn(1, 3, 5, 5), tmp_path)
