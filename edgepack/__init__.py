"""edgepack: trained networks as two thin matmuls a layer, small and fast on cheap CPUs.

    import edgepack as ep

    pack = ep.build("model.onnx", target="rpi4", data="samples.npz", max_drop=0.5)
    pack["onnx"].path, pack["onnx"].drop, pack.warnings

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "bench": "edgepack.api.bench",
    "build": "edgepack.api.build",
    "compare": "edgepack.api.bench",
    "compress": "edgepack.api.compress",
    "inspect": "edgepack.api.inspect",
    "open_pack": "edgepack.api.results",
    "load_target": "edgepack.api.target",
    "register_method": "edgepack.methods.registry",
    "BuildOptions": "edgepack.pipeline.options",
    "Comparison": "edgepack.api.results",
    "Inspection": "edgepack.api.results",
    "OperatorInspection": "edgepack.api.results",
    "Pack": "edgepack.api.results",
    "Packs": "edgepack.api.results",
    "Recipe": "edgepack.model.types",
    "Target": "edgepack.targets.target",
    "errors": "edgepack.errors",
}

__all__ = [
    "BuildOptions",
    "Comparison",
    "Inspection",
    "OperatorInspection",
    "Pack",
    "Packs",
    "Recipe",
    "Target",
    "bench",
    "build",
    "compare",
    "compress",
    "errors",
    "inspect",
    "load_target",
    "open_pack",
    "register_method",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'edgepack' has no attribute {name!r}")
    place = import_module(_PLACES[name])
    return place if name == "errors" else getattr(place, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
