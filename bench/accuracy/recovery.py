"""Pairs trained against the original model's answers on the calibration samples, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from accuracy.pairs import weighted
from accuracy.study import LARGEST, SEED, Study
from edgepack.backends.onnx.schemes import FP32
from edgepack.data import example
from edgepack.model.replacement import Replacement
from edgepack.quantize.gauge import balanced
from edgepack.recover import Epochs, recover_factors

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def recovered(study: Study, ranks: Mapping[str, int], epochs: int) -> Mapping[str, Replacement]:
    """The whitened pairs of these ranks after training; part of the calibration samples is held out for it."""
    start = {
        name: balanced(weighted(study, name, rank, FP32), study.seen[name], seed=SEED) for name, rank in ranks.items()
    }
    found = recover_factors(
        *(_program(study), study.opened.layers, start, study.calibration.inputs),
        classes=study.subject.classes,
        budget=Epochs(epochs),
        seed=SEED,
        largest=LARGEST,
        threads=1,
    )
    return found.factors


def _program(study: Study) -> ExportedProgram:
    """The model in torch: what it was exported from, or what an ONNX file is imported as."""
    from edgepack.emit.pnnx import onnx_to_program
    from edgepack.sources.torch import load_pt2

    if study.opened.program_path is not None:
        return load_pt2(study.opened.program_path)
    feed = example(study.calibration, study.opened.inputs, SEED)
    return onnx_to_program(study.opened.onnx_path, {name: array.shape for name, array in feed.items()})
