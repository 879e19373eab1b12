"""Multiplications are counted alike wherever a model is the truth in, those of what is no layer among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.natives import native
from edgepack.sources import open_model
from edgepack.sources.torch import export_program, program_to_onnx, save_program

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SIDE = 6
POSITIONS = SIDE * SIDE
MACS = POSITIONS * (8 * 3 * 9 + 8 * 9) + 2 * POSITIONS * POSITIONS * 8 + POSITIONS * 8 * 5
"""A 3×3 convolution, a depthwise one, two products of attention over all positions, a linear layer at each."""


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.depthwise(torch.relu(self.conv(x))).flatten(2).transpose(1, 2)
        return self.head(torch.softmax(seen @ seen.transpose(1, 2), -1) @ seen)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, emitter: TfliteEmitter) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("macs")
    program = export_program(Attentive().eval(), (torch.zeros(1, 3, SIDE, SIDE),))
    save_program(program, folder / "model.pt2")
    program_to_onnx(program, folder / "model.onnx")
    emitter.load_program(folder / "model.pt2")
    emitter.emit(folder / "model.tflite")
    return folder


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "tflite"])
def test_every_product_counts(files: Path, tmp_path: Path, suffix: str) -> None:
    model = open_model(str(files / f"model.{suffix}"), tmp_path, ("tflite",) if suffix == "pt2" else ())
    feed = {one.name: np.zeros([side or 1 for side in one.shape], one.dtype) for one in model.inputs}
    assert native(model.native).macs(model.content, feed) == MACS


@pytest.mark.parametrize(("cells", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_steps_of_recurrent_layers_count(
    emitter: TfliteEmitter, tmp_path: Path, cells: type[nn.RNNBase], gates: int
) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = cells(12, 16, batch_first=True, bidirectional=True, num_layers=2)  # type: ignore[call-arg]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0][:, -1]

    program = export_program(Last().eval(), (torch.zeros(1, 7, 12),))
    program_to_onnx(program, tmp_path / "model.onnx")
    save_program(program, tmp_path / "model.pt2")
    emitter.load_program(tmp_path / "model.pt2")
    emitter.emit(tmp_path / "model.tflite")
    for suffix in ("onnx", "pt2", "tflite"):
        model = open_model(str(tmp_path / f"model.{suffix}"), tmp_path, ("tflite",) if suffix == "pt2" else ())
        feed = {model.inputs[0].name: np.zeros((1, 7, 12), np.float32)}
        assert native(model.native).macs(model.content, feed) == 7 * 2 * gates * 16 * ((12 + 16) + (32 + 16))
