"""JSON files of costs, read as if a stranger had sent them: bounded, typed, and then judged by their owner."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from edgepack.errors import InputError

Read = TypeVar("Read")
_TEXT = re.compile(r"[ -~]{1,200}")


def printable(text: str) -> bool:
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
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as err:
        raise InputError(f"{path}: cannot read the {what}: {err.strerror}") from err
    if len(raw) > max_bytes:
        raise InputError(f"{path}: a {what} of over {max_bytes >> 20} MiB, more than edgepack ever writes")
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
