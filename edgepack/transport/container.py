"""The container: magic, version, checksum, a header that says what is inside, and the coded parts one after the other.

    8 bytes  MAGIC: damaged by transfers that take it for text
    2        version
    4        CRC-32 of all that follows: a cut or damaged transfer is seen before anything is decoded
    4, 4     size of the header, as it is and decompressed
    …        header: JSON in a zstandard frame
    …        for each file in turn: the coded bytes that belong to no part of their own, then its parts in order

A container may come from a stranger: `read` holds every size against what is there before anything of it is allocated.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgepack.transport.codecs import CODECS, unzstd, zstd

MAGIC = b"\x89EPK\r\n\x1a\n"
VERSION = 1
REST, JPEG = "rest", "jpeg"
ZSTD, STORED = "zstd", "stored"
MAX_TOTAL_BYTES = 4 * 2**30
MAX_HEADER_BYTES = 8 * 2**20
MAX_RATIO, SLACK_BYTES = 1024, 1 << 20
"""All files together have at most so many times the bytes of their container, and some: no zip bombs."""
MAX_FILES, MAX_PARTS = 64, 100_000
MAX_NAME_BYTES = 200
_FRONT = struct.Struct("<8sHIII")


@dataclass(frozen=True)
class Part:
    """A stretch of a file.

    Attributes:
        codec: one of `CODECS`, `JPEG`, or `REST`: the next bytes of those that are coded together.
        size: bytes in the file.
        coded: bytes in the container, 0 for `REST`.
        parameters: of a codec its one; of a JPEG rows and columns of the codes, whether the file holds them transposed
            (0, 1), and with what each byte is combined by exclusive or (0, 128).
    """

    codec: str
    size: int
    coded: int
    parameters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A file.

    Attributes:
        name: without a folder.
        size: bytes.
        sha256: hex.
        rest: `ZSTD` or `STORED`, how the bytes of all `REST` parts are coded.
        rest_coded: bytes of them in the container.
        parts: in order.
    """

    name: str
    size: int
    sha256: str
    rest: str
    rest_coded: int
    parts: tuple[Part, ...]

    @property
    def rest_size(self) -> int:
        """Bytes of all `REST` parts."""
        return sum(part.size for part in self.parts if part.codec == REST)

    @property
    def coded(self) -> int:
        """Bytes in the container."""
        return self.rest_coded + sum(part.coded for part in self.parts)


def largest_total(container_bytes: int) -> int:
    """How many bytes a container of this size may hold at most."""
    return min(MAX_TOTAL_BYTES, SLACK_BYTES + MAX_RATIO * container_bytes)


def write(entries: Sequence[Entry], payload: Sequence[bytes]) -> bytes:
    """The whole container; `payload` in the order of the entries."""
    files = [
        {**asdict(entry), "parts": [[p.codec, p.size, p.coded, *p.parameters] for p in entry.parts]}
        for entry in entries
    ]
    text = json.dumps({"files": files}, sort_keys=True, separators=(",", ":")).encode()
    header = zstd(text)
    checksum = zlib.crc32(struct.pack("<II", len(header), len(text)))
    for piece in (header, *payload):
        checksum = zlib.crc32(piece, checksum)
    front = _FRONT.pack(MAGIC, VERSION, checksum, len(header), len(text))
    return b"".join([front, header, *payload])


