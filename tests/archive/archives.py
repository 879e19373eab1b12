"""Archives made by hand, of members that no edgepack writes as well."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
from collections.abc import Iterable, Mapping

import numpy as np

from edgepack.archive.tarxz import SUMS

CONTENT = b"structure " * 50 + np.random.default_rng(0).integers(-127, 128, 2000, np.int8).tobytes() + b"end"


def gaussian_codes(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """(rows, columns) int8: Gaussian weights, each row's largest at ±127."""
    weight = np.random.default_rng(seed).normal(size=(rows, columns))
    return np.rint(weight / np.abs(weight).max(axis=1, keepdims=True) * 127).astype(np.int8)


def sums(files: Mapping[str, bytes]) -> bytes:
    """The list of hashes, as `sha256sum` writes it."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()).encode()


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[bytes, bytes]:
    """A header of any kind, and the content behind it."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, target
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"), content


def tar(members: Iterable[tuple[bytes, bytes]], end: bytes = bytes(1024)) -> bytes:
    """Members one behind the other."""
    return b"".join(head + content + bytes(-len(content) % 512) for head, content in members) + end


def xz(content: bytes) -> bytes:
    """As xz writes it."""
    return lzma.compress(content, check=lzma.CHECK_CRC32)


def archive(files: Mapping[str, bytes], listed: bytes | None = None) -> bytes:
    """Of these files and the list of their hashes, or another list."""
    listed = sums(files) if listed is None else listed
    return xz(tar([member(SUMS, listed), *(member(name, content) for name, content in files.items())]))


def with_field(header: bytes, start: int, value: bytes) -> bytes:
    """A header with another field and a right checksum."""
    changed = bytearray(header)
    changed[start : start + len(value)] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def as_files(content: bytes) -> dict[str, bytes]:
    """By the standard library, as any tool reads it."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:xz") as opened:
        return {info.name: opened.extractfile(info).read() for info in opened}  # type: ignore[union-attr]
