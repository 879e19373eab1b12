"""What litert-torch is spared is nothing that a program needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgepack.backends.tflite.conversion import needs_preparation


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y[:, 0] = 0
        return y


@pytest.mark.parametrize(
    ("model", "shape", "prepared"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU()), (2, 4), False),
        (nn.Sequential(nn.Conv1d(4, 2, 3), nn.ReLU()), (1, 4, 9), True),
        (nn.AvgPool2d(2), (1, 2, 4, 4), True),
        (InPlace(), (2, 4), True),
    ],
)
def test_programs_with_images_or_writes_are_decomposed_first(
    model: nn.Module, shape: tuple[int, ...], prepared: bool
) -> None:
    program = torch.export.export(model.eval(), (torch.randn(shape),), strict=False)
    assert needs_preparation(program.graph) == prepared