def read(data: bytes) -> tuple[tuple[Entry, ...], memoryview]:
    """The files, and their coded bytes. Every size is checked; names are plain.

    Raises:
        ValueError: no container, a damaged one, or one that no edgepack writes.
    """
    if len(data) < _FRONT.size or data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"found {len(data)} bytes that begin with {data[:8]!r}, expected a container of edgepack")
    _, version, checksum, coded, size = _FRONT.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"found version {version}, this edgepack reads {VERSION}")
    content = memoryview(data)
    if coded > len(data) - _FRONT.size:
        raise ValueError(f"found {len(data)} bytes, expected {coded + _FRONT.size} or more: it is cut short")
    if zlib.crc32(content[_FRONT.size - 8 :]) != checksum:
        raise ValueError("found another checksum than it was written with: it is damaged or cut short")
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"found a header of {size} bytes, expected at most {MAX_HEADER_BYTES}")
    text = unzstd(bytes(content[_FRONT.size : _FRONT.size + coded]), size)
    payload = content[_FRONT.size + coded :]
    entries = _entries(text)
    found, expected = sum(entry.coded for entry in entries), len(payload)
    if found != expected:
        raise ValueError(f"its header speaks of {found} coded bytes, found {expected}")
    total, most = sum(entry.size for entry in entries), largest_total(len(data))
    if total > most:
        raise ValueError(f"its header speaks of {total} bytes of files, expected at most {most}")
    return entries, payload


def _entries(text: bytes) -> tuple[Entry, ...]:
    try:
        files = json.loads(text)["files"]
    except (ValueError, RecursionError, TypeError, KeyError) as err:
        raise ValueError(f"its header is no JSON object with files ({type(err).__name__})") from err
    if not isinstance(files, list) or not 0 < len(files) <= MAX_FILES:
        raise ValueError(f"its header does not list 1 to {MAX_FILES} files")
    entries = tuple(_entry(one) for one in files)
    if len({entry.name.casefold() for entry in entries}) != len(entries):
        raise ValueError("two of its files have the same name")
    return entries


def _entry(one: Any) -> Entry:
    if not isinstance(one, dict) or set(one) != {"name", "size", "sha256", "rest", "rest_coded", "parts"}:
        raise ValueError("its header describes a file in an unknown way")
    name, sha256, parts = one["name"], one["sha256"], one["parts"]
    if not isinstance(name, str) or not plain(name):
        raise ValueError(f"found the file name {str(name)[:80]!r}, expected one without a folder")
    if not isinstance(sha256, str) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise ValueError(f"{name}: its SHA-256 is none")
    if one["rest"] not in (ZSTD, STORED) or not isinstance(parts, list) or len(parts) > MAX_PARTS:
        raise ValueError(f"{name}: expected {ZSTD} or {STORED} and at most {MAX_PARTS} parts")
    read_parts = tuple(_part(part, name) for part in parts)
    entry = Entry(name, _count(one["size"], name), sha256, one["rest"], _count(one["rest_coded"], name), read_parts)
    if sum(part.size for part in read_parts) != entry.size:
        raise ValueError(f"{name}: its parts do not add up to {entry.size} bytes")
    if entry.rest == STORED and entry.rest_coded != entry.rest_size:
        raise ValueError(f"{name}: found {entry.rest_coded} stored bytes, expected {entry.rest_size}")
    return entry


def plain(name: str) -> bool:
    """Whether this is a file's name and no path, wherever it is unpacked."""
    return (
        name.isprintable()
        and not name.startswith(".")
        and not set(name) & set('/\\:*?"<>|')
        and name == name.strip()
        and 0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES
    )


def _part(part: Any, name: str) -> Part:
    if not isinstance(part, list) or len(part) < 3 or not isinstance(part[0], str):
        raise ValueError(f"{name}: a part is described in an unknown way")
    codec, *numbers = part
    size, coded, *rest = (_count(number, name) for number in numbers)
    parameters = tuple(rest)
    if codec == JPEG:
        good = len(rest) == 4 and rest[0] * rest[1] == size > 0 and rest[2] in (0, 1) and rest[3] in (0, 128)
    elif codec in CODECS:
        good = len(rest) == 1 and rest[0] >= (codec in ("delta", "planes"))
    else:
        good = codec == REST and not rest and coded == 0
    if not good:
        raise ValueError(f"{name}: found a part {str(part)[:80]}, which this edgepack cannot decode")
    return Part(codec, size, coded, parameters)


def _count(number: Any, name: str) -> int:
    if type(number) is not int or not 0 <= number <= MAX_TOTAL_BYTES:
        raise ValueError(f"{name}: found {str(number)[:40]!r} for a number of bytes")
    return number
