"""`edgepack join`: packs of a model's entry points as one TFLite file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgepack.backends.tflite.join import Joined, join
from edgepack.errors import OutputError, PackError, UsageError

_FORM = "NAME=FILE.tflite or NAME=PACK"


def parse_parts(words: Sequence[str]) -> dict[str, Path]:
    """Files by the names of their signatures.

    Raises:
        UsageError: fewer than two, one without a name, or two of one name.
        PackError: a pack has no TFLite file.
    """
    parts: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise UsageError(
                f"found {word!r}, expected {_FORM}", hint="edgepack join encode=a.tflite decode=b.tflite …"
            )
        if name in parts:
            raise UsageError(f"two files are named {name!r}", hint="give each signature a name of its own")
        parts[name] = _model_file(Path(path))
    if len(parts) < 2:
        raise UsageError("found one file, expected two or more", hint="edgepack join encode=a.tflite decode=b.tflite …")
    return parts


def join_files(parts: Mapping[str, Path], out: Path) -> tuple[Joined, ...]:
    """See `edgepack.backends.tflite.join.join`.

    Raises:
        OutputError: the file to write is none of TFLite, or one of the parts.
    """
    if out.suffix.lower() != ".tflite" or out.is_dir():
        raise OutputError(f"{out}: expected the name of a .tflite file", hint="--out model.tflite")
    if any(out.exists() and out.samefile(path) for path in parts.values() if path.exists()):
        raise OutputError(f"{out} is one of the files that are joined", hint="give another file with --out")
    return join(parts, out)


def _model_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    model = path / "model.tflite"
    if not model.is_file():
        raise PackError(f"{path}: no model.tflite in it", hint="build it for TFLite, or give a .tflite file")
    return model
