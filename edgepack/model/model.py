"""A model as it was opened: dense, in float32, as its source holds it and in the formats that it was converted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgepack.model.layer import Layer
from edgepack.model.scheme import Format, Scheme
from edgepack.model.types import Array, Recipe, TensorSpec

NativeName = Literal["onnx", "torch", "tflite"]
"""What a model can be the truth in; it need not be a format that is written."""


@dataclass(frozen=True)
class Model:
    """A model, ready to be calibrated, factored and written.

    Attributes:
        name: short name for folders and tables.
        kind: what the user gave: name of the source that opened it.
        sha256: of the native content.
        native: what the model is the truth in: layers are found there, and its runtime gives the reference answers.
        content: the model as its native holds it in memory; never changed.
        inputs: of the model.
        layers: that can be replaced.
        files: the model on disk by format: the source itself, or an export in the working folder; none where it is the
            truth in no format that is written.
        program: the exported torch program (`.pt2`); None where there is none.
        recipe: what the user's function gave; None for a file.
        vectors: float64, those among its constants: what a converter may have folded into a layer's bias.
        in_integers: whether its layers compute in integers: what stands in their place does so as well.
        fixed: why none of its layers is changed; None where they can be.
        left: what would be layers, but stays as it is, and why; None where there is nothing of the kind.
        given: the file as it was given where the content is that of it, or its weights in integers decoded, and the
            scheme by whose tolerance it answers as the content does; None where it was changed more, or exported.
        batched: names of inputs whose first axis is a batch of any size in the source, though `inputs` say one.
    """

    name: str
    kind: str
    sha256: str
    native: NativeName
    content: Any
    inputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...]
    files: Mapping[Format, Path]
    program: Path | None
    recipe: Recipe | None
    vectors: Sequence[Array] = ()
    in_integers: bool = False
    fixed: str | None = None
    left: str | None = None
    given: tuple[Path, Scheme] | None = None
    batched: frozenset[str] = frozenset()

    @property
    def open_batch(self) -> frozenset[str]:
        """Names of the inputs whose first axis is a batch of any size."""
        return self.batched | {spec.name for spec in self.inputs if spec.shape[:1] == (None,)}
