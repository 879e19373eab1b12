"""Files into a container: every tensor by the codec that makes it smallest, all other bytes together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.errors import ModelError, ProofError, UsageError
from edgepack.transport import entropy
from edgepack.transport.codecs import CODECS, differences, nibbles, planes, zstd
from edgepack.transport.container import (
    JPEG,
    MAX_PARTS,
    MAX_TOTAL_BYTES,
    REST,
    STORED,
    ZSTD,
    Entry,
    Part,
    largest_total,
    plain,
    write,
)
from edgepack.transport.parts import JpegStream, Packed, Source, Span, Travelled, apart, laid
from edgepack.transport.unpacking import unpack
from edgepack.types import Array

SMALLEST_BYTES = 64
"""Of a tensor that is worth a part of its own, with some 20 bytes in the header."""
PART_BYTES = 12
"""What a part costs in the header, about, after compression."""
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class _Known:
    """Where the bytes of a tensor are those of a JPEG file."""

    stream: JpegStream
    transposed: bool
    flip: int


def pack(sources: Sequence[Source]) -> Packed:
    """One container of all files. It is unpacked and compared once before it is handed over.

    The same files, spans, streams and versions of the libraries give the same bytes.

    Raises:
        UsageError: a library is missing, a name is a path, or there is too much for one container.
        ProofError: what would be unpacked is not what was packed.
    """
    if sum(len(source.content) for source in sources) > MAX_TOTAL_BYTES:
        raise UsageError(f"found files of more than {MAX_TOTAL_BYTES} bytes, expected no more in one container")
    wrong = [source.name for source in sources if not plain(source.name)]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is no plain file name")
    packed = _packed(sources, stored=False)
    if sum(len(source.content) for source in sources) > largest_total(len(packed.content)):
        packed = _packed(sources, stored=True)  # so little is left that a reader would suspect a bomb
    try:
        same = unpack(packed.content, "the container just packed") == {s.name: s.content for s in sources}
    except ModelError as err:
        raise ProofError(f"what was packed cannot be unpacked: {err.message}") from err
    if not same:
        raise ProofError("what was packed is unpacked to other bytes")
    return packed


def _packed(sources: Sequence[Source], *, stored: bool) -> Packed:
    entries: list[Entry] = []
    payload: list[bytes] = []
    parts: dict[str, tuple[Travelled, ...]] = {}
    for source in sources:
        entry, coded, travelled = _file(source, stored=stored)
        entries.append(entry)
        payload += coded
        parts[source.name] = travelled
    return Packed(write(entries, payload), parts)


def _file(source: Source, *, stored: bool) -> tuple[Entry, list[bytes], tuple[Travelled, ...]]:
    """Its entry, its payload, and what to tell about it."""
    data = np.frombuffer(source.content, np.uint8)
    known = _known(source.streams)
    parts: list[Part] = []
    payload: list[bytes] = []
    travelled: list[Travelled] = []
    rest: list[Array] = []
    end = 0
    for span in [] if stored else apart(source.spans, len(data))[: MAX_PARTS // 2 - 1]:
        tensor = data[span.offset : span.offset + span.size_bytes]
        part, coded = _coded(tensor, span, known)
        if part is None:
            continue
        if span.offset > end:
            parts.append(Part(REST, span.offset - end, 0))
            rest.append(data[end : span.offset])
        parts.append(part)
        payload.append(coded)
        travelled.append(Travelled(span.name, part.codec, part.size, part.coded))
        end = span.offset + span.size_bytes
    if end < len(data):
        parts.append(Part(REST, len(data) - end, 0))
        rest.append(data[end:])
    together = b"".join(piece.tobytes() for piece in rest)
    squeezed = zstd(together)
    kind, coded_rest = (STORED, together) if stored or len(squeezed) >= len(together) else (ZSTD, squeezed)
    digest = hashlib.sha256(source.content).hexdigest()
    entry = Entry(source.name, len(data), digest, kind, len(coded_rest), tuple(parts))
    travelled.append(Travelled("", kind, len(together), len(coded_rest)))
    return entry, [coded_rest, *payload], tuple(travelled)


def _coded(tensor: Array, span: Span, known: Mapping[bytes, _Known]) -> tuple[Part | None, bytes]:
    """The smallest way to code a tensor, or None if it is better off with the rest."""
    size = len(tensor)
    if size < SMALLEST_BYTES:
        return None, b""
    options = _options(tensor, span)
    best = min(options, key=lambda option: option[0])
    found = known.get(hashlib.sha256(tensor.tobytes()).digest()) if known and span.bits == 8 else None
    if found is not None and len(found.stream[1]) < best[0]:
        rows, columns = found.stream[0].shape
        data = found.stream[1]
        return Part(JPEG, size, len(data), (rows, columns, int(found.transposed), found.flip)), data
    _, codec, parameter = best
    if codec == REST:
        return None, b""
    coded = CODECS[codec].encode(tensor, parameter)
    return Part(codec, size, len(coded), (parameter,)), coded


def _options(tensor: Array, span: Span) -> list[tuple[float, str, int]]:
    """(bytes, codec, its parameter) of all that fit, as estimated: exactly for the range coder, else from a sample."""
    sample = _sample(tensor)
    scale = len(tensor) / len(sample)
    options: list[tuple[float, str, int]] = [(scale * min(len(zstd(sample)), len(sample)), REST, 0)]
    if span.bits > 8:
        width = span.bits // 8
        options.append((PART_BYTES + scale * len(zstd(planes(sample, width))), "planes", width))
        return options
    options.append((PART_BYTES + entropy.cost_bytes(tensor), "bytes", 0))
    options.append((PART_BYTES + entropy.cost_bytes(nibbles(tensor)), "nibbles", 0))
    if span.row_bytes > 1:
        delta = entropy.cost_bytes(differences(tensor, span.row_bytes))
        options.append((PART_BYTES + delta, "delta", span.row_bytes))
    return options


def _sample(tensor: Array) -> Array:
    """Enough of a tensor to know how it compresses, from its middle, whole numbers of up to 8 bytes."""
    if len(tensor) <= SAMPLE_BYTES:
        return tensor
    start = (len(tensor) - SAMPLE_BYTES) // 16 * 8
    return tensor[start : start + SAMPLE_BYTES]


def _known(streams: Sequence[JpegStream]) -> dict[bytes, _Known]:
    """By the SHA-256 of a tensor's bytes. Streams that do not give their codes on this machine are left out."""
    if not streams:
        return {}
    from edgepack.transport import mosaic

    found = {}
    for stream in streams:
        codes, data = stream
        if not np.array_equal(mosaic.decode(data, codes.shape), codes):
            continue
        for transposed in (False, True):
            for flip in (0, 128):
                found[hashlib.sha256(laid(codes, transposed, flip)).digest()] = _Known(stream, transposed, flip)
    return found
