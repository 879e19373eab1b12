"""The door for ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.model.layer import Layer
from edgepack.model.types import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.sites import Site


@dataclass(frozen=True, eq=False)
class OnnxSource:
    """A model file, read and searched.

    Attributes:
        path: where it was read.
        model: the graph; treat it as read-only.
        sites: its linear layers in graph order.
        sha256: hex digest of the file and of its external data.
        inputs: what a caller must give.
        outputs: what the model returns.
    """

    path: Path
    model: ir.Model
    sites: tuple[Site, ...]
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The linear layers in graph order."""
        return tuple(site.layer for site in self.sites)


def open_onnx(path: Path) -> OnnxSource:
    """Read an ONNX file and find its linear layers.

    Raises:
        ModelError: see `edgepack.backends.onnx.file.load`.
    """
    from edgepack.backends.onnx.file import input_specs, load_with_digest, output_specs
    from edgepack.backends.onnx.sites import find_sites

    path = Path(path)
    model, sha256 = load_with_digest(path)
    return OnnxSource(path, model, find_sites(model), sha256, input_specs(model), output_specs(model))
