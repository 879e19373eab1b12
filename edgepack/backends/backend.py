"""The role of a file format with its runtimes: one folder each, found through `edgepack.backends.registry`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgepack.backends.facts import Facts
from edgepack.backends.operators import Operator
from edgepack.backends.segments import LayerShape, Segment
from edgepack.backends.tables import EmbeddingTable
from edgepack.data import Samples
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.point import Point
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.structure import Op, Structure
from edgepack.model.types import Array, Contents, TensorSpec, Written
from edgepack.workspace import FileStep, Workspace

THREADS = min(4, os.cpu_count() or 1)
"""Threads for answers and statistics; latency is measured with one."""


@dataclass(frozen=True)
class Session:
    """A loaded model file.

    Attributes:
        run: takes inputs by name, gives outputs in the file's order.
        again: the same for another thread, which runs at the same time; None where only one can.
        numbers: makes of these outputs what they stand for, in float32 where they are codes on a grid.
    """

    inputs: tuple[TensorSpec, ...]
    run: Callable[[Mapping[str, Array]], list[Array]]
    again: Callable[[], Session] | None = None
    numbers: Callable[[Sequence[Array]], list[Array]] = list


class OneOp(Protocol):
    """The file of one point that is to be written."""

    @property
    def point(self) -> Point:
        """What it is of."""


class Writer(Protocol):
    """Writes and reads back the files of one format for one source model."""

    fmt: Format
    calibrated: bool
    qmax: int

    def with_qmax(self, qmax: int) -> Writer:
        """The same with another largest weight code of the schemes that may saturate."""

    def with_others_kept(self) -> Writer:
        """The same that leaves weights beside layers as they were given, whatever the scheme of a file is, but where
        that computes in integers; itself where its files have both ways, see `rest`."""

    def write_others(self, out: Path) -> bool:
        """Write the model with weights beside layers in 8 bits and its layers as they are; whether that is a smaller
        file, and a choice that `with_others_kept` makes."""

    def begin(self) -> None:
        """Start what `write_dense` takes, where another process does it while this one has other things to do."""

    @property
    def trial_scheme(self) -> FileScheme:
        """The int8 scheme that needs no calibration and loses least; fp32 where the model cannot take it."""

    def layer_schemes(self) -> tuple[Scheme, ...]:
        """The schemes that a single linear layer of this model can take, in the order of the backend's."""

    def supports(self, layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
        """None where a layer can be written so, else why not."""

    def corrected_schemes(self) -> tuple[Scheme, ...]:
        """Those of a dense matrix with a pair beside it that a layer of this model can take."""

    def shares(self, layers: Sequence[str]) -> bool:
        """Whether these layers, which multiply the same vectors, can have the first of their low-rank factors in
        common: then replacements of them that are `is_shared` are written with one B."""

    @property
    def file_schemes(self) -> tuple[Scheme, ...]:
        """Schemes that no single layer can take, only a whole file."""

    def rest(self, scheme: Scheme) -> tuple[FileScheme, ...]:
        """The schemes of a whole file whose linear layers are in `scheme`: one per way to write all other weights."""

    @property
    def tables(self) -> tuple[tuple[str, Scheme], ...]:
        """Embedding tables that can have fewer bits than other weights in integers, and no layer multiplies by: names,
        and the schemes that they have then, as of `FileScheme.single`."""

    @property
    def embeddings(self) -> tuple[EmbeddingTable, ...]:
        """Embedding tables that no layer multiplies by and that `write` can store as planned: in one of the
        `table_schemes` (`FileScheme.single`), as they are or as low-rank factors (`FileScheme.factored`)."""

    @property
    def table_schemes(self) -> tuple[Scheme, ...]:
        """Of their rows, the widest first, which is that of all other weights in integers."""

    def takes(self, factors: Mapping[str, Replacement]) -> dict[str, Replacement]:
        """Those that `write` can put into a file: every pair, but not every other weight of a dense layer."""

    def write_dense(self, out: Path) -> None:
        """The dense fp32 baseline: the source model, nothing else changed."""

    @property
    def given_scheme(self) -> Scheme:
        """The scheme by whose tolerance that answers as the model does: its weights may be integers already."""

    @property
    def kept_scheme(self) -> Scheme:
        """The scheme in which a dense layer is in the file what it is in the model: float32, but where that computes in
        integers."""

    def write_baseline(self, scheme: Scheme, out: Path) -> str:
        """The dense int8 baseline in `scheme`; returns the name of the quantizer that made it."""

    def write(
        self,
        factors: Mapping[str, Replacement],
        scheme: FileScheme,
        out: Path,
        schemes: Mapping[str, Scheme] | None = None,
    ) -> Written:
        """The model with `factors` in place of the named layers.

        Args:
            factors: by layer name, as `takes` leaves them.
            scheme: of the file, so of every linear layer that `schemes` does not name.
            out: where to write.
            schemes: the schemes of single layers by name, of both halves of a factored one.

        Returns:
            What each layer really got, and what its matrices are called in the file.
        """

    def read(self, path: Path) -> Contents:
        """What the file holds."""

    @property
    def dense_contents(self) -> Contents:
        """What the dense fp32 file holds."""

    def read_optimized(self, path: Path) -> Contents:
        """What the runtime holds after its own graph optimisation."""


@dataclass(frozen=True)
class WriterData:
    """What a writer looks at beside the model.

    Attributes:
        calibration: for ranges of activations; None without data.
        example: inputs of one run; their shapes are those of the files.
        qmax: largest weight code of the schemes that may saturate.
    """

    calibration: Samples | None
    example: Mapping[str, Array]
    qmax: int


class Backend(Protocol):
    """A file format with its runtimes."""

    facts: Facts

    def engine(self) -> AbstractContextManager[Any]:
        """What writing takes that is worth starting early, such as a converter process; None where there is nothing."""

    def open(self, model: Model, data: WriterData, engine: Any, workspace: Workspace) -> Writer:
        """A writer of this format for a model; `engine` is what `engine()` gave."""

    def load(self, path: Path, *, threads: int = 1, exact: bool = True) -> Session:
        """A file in the runtime.

        Args:
            path: of the file.
            threads: of an inference.
            exact: integer arithmetic as on the targets, without the saturation of x86 CPUs without VNNI; False for
                timing.

        Raises:
            ModelError: the runtime cannot load it.
        """

    def blank(self, path: Path) -> None:
        """Writes the smallest model: y = |x| for one float32."""

    @property
    def one_op(self) -> FileStep[Any]:
        """Writes a file of a single layer, for a task of `one_ops`."""

    def one_ops(self, points: Sequence[Point]) -> Iterator[OneOp]:
        """Tasks for `one_op`: the layers of these points, of random weights, one file each, in the order given.

        No target changes them. They are small graphs as edgepack emits them.

        Raises:
            ModelError: what writing them takes is not installed.
        """

    def take_channels_last(self, path: Path) -> tuple[str, ...]:
        """Let a file, in place, take images with their channels last where that spares an operator.

        Returns:
            Names of the inputs that changed.
        """

    def convolutions(self, path: Path) -> tuple[Op, ...]:
        """The convolutions of a float32 file that are no linear layers, each by its matrix, which multiplies every
        patch of its input. One whose shapes the file does not tell is left out.

        Raises:
            ModelError: the file cannot be read.
        """

    def operators(self, path: Path, feed: Mapping[str, Array], *, timed: bool, unsigned: bool) -> tuple[Operator, ...]:
        """The operators of any file as the runtime executes them on these inputs, in that order.

        Args:
            path: of the file.
            feed: inputs of one inference, by name.
            timed: whether they are timed; if not, what the runtime does for this very CPU is left out.
            unsigned: as of `split`.

        Raises:
            ModelError: the file cannot be read or run.
        """

    def layer_values(self, path: Path, layers: Sequence[LayerShape]) -> Mapping[str, tuple[str, ...]]:
        """Where the layers stand in a file: by layer the names of the values that its products with constant matrices
        give, in order of execution. Those that are not found, convolutions among them, are left out.

        Args:
            path: of the file.
            layers: in it, in graph order.

        Raises:
            ModelError: the file cannot be read.
        """

    def split(self, path: Path, layers: Sequence[LayerShape], folder: Path, *, unsigned: bool) -> Sequence[Segment]:
        """An emitted file cut into consecutive parts, layer by layer.

        Args:
            path: of the file.
            layers: in it, in graph order.
            folder: for the parts.
            unsigned: whether the target's kernels want unsigned weights where that matters.
        """
