from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch
from lstm_classifier import HIDDEN, PIXELS, STEPS, Cell, Classifier

from edgepack.backends.onnx.sites import find_sites
from edgepack.sources.torch import export_program, program_to_onnx


def test_the_cell_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours, theirs = Cell(PIXELS, HIDDEN), torch.nn.LSTMCell(PIXELS, HIDDEN)
    take, keep, show, new = torch.arange(4 * HIDDEN).chunk(4)
    order = torch.cat([take, keep, new, show])  # torch keeps its gates as input, forget, cell, output
    with torch.no_grad():
        theirs.weight_ih.copy_(ours.input.weight[order])
        theirs.weight_hh.copy_(ours.recurrent.weight[order])
        theirs.bias_ih.copy_(ours.input.bias[order])
        theirs.bias_hh.zero_()
        x, state, memory = torch.randn(3, PIXELS), torch.randn(3, HIDDEN), torch.randn(3, HIDDEN)
        torch.testing.assert_close(ours(x, state, memory), theirs(x, (state, memory)))


def test_every_gate_matrix_is_one_layer_used_at_every_step(tmp_path: Path) -> None:
    program_to_onnx(export_program(Classifier().eval(), (torch.zeros(1, STEPS, PIXELS),)), tmp_path / "lstm.onnx")
    uses = {site.layer.name: site.layer.uses for site in find_sites(ir.load(tmp_path / "lstm.onnx"))}
    # The first step has no state yet.
    assert uses == {
        "lower.input.weight": STEPS,
        "lower.recurrent.weight": STEPS - 1,
        "upper.input.weight": STEPS,
        "upper.recurrent.weight": STEPS - 1,
        "head.weight": 1,
    }
