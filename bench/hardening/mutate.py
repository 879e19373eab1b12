"""Wrong bytes out of sound ones."""

from __future__ import annotations

import random
import re

_EXTREME_BYTES = (b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x07", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\0")
_NUMBERS = (
    b"-1",
    b"0",
    b"1e400",
    b"-0.0",
    b"NaN",
    b"9" * 400,
    b"2147483647",
    b"1152921504606846976",
    b"true",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"1e308",
    b"0.5",
    b"",
)
_TEXTS = (
    b'""',
    b'"\\u001b[2J"',
    b'"../../x"',
    b"[[[]]]",
    b"7",
    b"null",
    b"\"__import__('os')\"",
    b'"\\ud800"',
    b"{}",
    b"'",
    b'"',
)
_NUMBER, _TEXT = re.compile(rb"-?[0-9]+(\.[0-9]+)?"), re.compile(rb"\"[^\"]{0,80}\"|'[^']{0,80}'")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or put in, lengths of protobuf and of flatbuffers among them; or numbers and
    texts of a document by others."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, size = rng.randrange(len(found)), rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(8):
            case 0:
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at : at + size] = rng.randbytes(size)
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = found[at : at + size]
            case 4:
                value = rng.choice(_EXTREME_BYTES)
                found[at : at + len(value)] = value
            case 5:
                _replaced(found, _NUMBER, rng.choice(_NUMBERS), at)
            case 6:
                _replaced(found, _TEXT, rng.choice(_TEXTS), at)
            case _:
                if rng.random() < 0.3:
                    del found[at:]
        if not found:
            found = bytearray(b"\0")
    return bytes(found)


def _replaced(content: bytearray, form: re.Pattern[bytes], by: bytes, start: int) -> None:
    """The first that is found from a place on."""
    found = form.search(content, start)
    if found is not None:
        content[found.start() : found.end()] = by
