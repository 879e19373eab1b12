"""Files that end with their own SHA-256: one in which a bit has changed is told from a whole one when it is read."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_MARK = b"\nedgepack entry 1, SHA-256 "
_SEAL_BYTES = len(_MARK) + 64 + 1
_IN_JSON = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\n?\Z')


class NotWholeError(ValueError):
    """A file was cut short, changed, or written by another version."""


def seal(path: Path) -> None:
    """Appends the seal to a file.

    Raises:
        OSError: it cannot be read or written.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with path.open("ab") as stream:
        stream.write(_seal(digest))


def unsealed(path: Path) -> bytes:
    """What a sealed file holds, without its seal.

    Raises:
        NotWholeError: it is not what was sealed.
        OSError: it cannot be read.
    """
    raw = path.read_bytes()
    content = raw[:-_SEAL_BYTES]
    if raw[-_SEAL_BYTES:] != _seal(hashlib.sha256(content).hexdigest()):
        raise NotWholeError(f"{path}: its SHA-256 is another than when it was written")
    return content


def note_digest(path: Path, beside: Path) -> None:
    """Writes a file's SHA-256 into one of its own, where what reads the file takes no seal at its end.

    Raises:
        OSError: one cannot be read, the other not written.
    """
    with path.open("rb") as stream:
        beside.write_text(hashlib.file_digest(stream, "sha256").hexdigest() + "\n")


def is_whole(path: Path, beside: Path) -> bool:
    """Whether a file is there and what `note_digest` noted of it."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == beside.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return False


def _seal(digest: str) -> bytes:
    return _MARK + digest.encode() + b"\n"


def sealed_json(text: str) -> str:
    """An object in JSON with one more key, `sha256`, of all that stands before it."""
    body = text.rstrip().removesuffix("}")
    return f'{body},"sha256":"{hashlib.sha256(body.encode()).hexdigest()}"}}\n'


def is_whole_json(raw: bytes) -> bool:
    """Whether an object in JSON is what was sealed; one without that key is taken as it is."""
    found = _IN_JSON.search(raw)
    return found is None or hashlib.sha256(raw[: found.start()]).hexdigest().encode() == found[1]
