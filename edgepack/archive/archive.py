"""Archives of a pack's model files, and the files that `edgepack extract` writes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.archive import tarxz
from edgepack.archive.images import INDEX, JpegImage, put_back, take_out
from edgepack.errors import ModelError, OutputError, ProofError, UsageError
from edgepack.model.scheme import Format
from edgepack.pack.manifest import ArchiveEntry

FOLDER = "archive"
SUFFIX = ".tar.xz"

_AGAIN = "copy the file again, or build the pack again"


@dataclass(frozen=True)
class Extracted:
    """A file out of an archive.

    Attributes:
        path: where it is now.
        size_bytes: of it.
        sha256: hex, held against the archive's.
        written: False where the very same file was there already.
    """

    path: Path
    size_bytes: int
    sha256: str
    written: bool


def pack(name: str, content: bytes, images: Sequence[JpegImage] = ()) -> bytes:
    """A model file as an archive, which is extracted and compared once before it is handed over.

    Args:
        name: of the file, without a folder.
        content: of the file.
        images: that weights in it come from; they travel in place of these weights if that makes the archive smaller.

    Raises:
        UsageError: the name is a path, or the file too large.
        ProofError: what would be extracted is not what was packed.
    """
    try:
        archive = tarxz.write({name: content})
        if images:
            smaller = tarxz.write(take_out(name, content, images))
            if len(smaller) < len(archive) and _gives(smaller, name, content):
                archive = smaller
    except ValueError as err:
        raise UsageError(f"{name} cannot be archived: {err}") from err
    if not _gives(archive, name, content):
        raise ProofError(f"the archive of {name} does not give it back")
    return archive


def extract(archive: bytes, origin: str) -> dict[str, bytes]:
    """{file name: bytes}, each held against its SHA-256.

    Args:
        archive: its bytes; they may come from anywhere.
        origin: what to call it in an error.

    Raises:
        ModelError: no archive, a damaged or a hostile one.
        UsageError: it holds JPEG files and Pillow is missing.
    """
    try:
        files = tarxz.read(archive)
        return put_back(files) if INDEX in files else files
    except ModelError as err:
        raise ModelError(f"{origin}: {err.message}", hint=err.hint or _AGAIN) from err
    except (ValueError, MemoryError) as err:
        found = str(err) or "there is not enough memory for it"
        raise ModelError(f"{origin}: {found}", hint=_AGAIN) from err


def add_archives(
    folder: Path, files: Sequence[tuple[str, Format]], images: Mapping[Format, Sequence[JpegImage]]
) -> dict[str, tuple[int, ArchiveEntry]]:
    """Write `archive/<name>.tar.xz` for model files of a pack folder.

    Returns:
        By the file's name, bytes of the archive, and what the manifest says of it.
    """
    entries: dict[str, tuple[int, ArchiveEntry]] = {}
    for name, fmt in files:
        archive = pack(name, (folder / name).read_bytes(), images.get(fmt, ()))
        place = folder / FOLDER / f"{name}{SUFFIX}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(archive)
        digest = hashlib.sha256(archive).hexdigest()
        entries[name] = len(archive), ArchiveEntry(f"{FOLDER}/{place.name}", digest)
    return entries


def extract_file(path: Path, out: Path | None = None, *, force: bool = False) -> list[Extracted]:
    """Write the files of an archive, all checked before the first is written, each whole or not at all.

    Args:
        path: of the archive.
        out: folder; None for the archive's own.
        force: replace files that are there and differ.

    Raises:
        ModelError: a missing, damaged or hostile archive.
        OutputError: another file is in the way, or the folder cannot be written.
        UsageError: it holds JPEG files and Pillow is missing.
    """
    found = extract(_content(path), str(path))
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
        Extracted(folder / name, len(content), hashlib.sha256(content).hexdigest(), name not in same)
        for name, content in found.items()
    ]


def _gives(archive: bytes, name: str, content: bytes) -> bool:
    try:
        return extract(archive, name) == {name: content}
    except ModelError:
        return False


def _content(path: Path) -> bytes:
    hint = f"name a {SUFFIX} file, as `edgepack build --archive` writes it"
    if not path.exists():
        raise ModelError(f"{path}: no such file", hint=hint)
    if not path.is_file():
        raise ModelError(f"{path}: found a folder or a device, expected a file", hint=hint)
    if not path.name.endswith(SUFFIX):
        raise ModelError(f"{path}: found another kind of file, expected a file whose name ends in {SUFFIX}", hint=hint)
    size = path.stat().st_size
    if size > tarxz.MAX_BYTES:
        raise ModelError(f"{path}: found {size} bytes, expected at most {tarxz.MAX_BYTES}", hint=hint)
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
