"""The backends by format, each in the folder of that name: `FACTS` in its `facts`, `BACKEND` in its `backend`.

What is data of them is imported at once, their code when it is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from edgepack.backends.facts import Facts
from edgepack.backends.onnx.facts import FACTS as ONNX
from edgepack.backends.tflite.facts import FACTS as TFLITE
from edgepack.model.model import NativeName
from edgepack.model.scheme import Format
from edgepack.workspace import TOOLS as OWN_TOOLS

if TYPE_CHECKING:
    from edgepack.backends.backend import Backend

FACTS: Mapping[Format, Facts] = {"onnx": ONNX, "tflite": TFLITE}

FORMATS: tuple[Format, ...] = tuple(FACTS)
RUNTIMES: tuple[str, ...] = tuple(runtime for facts in FACTS.values() for runtime in facts.runtimes)
"""Of all formats, by their names on PyPI."""
TOOLS: tuple[str, ...] = tuple(dict.fromkeys(itertools.chain(OWN_TOOLS, *(facts.purposes for facts in FACTS.values()))))
"""Tools whose versions shape the files that are written, and what these answer."""

if TYPE_CHECKING:
    KnownFormat: TypeAlias = Format
    KnownRuntime: TypeAlias = str
else:
    KnownFormat = Literal[FORMATS]
    KnownRuntime = Literal[RUNTIMES]
# What pydantic holds a name against that comes from outside.


@cache
def backend(fmt: Format) -> Backend:
    """The backend of a format.

    Raises:
        KeyError: there is none.
    """
    if fmt not in FACTS:
        raise KeyError(fmt)
    return cast("Backend", import_module(f"edgepack.backends.{fmt}.backend").BACKEND)


def missing_for(fmt: Format, native: NativeName) -> tuple[str, ...]:
    """The packages that writing this format takes and that are not installed; nothing is imported.

    Args:
        fmt: to write.
        native: what the model is by itself.
    """
    facts = FACTS[fmt]
    return missing((*facts.packages, *facts.converters.get(native, ())))


def missing(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are not installed, by a module of the same name. Nothing is imported."""
    return tuple(name for name in packages if find_spec(name.replace("-", "_")) is None)
