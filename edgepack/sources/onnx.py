"""ONNX files, and what other sources export as ONNX."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import ModelError
from edgepack.model.layer import Layer
from edgepack.model.model import Model, NativeName
from edgepack.model.scheme import Format, Scheme
from edgepack.model.types import TensorSpec
from edgepack.sources.inputs import GivenInput
from edgepack.sources.source import FileOfSuffix

FOUND = 7
"""Version of what is done to a graph before its layers are found: part of the key of all that is kept of them."""

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.sites import Site


class OnnxFile(FileOfSuffix):
    """`model.onnx`: see `Source`."""

    name = "onnx"
    title = "ONNX files"
    suffix = ".onnx"
    forms: tuple[str, ...] = ("model.onnx",)
    advice: str | None = None
    native: NativeName = "onnx"
    packages: tuple[str, ...] = ()
    install = ""
    heavy: tuple[str, ...] = ("onnx", "onnx_ir", "onnxruntime")

    def open(
        self, spec: str, name: str, work: Path, formats: Collection[Format], given: Sequence[GivenInput] = ()
    ) -> Model:
        """See `Source.open`; the graph in which layers were found is exported where it is not that of the file."""
        return onnx_model(spec, name, self.name, Path(spec), work)


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
        folded: whether the graph is another one than that of the file.
        given: the scheme by whose tolerance the file answers as the graph does: its weights may be integers there.
    """

    path: Path
    model: ir.Model
    sites: tuple[Site, ...]
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    folded: bool
    given: Scheme

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
    from edgepack.backends.onnx.folded import fold_weights
    from edgepack.backends.onnx.integer_weights import decode_weights
    from edgepack.backends.onnx.norms import fold_norms
    from edgepack.backends.onnx.opset import in_newer_opset
    from edgepack.backends.onnx.sites import find_sites

    path = Path(path)
    model, sha256 = load_with_digest(path)
    newer = in_newer_opset(model)
    model = newer or model
    given = decode_weights(model)
    changed = newer is not None, not given.is_float, *(fold(model) for fold in (fold_weights, fold_norms))
    inputs, outputs = input_specs(model), output_specs(model)
    return OnnxSource(path, model, find_sites(model), sha256, inputs, outputs, any(changed), given)


def onnx_model(spec: str, name: str, kind: str, path: Path, work: Path) -> Model:
    """The model that an ONNX file holds, without a torch program.

    Args:
        spec: as the user gave it.
        name: see `Model`.
        kind: name of its source.
        path: the file, or what was exported of another.
        work: folder for the graph in which the layers were found, where that is another one.

    Raises:
        ModelError: see `open_onnx`; it takes no inputs.
    """
    from edgepack.backends.onnx.file import save
    from edgepack.backends.onnx.integers import already_in_integers
    from edgepack.backends.onnx.tensors import vectors

    try:
        source = open_onnx(path)
    except ModelError as err:
        if str(path) in err.message:
            raise
        raise ModelError(f"{spec}: {err.message}", hint=err.hint) from err
    if not source.inputs:
        raise ModelError(f"{spec}: the model takes no inputs")
    own = kind == OnnxFile.name and not source.folded
    given = (path, source.given) if own or not source.given.is_float else None
    if source.folded:
        path = work / "folded.onnx"
        save(source.model, path)
    return Model(
        name=name,
        kind=kind,
        sha256=source.sha256,
        native="onnx",
        content=source.model,
        inputs=source.inputs,
        layers=source.layers,
        files={"onnx": path},
        program=None,
        recipe=None,
        vectors=vectors(source.model),
        left=already_in_integers(source.model),
        given=given,
    )
