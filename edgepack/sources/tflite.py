"""TFLite files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import ModelError, install_command
from edgepack.model.model import Model, NativeName
from edgepack.model.scheme import Format
from edgepack.sources.inputs import GivenInput, shown, with_shapes
from edgepack.sources.source import FileOfSuffix

if TYPE_CHECKING:
    from edgepack.backends.tflite.sites import TfliteModel

MOST_BYTES = 2**31 - 1
"""Of a file: what a flatbuffer's offsets reach."""


FIXED = "its layers compute in integers that are not int8 throughout"
IN_INT8 = "its layers compute in int8: each stays as it was given, or becomes low-rank factors that do so as well"


class TfliteFile(FileOfSuffix):
    """`model.tflite`: see `Source`."""

    name = "tflite"
    title = "TFLite files"
    suffix = ".tflite"
    forms: tuple[str, ...] = ("model.tflite",)
    advice: str | None = None
    native: NativeName = "tflite"
    packages: tuple[str, ...] = ("ai-edge-litert",)
    install = install_command("tflite")
    heavy: tuple[str, ...] = ("ai_edge_litert.interpreter",)

    def open(
        self, spec: str, name: str, work: Path, formats: Collection[Format], given: Sequence[GivenInput] = ()
    ) -> Model:
        """See `Source.open`; nothing is exported. Shapes that are given are those of the packed file as well."""
        from edgepack.backends.tflite.sites import tflite_model, vectors
        from edgepack.natives.tflite import TfliteNative

        path = Path(spec)
        content = tflite_model(_with_shapes(_content(path), spec, given), spec)
        try:
            inputs = TfliteNative().session(content, {}, threads=1).inputs
        except ModelError as err:
            raise _refused(err, content, spec) from err
        if not inputs:
            raise ModelError(f"{spec}: the model takes no inputs", hint="give a model that takes some")
        hidden = _hidden(content)
        return Model(
            name=name,
            kind=self.name,
            sha256=hashlib.sha256(content.content).hexdigest(),
            native="tflite",
            content=content,
            inputs=inputs,
            layers=content.layers if hidden is None else (),
            files={"tflite": path},
            program=None,
            recipe=None,
            vectors=vectors(content),
            in_integers=content.in_integers,
            fixed=FIXED if content.in_integers and not content.folds else None,
            left=hidden or _sparse(content) or (IN_INT8 if content.in_integers and content.folds else None),
        )


def _refused(err: ModelError, content: TfliteModel, spec: str) -> ModelError:
    """What LiteRT said of the file, and the step that makes it run."""
    custom = re.search(r"unresolved custom op: (\w+)", err.message)
    if custom is not None:
        return ModelError(
            f"{spec}: {custom[1]} is a custom operator that LiteRT does not have, so that the file does not run here",
            hint="give the file as it is before its maker's own operators are put in; nothing can be measured of this",
        )
    said = err.message.rpartition(": ")[2]
    return ModelError(
        f"{spec}: {said} (LiteRT, at the input shapes that the file has)", hint=_other_shapes(content, spec)
    )


def _with_shapes(content: bytes, name: str, given: Sequence[GivenInput]) -> bytes:
    """The file, with the shapes of inputs that it leaves open as they were given.

    Raises:
        UsageError: it has no such input, or does not leave it open.
        ModelError: a damaged file, or LiteRT refuses them.
    """
    if not given:
        return content
    from edgepack.backends.tflite.resize import resized, stated_inputs

    with_shapes(stated_inputs(content, name), given)
    try:
        return resized(content, {one.name: one.shape for one in given})
    except ModelError as err:
        asked = ", ".join(map(str, given))
        raise ModelError(
            f"{name}: {err.message.rpartition(': ')[2]} (LiteRT, with {asked})", hint="give shapes on which it runs"
        ) from err


def _other_shapes(model: TfliteModel, name: str) -> str:
    """What to do where LiteRT does not run a file at the shapes that it has."""
    from edgepack.backends.tflite.resize import stated_inputs

    left = [one for one in stated_inputs(model.content, name) if None in one.shape]
    if not left:
        return "convert it with the shapes that it is run with, and without custom operators"
    asked = " ".join(f"--input {one.name}={shown(one)}" for one in left)
    return f"give a number for each side that it leaves open, beside --data as well: {asked}"


def _hidden(model: TfliteModel) -> str | None:
    """Why what flows into the layers cannot be seen; None where it can.

    Some custom operators have a kernel in a delegate alone, which keeps to itself what flows between its operators.
    """
    from edgepack.natives.tflite import TfliteNative

    try:
        TfliteNative().observe(model, (), threads=1)
    except ModelError as err:
        why = err.message.rpartition("refuses the file: ")[2].splitlines()[0]
        return f"its layers stay as they are, for LiteRT does not show what flows into them: {why}"
    return None


def _sparse(model: TfliteModel) -> str | None:
    """What stays as it is for its zeros; None where nothing does."""
    from edgepack.backends.tflite.decoded import sparse_kept

    kept = sparse_kept(model.content)
    return f"weights that stay sparse, in fewer bytes than in 8 bits: {kept}" if kept else None


def _content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        ModelError: there is none, or it is too large.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file", hint="give the path of a .tflite file")
    if path.stat().st_size > MOST_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes, a TFLite file has at most {MOST_BYTES}")
    return path.read_bytes()
