"""Strict checks of values from outside: what a device answers is trusted no more than a stranger's file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter

STRICT: dict[str, Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False, "str_max_length": 1000}
# Names end up in tables and terminals: no control characters, and none that turn the writing direction round.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_Made = TypeVar("_Made")


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


@cache
def _schema(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    # A tuple around it: a dataclass that stands alone takes no configuration from outside, one within a type does.
    return TypeAdapter(tuple[kind], config=cast("ConfigDict", STRICT))
