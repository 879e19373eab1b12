"""Batches of converted files are resized where operators allow it, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.tflite.batch import open_batch
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.runtime import interpreter, session, signature
from edgepack.model.types import Array
from edgepack.sources.torch import export_program, save_program
from tests.backends.tflite.tflite_cases import MODELS

BATCH = 5


class Sentences(nn.Module):
    """Token numbers and mask → one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.layer(self.table(tokens), src_key_padding_mask=mask == 0)
        shares = mask[..., None].float()
        return (states * shares).sum(1) / shares.sum(1)


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.head = nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Linear(72, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(self.pool(torch.relu(self.stem(image))).flatten(1)), -1)


class Steps(nn.Module):
    """Recurrent layers, of which all outputs or the last one alone are taken."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], layers: int = 1, *, last: bool = False) -> None:
        super().__init__()
        self.cells, self.last = kind(8, 16, layers, batch_first=True), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cells(x)[0]
        return y[:, -1] if self.last else y


class StepsFirst(nn.Module):
    """The same as ONNX has it."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cells = kind(8, 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.cells(x.swapaxes(0, 1))[0]
        return y.swapaxes(0, 1), y[-1]


class LastOfSteps(nn.Module):
    """What is made of the last step alone, which has no axis of its own there."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], *, both: bool = False) -> None:
        super().__init__()
        self.cells, self.head = kind(8, 16, bidirectional=both), nn.Linear(32 if both else 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(x.swapaxes(0, 1))[0][-1])


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cells(x, state)


class First(nn.Module):
    def forward(self, results: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return results[0]


def converted(
    emitter: TfliteEmitter, model: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path
) -> dict[str, Array]:
    """Inputs of the file, by name."""
    save_program(export_program(model, inputs), path.with_suffix(".pt2"))
    emitter.load_program(path.with_suffix(".pt2"))
    emitter.emit(path)
    return dict(zip(signature(path)[1], (each.numpy() for each in inputs), strict=True))


def several(path: Path, batch: dict[str, Array]) -> list[Array]:
    """Answers of the first signature's runner, resized."""
    made = interpreter(path)
    names = made.get_signature_runner().get_input_details()
    for name, array in batch.items():
        made.resize_tensor_input(names[name]["index"], array.shape, strict=True)
    made.allocate_tensors()
    return session(made).run(batch)


def tokens(rows: int) -> tuple[torch.Tensor, ...]:
    mask = torch.ones(rows, 7, dtype=torch.long)
    mask[:, 5:] = 0
    return torch.randint(0, 50, (rows, 7)), mask


CASES = {
    "mlp": (MODELS["mlp"][0], lambda rows: (torch.randn(rows, 784),)),
    "encoder": (MODELS["encoder"][0], lambda rows: (torch.randn(rows, 6, 32),)),
    "attention": (MODELS["attention"][0], lambda rows: tuple(torch.randn(rows, n, 32) for n in (4, 3, 3))),
    "pictures": (Pictures, lambda rows: (torch.randn(rows, 3, 8, 8),)),
    "sentences": (Sentences, tokens),
    "lstm": (lambda: Steps(nn.LSTM), lambda rows: (torch.randn(rows, 6, 8),)),
    "lstms": (lambda: Steps(nn.LSTM, 2, last=True), lambda rows: (torch.randn(rows, 6, 8),)),
    "lstm of steps": (lambda: StepsFirst(nn.LSTM), lambda rows: (torch.randn(rows, 6, 8),)),
    "gru of steps": (lambda: StepsFirst(nn.GRU), lambda rows: (torch.randn(rows, 37, 8),)),
    "last of steps, lstm": (lambda: LastOfSteps(nn.LSTM, both=True), lambda rows: (torch.randn(rows, 6, 8),)),
    "last of steps, gru": (lambda: LastOfSteps(nn.GRU), lambda rows: (torch.randn(rows, 6, 8),)),
    "gru": (lambda: Steps(nn.GRU), lambda rows: (torch.randn(rows, 6, 8),)),
    "grus": (lambda: Steps(nn.GRU, 2, last=True), lambda rows: (torch.randn(rows, 37, 8),)),
}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_another_size_answers_as_torch_does(
    emitter: TfliteEmitter, tmp_path: Path, name: str, size: int
) -> None:
    torch.manual_seed(0)
    make, draw = CASES[name]
    model, path = make().eval(), tmp_path / "m.tflite"
    feed = converted(emitter, model, draw(size), path)
    before = session(interpreter(path)).run(feed)
    assert open_batch(path, [*feed], feed) is None
    for have, want in zip(session(interpreter(path)).run(feed), before, strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5)
    batch = draw(BATCH)
    with torch.no_grad():
        result = model(*batch)
    wanted = result if isinstance(result, tuple) else (result,)
    answers = several(path, dict(zip(feed, (each.numpy() for each in batch), strict=True)))
    for have, want in zip(answers, wanted, strict=True):
        np.testing.assert_allclose(have, want.numpy(), atol=2e-5)
    details = interpreter(path).get_input_details()
    assert {int(each["shape_signature"][0]) for each in details} == {-1}
    assert {int(each["shape"][0]) for each in details} == {size}


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (nn.Sequential(nn.LSTM(8, 16, batch_first=True, bidirectional=True), First()), (1, 6, 8), "works across it"),
        (nn.ConvTranspose2d(3, 4, 2, 2), (1, 3, 4, 4), "TRANSPOSE_CONV needs it as a number"),
    ],
)
def test_what_cannot_be_resized_stays_as_it_is(
    emitter: TfliteEmitter, tmp_path: Path, model: nn.Module, shape: tuple[int, ...], said: str
) -> None:
    path = tmp_path / "m.tflite"
    feed = converted(emitter, model.eval(), (torch.randn(shape),), path)
    before = path.read_bytes()
    reason = open_batch(path, [*feed], feed)
    assert reason is not None
    assert said in reason
    assert path.read_bytes() == before


def test_states_that_come_in_keep_their_batch(emitter: TfliteEmitter, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    feed = converted(emitter, Stream(), (torch.randn(1, 6, 8), torch.zeros(1, 1, 16)), path)
    before = path.read_bytes()
    assert open_batch(path, [next(iter(feed))], feed) == "WHILE begins with what is computed for one batch"
    assert path.read_bytes() == before
