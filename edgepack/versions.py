"""Versions of the tools that shape a result: part of every cache key and of the manifest."""

from __future__ import annotations

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
    "ai-edge-quantizer",
    "pnnx",
)


def tool_versions() -> dict[str, str]:
    """Version of edgepack and of each installed tool; absent tools are left out."""
    found = {"edgepack": edgepack.__version__}
    for tool in TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found
