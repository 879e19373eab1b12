"""Values from outside, held against their types: a device or a file is trusted no more than a stranger."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from edgepack.errors import InputError
from edgepack.sealed import is_whole_json

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter

STRICT: dict[str, Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False, "str_max_length": 1000}
# Names end up in tables and terminals: no control characters, and none that turn the writing direction round.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_Made = TypeVar("_Made")

Read = TypeVar("Read")
_TEXT = re.compile(r"[ -~]{1,200}")


def checked(made: _Made) -> _Made:
    """A dataclass that was filled with values from a device, if there is nothing in it but what its types say.

    Raises:
        ValueError: a value has another type, is not finite or too long, or a text holds control characters.
    """
    from pydantic import ValidationError

    try:
        _schema(cast(Any, type(made))).validate_json(json.dumps([asdict(cast(Any, made))]))
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}") from err
    if not printable(made):
        raise ValueError("a text holds control characters")
    return made


def printable(value: Any) -> bool:
    """Whether no text in a dataclass, mapping or sequence holds characters that a terminal obeys."""
    if isinstance(value, str):
        return _UNPRINTABLE.search(value) is None
    if isinstance(value, Mapping):
        return all(printable(key) and printable(item) for key, item in value.items())
    if isinstance(value, Sequence):
        return all(map(printable, value))
    if is_dataclass(value):
        return all(printable(getattr(value, part.name)) for part in fields(value))
    return True


def plain_text(text: str, most: int = 1000) -> str:
    """A stranger's words for a message or a table: without characters that a terminal obeys, bounded, on one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def plain_lines(text: str, most: int = 20_000) -> str:
    """The same of several lines."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text[:most])


@cache
def _schema(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    # A tuple around it: a dataclass that stands alone takes no configuration from outside, one within a type does.
    return TypeAdapter(tuple[kind], config=cast("ConfigDict", STRICT))


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a file, one more than `most` where it has more.

    Raises:
        OSError: it cannot be read, or is a pipe or socket, whose other side may never write.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        kind = os.fstat(file.fileno()).st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
            raise OSError(errno.EINVAL, "a pipe, where a file was expected", str(path))
        return file.read(most + 1)


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def plain_ascii(text: str) -> bool:
    """Whether a name or note is printable ASCII of a sane length: it ends up in manifests and on terminals."""
    return _TEXT.fullmatch(text) is not None


def read_json(
    path: Path, kind: type[Read], what: str, max_bytes: int, problems: Callable[[Read], Iterator[str]]
) -> Read:
    """A dataclass from a JSON file.

    Args:
        path: of the file.
        kind: the dataclass.
        what: the kind of file, for messages: `cost table`.
        max_bytes: of the file; far more than edgepack writes.
        problems: gives what the types allow and no such file holds.

    Raises:
        InputError: missing, too large, not JSON, of another shape, or with values that cannot be.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        raw = read_bounded(path, max_bytes)
    except OSError as err:
        raise InputError(f"{path}: cannot read the {what}: {err.strerror}") from err
    if len(raw) > max_bytes:
        raise InputError(f"{path}: a {what} of over {max_bytes >> 20} MiB, more than edgepack ever writes")
    if not is_whole_json(raw):
        raise InputError(
            f"{path}: the {what} is damaged: its SHA-256 is another than when it was written", hint="remove it"
        )
    try:
        found = TypeAdapter(kind).validate_json(raw)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: not a {what} of this edgepack: {where}: {first['msg']}") from err
    problem = next(problems(found), None)
    if problem is not None:
        raise InputError(f"{path}: {problem}", hint="the file is damaged: remove it")
    return found
