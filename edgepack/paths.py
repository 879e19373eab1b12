"""Paths that a user names, looked at before anything heavy is imported for them."""

from __future__ import annotations

import os
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from edgepack.errors import DataError, InputError, ModelError, PackError

_MODELS = (".onnx", ".tflite", ".keras", ".h5", ".pt2")
_LOOKED_AT = 10_000
"""Names in a folder, at most, among which a similar one is looked for."""


def require_model(spec: str) -> None:
    """Look whether the file that a model names is there; what else it may be is for `edgepack.sources`.

    Raises:
        ModelError: it is not.
    """
    file = _python_file(spec) or (spec if spec.lower().endswith(_MODELS) else None)
    if file is not None and not os.path.exists(os.path.expanduser(file)):
        raise _missing(ModelError, file, "check the path of the model")
    if file is None and ":" not in spec and not os.path.exists(os.path.expanduser(spec)):
        close = _similar(Path(os.path.expanduser(spec)))
        if close is not None and close.suffix.lower() in _MODELS:
            raise ModelError(f"{spec}: no such file", hint=f"did you mean {close}?")


def require_samples(spec: str | os.PathLike[str] | None) -> None:
    """Look whether the file or folder that samples name is there.

    Raises:
        DataError: it is not.
    """
    if spec is not None and not os.path.exists(os.path.expanduser(file := _python_file(str(spec)) or str(spec))):
        raise _missing(DataError, file, "give an .npz with one array per model input, a folder, or file.py:function")


def require_pack(folder: str | os.PathLike[str]) -> None:
    """Look whether the folder of a pack is there.

    Raises:
        PackError: it is not.
    """
    if not os.path.exists(folder):
        raise _missing(PackError, str(folder), "give the folder that `edgepack build` wrote", what="folder")


def _python_file(spec: str) -> str | None:
    """The file of `file.py:function`."""
    file, _, function = spec.rpartition(":")
    return file if file.endswith(".py") and function.isidentifier() else None


def _missing(error: type[InputError], file: str, hint: str, *, what: str = "file") -> InputError:
    """With the most similar name in its folder, where there is one."""
    path = Path(os.path.expanduser(file))
    if not os.path.isdir(path.parent):
        return error(f"{file}: no such {what}", hint=f"there is no folder {path.parent}: {hint}")
    close = _similar(path)
    return error(f"{file}: no such {what}", hint=hint if close is None else f"did you mean {close}?")


def _similar(path: Path) -> Path | None:
    """What has the most similar name in the folder of a path; None where nothing is similar."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _LOOKED_AT)]
    except OSError:
        return None
    close = get_close_matches(path.name, names, n=1)
    return path.parent / close[0] if close else None
