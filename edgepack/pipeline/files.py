"""What the build needs from a format, the same for ONNX and TFLite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.structure import Structure
from edgepack.types import Contents, Written


class ModelFiles(Protocol):
    """Writes and reads back the files of one format for one source model."""

    fmt: Format
    calibrated: bool

    @property
    def probe_scheme(self) -> FileScheme:
        """The int8 scheme that needs no calibration and loses least; fp32 where the model cannot take it."""

    def layer_schemes(self) -> tuple[Scheme, ...]:
        """The schemes that a single linear layer of this model can take, in the order of the backend's."""

    def supports(self, layer: Layer, structure: Structure, scheme: Scheme) -> str | None:
        """None where a layer can be written so, else why not."""

    def corrected_schemes(self) -> tuple[Scheme, ...]:
        """Those of a dense matrix with a pair beside it that a layer of this model can take."""

    @property
    def file_schemes(self) -> tuple[Scheme, ...]:
        """Schemes that no single layer can take, only a whole file."""

    def rest(self, scheme: Scheme) -> tuple[FileScheme, ...]:
        """The schemes of a whole file whose linear layers are in `scheme`: one per way to write all other weights."""

    def takes(self, factors: Mapping[str, Replacement]) -> dict[str, Replacement]:
        """Those that `write` can put into a file: every pair, but not every other weight of a dense layer."""

    def write_dense(self, out: Path) -> None:
        """The dense fp32 baseline: the source model, nothing else changed."""

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
