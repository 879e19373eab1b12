"""The optional packages behind the file formats, and the command that installs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec

from edgepack.model.scheme import Format

NAMES: Mapping[Format, str] = {"onnx": "ONNX", "tflite": "TFLite"}
"""What people call the formats."""

INSTALL: Mapping[Format, str] = {"onnx": "pip install edgepack", "tflite": "pip install 'edgepack[tflite]'"}

_PACKAGES: Mapping[Format, tuple[str, ...]] = {
    "onnx": (),
    "tflite": ("torch", "litert-torch", "litert-quantizer", "ai-edge-litert"),
}
_FROM_ONNX: Mapping[Format, tuple[str, ...]] = {"onnx": (), "tflite": ("pnnx",)}


def missing_for(fmt: Format, *, from_onnx: bool) -> tuple[str, ...]:
    """The packages that writing this format takes and that are not installed.

    Args:
        from_onnx: whether the source is an ONNX file, not a torch program.
    """
    return missing(_PACKAGES[fmt] + (_FROM_ONNX[fmt] if from_onnx else ()))


def missing(packages: Iterable[str]) -> tuple[str, ...]:
    """Those that are not installed, by a module of the same name. Nothing is imported."""
    return tuple(name for name in packages if find_spec(name.replace("-", "_")) is None)
