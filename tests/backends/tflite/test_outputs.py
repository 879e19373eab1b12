"""What a torch model takes and gives, by name and in order, in both formats: masks, 64-bit integers, numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.runtime import interpreter, load
from edgepack.sources.torch import export_program, program_to_onnx, save_program

NAMES = ["zeta", "relu", "parts.0", "parts.1", "codes"]


class Tagger(nn.Module):
    """Results in a dict, one under the name that a value inside of the graph has."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(50, 16), nn.BatchNorm1d(16), nn.Linear(16, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, scale: torch.Tensor) -> dict[str, object]:
        rows = self.table(ids).masked_fill(~mask[..., None], 0.0)
        scores = self.head(torch.relu(self.norm(rows.mT).mT))
        return {
            "zeta": scores * scale,
            "relu": scores.argmax(-1),
            "parts": ((scores > 0) & mask[..., None], mask.any(-1)),
            "codes": ids * 2,
        }


def test_results_have_their_keys_and_order_in_both_formats(emitter: TfliteEmitter, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Tagger().eval(), torch.randint(0, 50, (1, 6))
    given = (ids, torch.tensor([[True, False, True, True, False, True]]), torch.tensor(3.0))
    program = export_program(model, given)
    program_to_onnx(program, tmp_path / "m.onnx")
    save_program(program, tmp_path / "m.pt2")
    assert list(emitter.load_program(tmp_path / "m.pt2").outputs) == NAMES
    emitter.emit(tmp_path / "m.tflite")
    with torch.no_grad():
        found = model(*given)
    results = [found["zeta"], found["relu"], *found["parts"], found["codes"]]
    wanted = dict(zip(NAMES, (each.numpy() for each in results), strict=True))

    feed = dict(zip(("ids", "mask", "scale"), (each.numpy() for each in given), strict=True))
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == NAMES
    assert {each.name: each.type for each in session.get_inputs()}["mask"] == "tensor(bool)"
    answers = session.run(None, feed)
    for have, want in zip(answers, wanted.values(), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5)

    for have, want in zip(load(tmp_path / "m.tflite", threads=1).run(feed), wanted.values(), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5)
    runner = interpreter(tmp_path / "m.tflite").get_signature_runner()
    kinds = {name: detail["dtype"] for name, detail in runner.get_input_details().items()}
    assert kinds == {"ids": np.int32, "mask": np.bool_, "scale": np.float32}  # integers of 64 bits have 32 in the file
    by_name = runner(**{name: array.astype(kinds[name]) for name, array in feed.items()})
    assert {*by_name} == {*NAMES}
    for name, want in wanted.items():
        np.testing.assert_allclose(by_name[name], want, atol=1e-5)
