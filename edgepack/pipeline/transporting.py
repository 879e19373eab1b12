"""The files of a pack for slow links: each as one compressed container beside it, and back."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgepack.errors import ModelError, OutputError
from edgepack.model.scheme import Format
from edgepack.pack.manifest import PartEntry, TransportEntry
from edgepack.transport.container import MAX_TOTAL_BYTES
from edgepack.transport.packing import pack
from edgepack.transport.parts import JpegStream, Packed, Source, Span
from edgepack.transport.unpacking import unpack

FOLDER = "transport"
SUFFIX = ".epk"


@dataclass(frozen=True)
class Unpacked:
    """A file out of a container.

    Attributes:
        path: where it is now.
        size_bytes: of it.
        sha256: hex, held against the container's.
        written: False where the very same file was there already.
    """

    path: Path
    size_bytes: int
    sha256: str
    written: bool


def spans(content: bytes, fmt: Format, name: str) -> list[Span]:
    """Where a model file holds its tensors.

    Raises:
        ModelError: it is not of the format.
    """
    if fmt == "onnx":
        from edgepack.onnxgraph.tensor_spans import tensor_spans as onnx_spans

        return onnx_spans(content)
    from edgepack.tflitespans import tensor_spans as tflite_spans

    return tflite_spans(content, name)


def packed(path: Path, fmt: Format, streams: Sequence[JpegStream] = ()) -> Packed:
    """A model file as a container.

    Args:
        path: of the model file.
        fmt: its format.
        streams: codes of weights in it that are known to come from JPEG files.

    Raises:
        UsageError: a library is missing.
        ModelError: the file is not of the format.
    """
    content = path.read_bytes()
    return pack([Source(path.name, content, spans(content, fmt, path.name), streams)])


def add_transport(
    folder: Path, files: Sequence[tuple[str, Format]], streams: Mapping[Format, Sequence[JpegStream]]
) -> dict[str, tuple[int, TransportEntry]]:
    """Write `transport/<name>.epk` for model files of a pack folder.

    Returns:
        By the file's name, the bytes of its container, and how its tensors travel in it.
    """
    entries: dict[str, tuple[int, TransportEntry]] = {}
    for name, fmt in files:
        made = packed(folder / name, fmt, streams.get(fmt, ()))
        place = folder / FOLDER / f"{name}{SUFFIX}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(made.content)
        parts = tuple(PartEntry(**asdict(part)) for part in made.parts[name])
        digest = hashlib.sha256(made.content).hexdigest()
        entries[name] = len(made.content), TransportEntry(f"{FOLDER}/{place.name}", digest, parts)
    return entries


def unpack_file(path: Path, out: Path | None = None, *, force: bool = False) -> list[Unpacked]:
    """Write the files of a container, all checked before the first is written, each whole or not at all.

    Args:
        path: of the container.
        out: folder; None for the container's own.
        force: replace files that are there and differ.

    Raises:
        ModelError: a missing, damaged or hostile container.
        OutputError: another file is in the way, or the folder cannot be written.
        UsageError: a library is missing.
    """
    found = unpack(_content(path), str(path))
    folder = path.parent if out is None else out
    same = {name for name, content in found.items() if _holds(folder / name, content)}
    for name in found:
        if (folder / name).exists() and name not in same and not (force and (folder / name).is_file()):
            hint = "replace it with --force, or give another folder with --out"
            raise OutputError(f"{folder / name} exists and is not what {path.name} holds", hint=hint)
    for name, content in found.items():
        if name not in same:
            _write(folder / name, content)
    return [
        Unpacked(folder / name, len(content), hashlib.sha256(content).hexdigest(), name not in same)
        for name, content in found.items()
    ]


def _content(path: Path) -> bytes:
    hint = f"name a {SUFFIX} file, as `edgepack build --transport` writes it"
    if not path.is_file():
        raise ModelError(f"{path}: found {'a folder' if path.is_dir() else 'no such file'}, expected a file", hint=hint)
    size = path.stat().st_size
    if size > MAX_TOTAL_BYTES:
        raise ModelError(f"{path}: found {size} bytes, expected at most {MAX_TOTAL_BYTES}", hint=hint)
    try:
        return path.read_bytes()
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror}", hint=hint) from err


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            try:
                stream.write(content)
                stream.flush()
                os.chmod(stream.name, 0o644)
                os.replace(stream.name, path)
            except BaseException:
                os.unlink(stream.name)
                raise
    except OSError as err:
        hint = "choose a folder that exists and has room with --out"
        raise OutputError(f"cannot write {path}: {err.strerror}", hint=hint) from err
