"""Pairs trained against the original model's answers on the calibration samples, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from accuracy.pairs import weighted
from accuracy.study import LARGEST, SEED, Study
from edgepack.data import example
from edgepack.quantize.gauge import balanced
from edgepack.recover import Epochs, recover_factors
from edgepack.types import Array, Factors

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def recovered(study: Study, ranks: Mapping[str, int], epochs: int) -> Mapping[str, Factors]:
    """The whitened pairs of these ranks after training; part of the calibration samples is held out for it."""
    start = {
        name: balanced(weighted(study, name, rank, "fp32"), study.seen[name], seed=SEED) for name, rank in ranks.items()
    }
    inputs = {name: moved(images, study.subject.moved) for name, images in study.calibration.inputs.items()}
    found = recover_factors(
        *(_program(study), list(study.layers.values()), start, inputs),
        classes=study.subject.classes,
        budget=Epochs(epochs),
        seed=SEED,
        largest=LARGEST,
        threads=1,
    )
    return found.factors


def moved(images: Array, times: int) -> Array:
    """Inputs (N, …) and so many further copies: images of 28×28 pixels, each moved by up to two pixels each way."""
    rng = np.random.default_rng(SEED)
    copies = [images]
    for _ in range(times):
        steps = rng.integers(-2, 3, (len(images), 2))
        turned = [np.roll(one.reshape(28, 28), step, (0, 1)) for one, step in zip(images, steps, strict=True)]
        copies.append(np.stack(turned).reshape(images.shape))
    return np.concatenate(copies)


def _program(study: Study) -> ExportedProgram:
    """The model in torch: what it was exported from, or what an ONNX file is imported as."""
    from edgepack.emit.pnnx import onnx_to_program
    from edgepack.sources.torch import load_pt2

    if study.opened.program_path is not None:
        return load_pt2(study.opened.program_path)
    feed = example(study.calibration, study.opened.inputs, SEED)
    return onnx_to_program(study.opened.onnx_path, {name: array.shape for name, array in feed.items()})
