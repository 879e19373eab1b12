"""ONNX and ONNX Runtime as a backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from edgepack.backends.backend import Backend, Session, WriterData
from edgepack.backends.onnx.blank import write_blank
from edgepack.backends.onnx.facts import FACTS
from edgepack.backends.onnx.layer_file import ONNX_LAYER, OnnxLayer, onnx_layers
from edgepack.backends.onnx.runtime import load
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.operators import Operator
from edgepack.backends.segments import LayerShape, Segment
from edgepack.model.model import Model
from edgepack.model.point import Point
from edgepack.model.structure import Op
from edgepack.model.types import Array
from edgepack.workspace import FileStep, Workspace


class OnnxBackend:
    """See `Backend`. A model in memory is an `onnx_ir.Model`."""

    facts = FACTS

    def engine(self) -> AbstractContextManager[None]:
        """Nothing is worth starting early."""
        return nullcontext()

    def open(self, model: Model, data: WriterData, engine: None, workspace: Workspace) -> OnnxWriter:
        """See `Backend.open`."""
        return OnnxWriter(model.content, data.calibration, qmax=data.qmax, warn=workspace.warn, given=model.given)

    def load(self, path: Path, *, threads: int = 1, exact: bool = True) -> Session:
        """See `Backend.load`."""
        return load(path, threads=threads, exact=exact)

    def blank(self, path: Path) -> None:
        """See `Backend.blank`."""
        write_blank(path)

    @property
    def one_op(self) -> FileStep[OnnxLayer]:
        """See `Backend.one_op`."""
        return ONNX_LAYER

    def one_ops(self, points: Sequence[Point]) -> Iterator[OnnxLayer]:
        """See `Backend.one_ops`."""
        return onnx_layers(points)

    def take_channels_last(self, path: Path) -> tuple[str, ...]:
        """See `Backend.take_channels_last`: operators of ONNX take channels first."""
        return ()

    def convolutions(self, path: Path) -> tuple[Op, ...]:
        """See `Backend.convolutions`."""
        from edgepack.backends.onnx.convolutions import convolutions

        return convolutions(path)

    def operators(self, path: Path, feed: Mapping[str, Array], *, timed: bool, unsigned: bool) -> tuple[Operator, ...]:
        """See `Backend.operators`."""
        from edgepack.backends.onnx.operators import operators

        return operators(path, feed, timed=timed, unsigned=unsigned)

    def layer_values(self, path: Path, layers: Sequence[LayerShape]) -> Mapping[str, tuple[str, ...]]:
        """See `Backend.layer_values`."""
        from edgepack.backends.onnx.split import layer_values

        return layer_values(path, layers)

    def split(self, path: Path, layers: Sequence[LayerShape], folder: Path, *, unsigned: bool) -> Sequence[Segment]:
        """See `Backend.split`."""
        from edgepack.backends.onnx.split import split_onnx

        return split_onnx(path, layers, folder, unsigned=unsigned)


BACKEND: Backend = OnnxBackend()
"""What the registry looks for."""
