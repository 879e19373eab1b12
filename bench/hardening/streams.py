"""Streams that take nothing, and terminals of few letters; these start the installed command in a shell."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from hardening.case import Case
from hardening.things import Things

STREAMS = {
    "no stdout": ">&-",
    "no stderr": "2>&-",
    "no stream": "<&- >&- 2>&-",
    "full": ">/dev/full",
    "both full": ">/dev/full 2>&1",
    "errors full": "2>/dev/full",
    "reader left": "| true",
    "reader reads little": "| head -c 1",
    "read-only": ">&0",
}
ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PLACES = {
    "LANG=C": {"LC_ALL": "C"},
    "ascii": {**ASCII, "PYTHONIOENCODING": "ascii"},
    "latin1": {"PYTHONIOENCODING": "latin1"},
    "locale ascii": ASCII,
    "one column": {"COLUMNS": "1"},
    "no columns": {"COLUMNS": "0"},
    "columns of text": {"COLUMNS": "x"},
    "dumb": {"TERM": "dumb"},
    "unknown terminal": {"TERM": "\x1b"},
    "no home": {"HOME": ""},
    "home nowhere": {"HOME": "/nowhere"},
    "cache nowhere": {"EDGEPACK_CACHE": "/proc/nowhere"},
    "cache a file": {"EDGEPACK_CACHE": "/etc/passwd"},
    "limit of text": {"EDGEPACK_LIMIT_S": "soon"},
    "no temporary folder": {"TMPDIR": "/nowhere"},
}


def wrong_streams(things: Things) -> Iterator[Case]:
    """All of them."""
    commands = {
        "help": ("--help",),
        "list": ("targets", "list"),
        "json": ("targets", "list", "--json"),
        "inspect": ("inspect", str(things.onnx)),
        "error": ("inspect", "missing.onnx"),
        "mistake": ("bulid",),
        "compare": ("compare", str(things.pack)),
    }
    for (name, shell), (of, command) in product(STREAMS.items(), commands.items()):
        yield Case("streams", f"{of} {name}", command, shell)
    for (name, environment), of in product(PLACES.items(), ("list", "inspect")):
        yield Case("streams", f"{of} {name}", commands[of], "", environment)
