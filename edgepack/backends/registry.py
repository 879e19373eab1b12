"""The backends by format. Their code is imported when it is asked for, what is data of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec

from edgepack.backends.backend import Backend
from edgepack.backends.facts import Facts
from edgepack.backends.onnx.facts import FACTS as ONNX
from edgepack.backends.tflite.facts import FACTS as TFLITE
from edgepack.model.scheme import Format

FACTS: Mapping[Format, Facts] = {"onnx": ONNX, "tflite": TFLITE}


@cache
def backend(fmt: Format) -> Backend:
    """The backend of a format."""
    match fmt:
        case "onnx":
            from edgepack.backends.onnx.backend import OnnxBackend

            return OnnxBackend()
        case "tflite":
            from edgepack.backends.tflite.backend import TfliteBackend

            return TfliteBackend()


def missing_for(fmt: Format, native: Format | None) -> tuple[str, ...]:
    """The packages that writing this format takes and that are not installed; nothing is imported.

    Args:
        fmt: to write.
        native: of the model, where it is a file; None for a torch program.
    """
    facts = FACTS[fmt]
    converter = () if native is None else facts.converters.get(native, ())
    return missing((*facts.packages, *converter))


def missing(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are not installed, by a module of the same name. Nothing is imported."""
    return tuple(name for name in packages if find_spec(name.replace("-", "_")) is None)
