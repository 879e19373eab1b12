"""Pairs trained against the original model's answers on the calibration samples, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from accuracy.pairs import weighted
from accuracy.study import LARGEST, SEED, Study
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC
from edgepack.data import example
from edgepack.distill import Epochs, distill_factors, rounding_of
from edgepack.distill.distil import Training
from edgepack.model.replacement import Replacement
from edgepack.quantize.rotation import balanced

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def distilled(study: Study, ranks: Mapping[str, int], epochs: int) -> Mapping[str, Replacement]:
    """The whitened pairs of these ranks after training; part of the calibration samples is held out for it."""
    start = {
        name: balanced(weighted(study, name, rank, FP32), study.seen[name], seed=SEED) for name, rank in ranks.items()
    }
    training = Training(study.subject.classes, Epochs(epochs), SEED, threads=1)
    roundings = {name: rounding_of(INT8_DYNAMIC, pair, qmax=LARGEST) for name, pair in start.items()}
    inputs, layers = study.calibration.inputs, study.opened.layers
    found = distill_factors(_program(study), layers, start, inputs, roundings, training=training)
    return found.factors


def _program(study: Study) -> ExportedProgram:
    """The model in torch: what it was exported from, or what an ONNX file is imported as."""
    from edgepack.sources.torch import load_pt2
    from edgepack.torchgraph.from_onnx import onnx_to_program

    if study.opened.program is not None:
        return load_pt2(study.opened.program)
    feed = example(study.calibration, study.opened.inputs, SEED)
    return onnx_to_program(study.opened.files["onnx"], {name: array.shape for name, array in feed.items()})
