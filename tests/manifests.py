"""Whole manifests from the few fields that a test is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.pack.manifest import Manifest, parse_manifest

TOP: dict[str, Any] = {
    "schema_version": 1,
    "model": {"name": "mnist-mlp", "source": "mnist.py:recipe", "kind": "recipe", "sha256": "ab" * 32},
    "target": {"name": "rpi4"},
    "options": {
        "rank": "auto", "precision": "auto", "refit": False, "max_drop": 0.5, "formats": ["onnx"],
        "max_size_bytes": None, "max_memory_bytes": None, "max_latency_s": None, "pick": [], "distill": None,
        "largest_onnx_weight_code": 127, "keep": None, "only": None,
    },
    "seed": 0,
    "versions": {"edgepack": "0.1"},
    "method": "whitened",
    "cross_validation": None,
    "loss_weighted_by": "output energy",
    "cost_sources": {"onnx": "emulated cost table"},
    "metric": {"name": "accuracy", "why": "labels", "validated": True, "outputs": []},
    "data": {
        "origin": "recipe", "calibration_samples": 512, "validation_samples": 256, "confirmation_samples": 256,
        "labelled": True, "split_seed": 0,
    },
    "trials": [],
    "files": {},
    "latency_s": {},
    "budget_met": True,
    "warnings": [],
}  # fmt: skip
FILE: dict[str, Any] = {
    "sha256": "cd" * 32, "validation": None, "confirmation": None, "test": None, "metric": None, "scored_on": None,
    "format": "onnx",
}  # fmt: skip
PACKED: dict[str, Any] = {
    "scheme_chosen_by": "emulated cost table", "distillation": None, "matrix_parameters": 30_000,
    "matrix_parameters_share": 0.1, "proofs": {"same-outputs": {"passed": True, "detail": "84 dB"}},
}  # fmt: skip
LAYER: dict[str, Any] = {
    "break_even_rank": 9, "lost_energy_share": 0.01, "scheme": None, "predicted": None, "others": [],
    "alternative": None, "lost_shares": None,
}  # fmt: skip
PREDICTED: dict[str, Any] = {
    "scheme": "int8-dynamic", "structure": "low-rank", "rank": 24, "ram_bytes": 100_000,
    "source": "emulated cost table", "alternative": None,
}  # fmt: skip


def document(few: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON document: what is not given has some value that is right."""
    whole = {**TOP, **few}
    for name in ("model", "target", "metric", "data"):
        whole[name] = {**TOP[name], **whole[name]}
    whole["files"] = {name: _file(entry) for name, entry in whole["files"].items()}
    return whole


def whole(few: Mapping[str, Any]) -> Manifest:
    """The same as a manifest."""
    return parse_manifest(document(few), Path("some/pack"))


def _file(few: Mapping[str, Any]) -> dict[str, Any]:
    if "layers" not in few:
        return {**FILE, **few}
    return {**FILE, **PACKED, **few, "layers": [layer(one) for one in few["layers"]]}


def layer(few: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's entry."""
    rank, sides = few["rank"], (few["out_features"], few["in_features"])
    known = {
        "structure": "dense" if rank is None else "low-rank",
        "weight_parameters": sides[0] * sides[1] if rank is None else rank * sum(sides),
    }
    entry = {**LAYER, **known, **few}
    if entry["predicted"] is not None:
        entry["predicted"] = {**PREDICTED, **entry["predicted"]}
    if entry["lost_shares"] is not None:
        entry["lost_shares"] = {"offset": 0.0, "cross": -1e-9, "total": 0.009, **entry["lost_shares"]}
    return entry
