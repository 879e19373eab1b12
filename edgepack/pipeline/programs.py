"""A model as torch can run it: the program that it came with, or one that its ONNX graph is converted to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgepack.data import Samples, example
from edgepack.pipeline.opened import Opened
from edgepack.workspace import Cache, digest, tool_versions

VERSION = 1


def with_program(opened: Opened, samples: Samples, seed: int, cache: Cache, work: Path) -> Opened:
    """The model with a torch program that is proved to answer like it; a conversion is kept in the cache.

    Args:
        samples: of its inputs, for the shapes.
        work: folder for the program of an ONNX source.

    Raises:
        ModelError: it cannot be converted.
    """
    if opened.program_path is not None:
        return opened
    shapes = {name: list(array.shape) for name, array in example(samples, opened.inputs, seed).items()}

    def convert(path: Path) -> None:
        from edgepack.emit.pnnx import onnx_to_program
        from edgepack.sources.torch import save_program

        save_program(onnx_to_program(opened.onnx_path, shapes), path)

    key = digest("program", VERSION, opened.sha256, shapes, tool_versions())
    return replace(opened, program_path=cache.file("programs", key, ".pt2", convert, work / "program.pt2"))
