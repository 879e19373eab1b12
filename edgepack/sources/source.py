"""The role of a kind of input: one file each, found through `edgepack.sources.SOURCES`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgepack.model.model import Model
from edgepack.model.scheme import Format


class Source(Protocol):
    """One kind of thing that MODEL may name.

    Attributes:
        name: of the kind, unique: what `Model.kind` and manifests call it.
        title: what people call such models.
        forms: what MODEL looks like, for messages.
        advice: how to come by such a model, for who gave something else; None where nobody would make one for this.
        format: of the file that MODEL names; None where it is in no format that is written here.
        packages: that opening it takes, beside edgepack's own.
        install: the command that installs them.
    """

    name: str
    title: str
    forms: tuple[str, ...]
    advice: str | None
    format: Format | None
    packages: tuple[str, ...]
    install: str

    def takes(self, spec: str) -> bool:
        """Whether `spec` names such a model; nothing is opened."""

    def stem(self, spec: str) -> str:
        """What the model is called, by its `spec` alone."""

    def open(self, spec: str, name: str, work: Path) -> Model:
        """Opens it.

        Args:
            spec: that the source takes.
            name: of the model.
            work: folder for what is exported.

        Raises:
            ModelError: the model is bad or cannot be exported.
        """


def file_stem(path: str) -> str:
    """`points.onnx` → `points`; a file that is called `model` has the name of its folder."""
    stem = Path(path).stem
    return Path(path).resolve().parent.name if stem == "model" else stem
