"""By how much a figure may exceed the base's: `check:` in `edgepack.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from edgepack.errors import InputError

MOST_DROP = 1e300
"""Of a metric, in its unit: what any number of a file can be turned into."""
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)


@dataclass(frozen=True)
class Thresholds:
    """The largest growth that is no finding.

    Attributes:
        size, instructions, misses: shares of the base's; counts of a file as a whole and of each of its layers.
        drop: in the metric's unit.
        latency: share of the base's median, by which all of the interval has to be slower.
    """

    size: float = 0.01
    instructions: float = 0.01
    misses: float = 0.03
    drop: float = 0.5
    latency: float = 0.1

    def in_words(self) -> dict[str, str | float]:
        """As `edgepack.yaml` has them: shares in percent."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value if name == "drop" else f"{100 * value:g}%" for name, value in named.items()}


STANDARD = Thresholds()


def parse_thresholds(given: Any, where: str) -> Thresholds:
    """Thresholds, those that are not given as they are by default.

    Args:
        given: of the file: shares as `2%`, the drop as a number.
        where: it stands, for messages.

    Raises:
        InputError: no mapping, a name that is none, or a value that makes no sense.
    """
    names = [one.name for one in fields(Thresholds)]
    if not isinstance(given, Mapping):
        hint = f"write it as {{{', '.join(f'{key}: {value}' for key, value in STANDARD.in_words().items())}}}"
        raise InputError(f"{where}: found {type(given).__name__}, expected thresholds by name", hint=hint)
    found: dict[str, float] = {}
    for name, value in given.items():
        if name not in names:
            close = get_close_matches(str(name), names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
            raise InputError(f"{where}: {str(name)[:40]!r} is no threshold", hint=hint)
        found[name] = _drop(value, where) if name == "drop" else _share(name, value, where)
    return replace(STANDARD, **found)


def _share(name: str, value: Any, where: str) -> float:
    match = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise InputError(f"{where}: {name}: found {str(value)[:40]!r}, expected a share such as 2%")
    return float(match[1]) / 100


def _drop(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_DROP:
        raise InputError(
            f"{where}: drop: found {str(value)[:40]!r}, expected a number in the metric's unit, such as 0.5"
        )
    return float(value)
