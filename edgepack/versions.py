"""Versions of the tools that shape a result: part of every cache key and of the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import edgepack

TOOLS = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "torch",
    "litert-torch",
    "ai-edge-litert",
    "litert-quantizer",
    "pnnx",
)


FITTERS = ("numpy", "scipy", "scikit-learn", "pillow")
"""What the fits of methods other than factorizers depend on."""


def tool_versions(tools: Sequence[str] = TOOLS) -> dict[str, str]:
    """Version of edgepack and of each installed tool; absent tools are left out."""
    found = {"edgepack": edgepack.__version__}
    for tool in tools:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found
