"""A model as it was opened: dense, in float32, in its native format and in those that it was converted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.model.layer import Layer
from edgepack.model.scheme import Format
from edgepack.model.types import Recipe, TensorSpec


@dataclass(frozen=True)
class Model:
    """A model, ready to be calibrated, factored and written.

    Attributes:
        name: short name for folders and tables.
        kind: what the user gave: name of the source that opened it.
        sha256: of the native content.
        native: the format that is the truth: layers are found there, and its runtime gives the reference answers.
        content: the model as its native backend holds it in memory; never changed.
        inputs: of the model.
        layers: that can be replaced.
        files: the model on disk by format: the source itself, or an export in the working folder.
        program: the exported torch program (`.pt2`); None where there is none.
        recipe: what the user's function gave; None for a file.
    """

    name: str
    kind: str
    sha256: str
    native: Format
    content: Any
    inputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...]
    files: Mapping[Format, Path]
    program: Path | None
    recipe: Recipe | None

    @property
    def path(self) -> Path:
        """The native file."""
        return self.files[self.native]
