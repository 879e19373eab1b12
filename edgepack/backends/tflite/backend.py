"""TFLite and LiteRT as a backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.backends.backend import Backend, Session, WriterData
from edgepack.backends.operators import Operator
from edgepack.backends.segments import LayerShape, Segment
from edgepack.backends.tflite.blank import write_blank
from edgepack.backends.tflite.facts import FACTS
from edgepack.backends.tflite.layer_file import TFLITE_LAYER, TfliteLayer, tflite_layers
from edgepack.backends.tflite.runtime import load
from edgepack.model.model import Model
from edgepack.model.point import Point
from edgepack.model.structure import Op
from edgepack.model.types import Array
from edgepack.workspace import FileStep, Workspace

if TYPE_CHECKING:
    from edgepack.backends.tflite.converter import TfliteEmitter
    from edgepack.backends.tflite.writer import TfliteWriter


class TfliteBackend:
    """See `Backend`. A model in memory is an `edgepack.backends.tflite.sites.TfliteModel`."""

    facts = FACTS

    @contextmanager
    def engine(self) -> Iterator[TfliteEmitter]:
        """A converter process that starts at once and imports meanwhile."""
        from edgepack.backends.tflite.converter import TfliteEmitter

        with TfliteEmitter() as converter:
            converter.warm_up()
            yield converter

    def open(self, model: Model, data: WriterData, engine: TfliteEmitter | None, workspace: Workspace) -> TfliteWriter:
        """See `Backend.open`; a model that is a TFLite file takes no engine."""
        from edgepack.backends.tflite.writer import TfliteWriter

        return TfliteWriter(engine, model, data, workspace)

    def load(self, path: Path, *, threads: int = 1, exact: bool = True) -> Session:
        """See `Backend.load`; LiteRT's integer sums never saturate."""
        return load(path, threads=threads)

    def blank(self, path: Path) -> None:
        """See `Backend.blank`."""
        write_blank(path)

    @property
    def one_op(self) -> FileStep[TfliteLayer]:
        """See `Backend.one_op`."""
        return TFLITE_LAYER

    def one_ops(self, points: Sequence[Point]) -> Iterator[TfliteLayer]:
        """See `Backend.one_ops`."""
        return tflite_layers(points)

    def take_channels_last(self, path: Path) -> tuple[str, ...]:
        """See `Backend.take_channels_last`."""
        from edgepack.backends.tflite.channels_last import take_channels_last

        return take_channels_last(path)

    def convolutions(self, path: Path) -> tuple[Op, ...]:
        """See `Backend.convolutions`."""
        from edgepack.backends.tflite.convolutions import convolutions

        return convolutions(path)

    def operators(self, path: Path, feed: Mapping[str, Array], *, timed: bool, unsigned: bool) -> tuple[Operator, ...]:
        """See `Backend.operators`; the file says by itself what is unsigned."""
        from edgepack.backends.tflite.operators import operators

        return operators(path, feed, timed=timed)

    def layer_values(self, path: Path, layers: Sequence[LayerShape]) -> Mapping[str, tuple[str, ...]]:
        """See `Backend.layer_values`."""
        from edgepack.backends.tflite.split import layer_values

        return layer_values(path, layers)

    def split(self, path: Path, layers: Sequence[LayerShape], folder: Path, *, unsigned: bool) -> Sequence[Segment]:
        """See `Backend.split`; LiteRT has kernels for signed weights everywhere."""
        from edgepack.backends.tflite.split import split_tflite

        return split_tflite(path, layers, folder)


BACKEND: Backend = TfliteBackend()
"""What the registry looks for."""
