"""The role of a kind of input: one file each, found through `edgepack.sources.SOURCES`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from edgepack.model.model import Model, NativeName
from edgepack.model.scheme import Format
from edgepack.sources.inputs import GivenInput


class Source(Protocol):
    """One kind of thing that MODEL may name.

    Attributes:
        name: of the kind, unique: what `Model.kind` and manifests call it.
        title: what people call such models.
        forms: what MODEL looks like, for messages.
        advice: how to come by such a model, for who gave something else; None where nobody would make one for this.
        native: what such a model is by itself: writing a file of it in another format takes a converter.
        packages: that opening it takes, beside edgepack's own.
        install: the command that installs them.
        runs_code: whether such a model is code, which is trusted; else it is data, and is not.
    """

    name: str
    title: str
    forms: tuple[str, ...]
    advice: str | None
    native: NativeName
    packages: tuple[str, ...]
    install: str
    runs_code: bool

    def prepare(self) -> None:
        """Import what opening such a model takes."""

    def takes(self, spec: str) -> bool:
        """Whether `spec` names such a model; nothing is opened."""

    def stem(self, spec: str) -> str:
        """What the model is called, by its `spec` alone."""

    def open(
        self, spec: str, name: str, work: Path, formats: Collection[Format], given: Sequence[GivenInput] = ()
    ) -> Model:
        """Opens it.

        Args:
            spec: that the source takes.
            name: of the model.
            work: folder for what is exported.
            formats: of the files that will be written; the model is the truth in one of them if that can be.
            given: shapes of inputs, for a model that must know them to be opened; others are given theirs afterwards.

        Raises:
            ModelError: the model is bad or cannot be exported.
        """


class FileOfSuffix:
    """What sources of files share: one suffix tells them.

    Attributes:
        suffix: in small letters, with its dot.
        heavy: modules that opening such a file imports.
    """

    suffix: str
    heavy: tuple[str, ...]
    runs_code = False

    def prepare(self) -> None:
        """See `Source.prepare`."""
        for module in self.heavy:
            import_module(module)

    def takes(self, spec: str) -> bool:
        """By its suffix."""
        return Path(spec).suffix.lower() == self.suffix

    def stem(self, spec: str) -> str:
        """That of the file."""
        return file_stem(spec)


def file_stem(path: str) -> str:
    """`points.onnx` → `points`; a file that is called `model` has the name of its folder."""
    stem = Path(path).stem
    return Path(path).resolve().parent.name if stem == "model" else stem
