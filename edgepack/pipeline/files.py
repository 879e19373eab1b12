"""What the build needs from a format, the same for ONNX and TFLite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from edgepack.formats import Format
from edgepack.types import Contents, Replacement


class ModelFiles(Protocol):
    """Writes and reads back the files of one format for one source model."""

    fmt: Format
    calibrated: bool

    @property
    def probe_form(self) -> str:
        """The int8 form that needs no calibration and loses least; fp32 where the model cannot take it."""

    def layer_forms(self) -> tuple[str, ...]:
        """The forms that a single linear layer of this model can take, in the order of `FORMS`."""

    def residual_forms(self) -> tuple[str, ...]:
        """Those of `RESIDUAL_FORMS` that a layer of this model can take."""

    @property
    def whole_forms(self) -> tuple[str, ...]:
        """Forms that no single layer can take, only a whole file."""

    def rest(self, form: str) -> tuple[str, ...]:
        """The forms of the whole file where its linear layers are in `form`: one per way to write all other weights."""

    def takes(self, factors: Mapping[str, Replacement]) -> dict[str, Replacement]:
        """Those that `write` can put into a file: every pair, but not every other weight of a dense layer."""

    def write_dense(self, out: Path) -> None:
        """The dense fp32 baseline: the source model, nothing else changed."""

    def write_baseline(self, form: str, out: Path) -> str:
        """The dense int8 baseline in `form`; returns the name of the quantizer that made it."""

    def write(
        self, factors: Mapping[str, Replacement], form: str, out: Path, forms: Mapping[str, str] | None = None
    ) -> None:
        """The model with `factors` in place of the named layers.

        Args:
            factors: by layer name, as `takes` leaves them.
            form: of the file, so of every linear layer that `forms` does not name.
            forms: the forms of single layers by name, of both halves of a factored one; without a variant of the file.
        """

    def read(self, path: Path) -> Contents:
        """What the file holds."""

    def read_optimized(self, path: Path) -> Contents:
        """What the runtime holds after its own graph optimisation."""
