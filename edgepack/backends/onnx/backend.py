"""ONNX and ONNX Runtime as a backend."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.backends.backend import Backend, Session, WriterData
from edgepack.backends.onnx.blank import write_blank
from edgepack.backends.onnx.facts import FACTS
from edgepack.backends.onnx.layer_file import ONNX_LAYER, OnnxLayer, onnx_layers
from edgepack.backends.onnx.observation import OnnxObservation
from edgepack.backends.onnx.runtime import load
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.segments import LayerShape, Segment
from edgepack.model.model import Model
from edgepack.model.point import Point
from edgepack.model.replacement import Replacement
from edgepack.workspace import FileStep, Workspace

if TYPE_CHECKING:
    import onnx_ir as ir


class OnnxBackend:
    """See `Backend`. A model in memory is an `onnx_ir.Model`."""

    facts = FACTS

    def engine(self) -> AbstractContextManager[None]:
        """Nothing is worth starting early."""
        return nullcontext()

    def open(self, model: Model, data: WriterData, engine: None, workspace: Workspace) -> OnnxWriter:
        """See `Backend.open`."""
        return OnnxWriter(model.content, data.calibration, largest=data.largest, warn=workspace.warn)

    def load(self, path: Path, *, threads: int = 1, exact: bool = True) -> Session:
        """See `Backend.load`."""
        return load(path, threads=threads, exact=exact)

    def observe(self, model: ir.Model, layers: Iterable[str], *, threads: int) -> OnnxObservation:
        """See `Backend.observe`."""
        return OnnxObservation(model, layers, threads=threads)

    def depths(self, model: ir.Model, layers: Collection[str]) -> Mapping[str, int]:
        """See `Backend.depths`."""
        from edgepack.backends.onnx.depth import depths

        return depths(model, layers)

    def with_factors(
        self, model: ir.Model, factors: Mapping[str, Replacement]
    ) -> tuple[ir.Model, Mapping[str, tuple[str, ...]]]:
        """See `Backend.with_factors`."""
        from edgepack.backends.onnx.rewrite import names_after, with_factors

        made = with_factors(model, factors)
        return made, names_after(model, made, factors)

    def weight_bytes(self, model: ir.Model) -> int:
        """See `Backend.weight_bytes`."""
        from edgepack.backends.onnx.tensors import weight_bytes

        return weight_bytes(model)

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

    def split(self, path: Path, layers: Sequence[LayerShape], folder: Path, *, unsigned: bool) -> Sequence[Segment]:
        """See `Backend.split`."""
        from edgepack.backends.onnx.split import split_onnx

        return split_onnx(path, layers, folder, unsigned=unsigned)


BACKEND: Backend = OnnxBackend()
"""What the registry looks for."""
