"""Text of files that is code in some language: whatever a door makes of it, none of it runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import EdgepackError
from tests.fuzz.parsers import PARSERS, Parser

PAYLOADS = (
    b"__import__('os').system('touch {canary}')",
    b"'); __import__('os').system('touch {canary}'); ('",
    b"\n    __import__('os').system('touch {canary}')\n#",
    b"{__import__('os').system('touch {canary}')}",
    b"!!python/object/apply:os.system ['touch {canary}']",
    b"$(touch {canary}) `touch {canary}`; touch {canary}",
    b"cos\nsystem\n(S'touch {canary}'\ntR.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch {canary}\x85R.",
    b"-oProxyCommand=touch {canary}",
)
STRANGERS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "ctypes.dlopen")
"""Audit events of code that runs a program or loads a library."""
MOST = 20
"""Places of a file where each payload is put, at most."""

_heard: list[str] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is not None and event in STRANGERS:
        _heard.append(f"{event} {arguments!r}"[:200])


sys.addaudithook(_hear)


@contextmanager
def listening() -> Iterator[list[str]]:
    """What ran meanwhile."""
    global _heard
    _heard = []
    try:
        yield _heard
    finally:
        _heard = None


def armed(content: bytes, payload: bytes) -> Iterator[bytes]:
    """The content with a payload in the place of each of its words, and as a whole."""
    yield payload
    words = list(re.finditer(rb"[\w./+-]{2,}", content))
    for word in words[:: max(len(words) // MOST, 1)]:
        yield content[: word.start()] + payload + content[word.end() :]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_nothing_of_a_file_runs(tmp_path: Path, parser: Parser) -> None:
    canary, path = tmp_path / "CANARY", tmp_path / "in" / parser.file
    path.parent.mkdir(parents=True)
    seed = parser.seeds()[0]
    path.write_bytes(parser.wrap(seed))
    parser.parse(path)  # whatever is imported for it, and loads libraries, is there then
    few = max(int(len(PAYLOADS) * parser.share * 10), 1)
    with listening() as heard:
        for payload in PAYLOADS[:few]:
            for content in armed(seed, payload.replace(b"{canary}", str(canary).encode())):
                path.write_bytes(parser.wrap(content))
                with suppress(EdgepackError):
                    parser.parse(path)
    assert not heard
    assert not canary.exists()


def test_a_canary_would_be_heard(tmp_path: Path) -> None:
    canary = tmp_path / "CANARY"
    with listening() as heard:
        eval(PAYLOADS[0].decode().replace("{canary}", str(canary)))
    assert canary.exists()
    assert heard
