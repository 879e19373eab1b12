"""Where the command line writes: streams that are closed, full, left by their reader, or of few letters."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from typing import TextIO

from edgepack.errors import OutputError

READER_LEFT = 141
"""Exit code where nobody reads the output any more: that of a process which SIGPIPE ends."""
_ERRORS = "edgepack.plain"
_PLAIN = {
    **dict.fromkeys("\u2500\u2501\u2504\u2574\u2013\u2014\u2011\u2212", "-"),
    **dict.fromkeys("\u2502\u2503\u2506", "|"),
    **dict.fromkeys(map(chr, (*range(0x250C, 0x2574), *range(0x2578, 0x257C))), "+"),
    "\u00d7": "x", "\u2026": "...", "\u00b5": "u", "\u03bc": "u", "\u2265": ">=", "\u2264": "<=", "\u2248": "~",
    "\u00b1": "+-", "\u00b0": " deg ", "\u00b7": "*", "\u00b2": "^2", "\u2192": "->", "\u2190": "<-", "\u00a0": " ",
    "\u202f": " ", "\u2009": " ", "\u2022": "*", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u03c3": "sigma",
    **{bar: str(height) for height, bar in enumerate("\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", 1)},
}  # fmt: skip
"""What is shown in the place of letters that a terminal lacks; others as Python escapes them."""


def prepare() -> tuple[TextIO, TextIO]:
    """Make the standard streams such that whatever is written to them can be: to be called before anything else.

    A stream that is closed is one to nowhere: its number would go to the next file that is opened.

    Returns:
        stdout and stderr, for `finish`.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    codecs.register_error(_ERRORS, _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)
    return sys.stdout, sys.stderr


def finish(streams: tuple[TextIO, TextIO], code: int) -> int:
    """Write what is left.

    Args:
        streams: of `prepare`.
        code: of the exit, where all could be written.

    Returns:
        That, or the code of what hindered it.
    """
    for stream in streams:
        try:
            stream.flush()
        except (OSError, ValueError) as err:  # a ValueError: somebody closed it
            _abandon(stream)
            code = code or failed(err)
    return code


def failed(err: OSError | ValueError) -> int:
    """Say that the output cannot be written, if that can be; the code of the exit."""
    if isinstance(err, BrokenPipeError):
        return READER_LEFT
    with suppress(OSError, ValueError):
        sys.stderr.write(f"error: the output cannot be written: {getattr(err, 'strerror', None) or err}\n")
    return OutputError.exit_code


def _abandon(stream: TextIO) -> None:
    """Leave what is still to be written, so that nothing is said of it when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.flush()


def _plain(err: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(err, UnicodeEncodeError):
        raise err
    letters = err.object[err.start : err.end]
    shown = "".join(_PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return shown, err.end
