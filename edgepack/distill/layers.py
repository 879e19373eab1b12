"""The door to distillation: factors in, better factors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.distill.distil import Distilled, Training, distil
from edgepack.distill.fake import Rounding
from edgepack.distill.student import NO_ROUNDING, build_student
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.torchgraph import LayerKey, flat_module
from edgepack.workspace import Progress, silent

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def distill_factors(
    program: ExportedProgram,
    layers: Sequence[Layer | LayerKey],
    factors: Mapping[str, Replacement],
    inputs: Mapping[str, Array],
    roundings: Mapping[str, Rounding] = NO_ROUNDING,
    *,
    training: Training,
    progress: Progress = silent,
) -> Distilled:
    """Train the factors of a model against its own dense answers on calibration inputs.

    Args:
        program: the dense program: of a torch source its own, of an ONNX source the one that it becomes. Layers are
            found in it by their weights. It is not changed.
        layers: all linear layers of the model.
        factors: by layer name; layers that the program does not have come back as they are.
        inputs: calibration samples, by input name or in the order of the program's inputs.
        roundings: how the file will round them, by layer name; training rounds alike.
        training: how, and how long.
        progress: told of each look at the held-out samples.

    Returns:
        The factors of all layers with the same ranks, and how they came about. On the held-out samples they are never
        worse than what was given.

    Raises:
        ModelError: no factored layer is in the program, or it cannot be run or differentiated.
        DataError: the inputs do not fit the program, are too few, or the checkpoint is of another run.
        OutputError: the checkpoint cannot be written.
    """
    if not factors:
        return Distilled({}, ())
    student = build_student(flat_module(program), layers, factors, roundings)
    distilled = distil(student, inputs, training, progress=progress)
    merged = {name: distilled.factors.get(name, pair) for name, pair in factors.items()}
    return replace(distilled, factors=merged)
