"""Versions of the tools that shape a result: part of every cache key and of the manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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

TESTED_RUNTIMES: Mapping[str, str] = {"onnxruntime": "1.31.1", "ai-edge-litert": "2.3.0"}
"""The newest versions of the runtimes that the tests ran on; those of constraints.txt, which no wheel holds."""

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


def newest_tested(runtime: str, found: str) -> str | None:
    """The newest version of a runtime that the tests ran on, if the one that was found is newer; None if not.

    Args:
        runtime: name on PyPI.
        found: its version; what follows the numbers of a release is not compared.
    """
    tested = TESTED_RUNTIMES.get(runtime)
    return tested if tested is not None and _release(found) > _release(tested) else None


def _release(version: str) -> tuple[int, ...]:
    """`1.31.0rc1` → (1, 31): zeros at the end tell no releases apart."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    parts = [] if numbers is None else [int(part) for part in numbers[0].split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
