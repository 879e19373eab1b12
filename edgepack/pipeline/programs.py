"""A model as torch can run it: the program that it came with, or one that its ONNX graph is converted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgepack.backends.registry import TOOLS
from edgepack.data import Samples, example, first_runs
from edgepack.errors import ModelError
from edgepack.model.model import Model
from edgepack.model.types import Array
from edgepack.workspace import FileStep, Keyed, Workspace


def with_program(opened: Model, samples: Samples, workspace: Workspace) -> Model:
    """The model with a torch program that is proved to answer like it; a conversion is kept in the cache.

    Args:
        samples: of its inputs, for the shapes and the comparison.
        workspace: whose folder the program of an ONNX source is put into.

    Raises:
        ModelError: it cannot be converted.
    """
    if opened.program is not None:
        return opened
    if "onnx" not in opened.files:
        raise ModelError(f"torch cannot run a {' or '.join(opened.files) or opened.kind} model")
    shapes = {name: list(array.shape) for name, array in example(samples, opened.inputs, workspace.seed).items()}

    def conversion() -> _Conversion:
        return _Conversion(opened.files["onnx"], shapes, first_runs(samples, opened.inputs))

    task = Keyed([opened.sha256, shapes], conversion)
    return replace(opened, program=workspace.file(PROGRAM, task, workspace.folder / "program.pt2"))


@dataclass(frozen=True)
class _Conversion:
    onnx: Path
    shapes: Mapping[str, list[int]]
    samples: Sequence[Mapping[str, Array]]


def _convert(task: _Conversion, path: Path) -> None:
    from edgepack.sources.torch import save_program
    from edgepack.torchgraph.from_onnx import onnx_to_program

    save_program(onnx_to_program(task.onnx, task.shapes, task.samples), path)


PROGRAM: FileStep[_Conversion] = FileStep("programs", 5, _convert, ".pt2", TOOLS)
