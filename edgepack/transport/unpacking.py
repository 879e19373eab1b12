"""A container back into the very bytes of its files."""

from __future__ import annotations

import hashlib

from edgepack.errors import ModelError
from edgepack.transport.codecs import CODECS, unzstd
from edgepack.transport.container import JPEG, REST, STORED, Entry, Part, read
from edgepack.transport.parts import laid

_AGAIN = "copy the file again, or build the pack again"


def unpack(data: bytes, origin: str) -> dict[str, bytes]:
    """{file name: bytes}, each held against its SHA-256.

    Args:
        data: of the container; it may come from anywhere.
        origin: what to call it in an error.

    Raises:
        ModelError: no container, a damaged or a hostile one.
        UsageError: a library is missing.
    """
    try:
        entries, payload = read(data)
        found: dict[str, bytes] = {}
        start = 0
        for entry in entries:
            found[entry.name] = _file(entry, payload[start : start + entry.coded], origin)
            start += entry.coded
    except (ValueError, MemoryError) as err:
        said = str(err) or "there is not enough memory for it"
        raise ModelError(f"{origin}: {said}", hint=_AGAIN) from err
    return found


def _file(entry: Entry, payload: memoryview, origin: str) -> bytes:
    coded_rest = bytes(payload[: entry.rest_coded])
    rest = coded_rest if entry.rest == STORED else unzstd(coded_rest, entry.rest_size)
    pieces: list[bytes] = []
    start, place = entry.rest_coded, 0
    for number, part in enumerate(entry.parts):
        if part.codec == REST:
            pieces.append(rest[place : place + part.size])
            place += part.size
            continue
        try:
            piece = _part(part, bytes(payload[start : start + part.coded]))
        except (ValueError, ModelError) as err:
            raise ModelError(f"{origin}: {entry.name}, part {number} ({part.codec}): {err}", hint=_AGAIN) from err
        if len(piece) != part.size:
            raise ValueError(f"{entry.name}, part {number}: found {len(piece)} bytes, expected {part.size}")
        pieces.append(piece)
        start += part.coded
    content = b"".join(pieces)
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry.sha256:
        hint = _AGAIN
        if any(part.codec == JPEG for part in entry.parts):
            hint += "; a JPEG library that decodes otherwise than the one that packed it may be the cause as well"
        raise ModelError(f"{origin}: {entry.name} has the SHA-256 {digest}, expected {entry.sha256}", hint=hint)
    return content


def _part(part: Part, coded: bytes) -> bytes:
    if part.codec != JPEG:
        return CODECS[part.codec].decode(coded, part.size, part.parameters[0])
    from edgepack.transport import mosaic

    rows, columns, transposed, flip = part.parameters
    codes = mosaic.decode(coded, (rows, columns))
    return laid(codes, bool(transposed), flip)
