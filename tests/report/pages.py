"""Reports with everything in them that is drawn, without a build or a measurement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack.benchmark.results import BenchResult
from edgepack.benchmark.results_file import save_result
from edgepack.report.comparison import Compared, compare_packs, comparison_report
from edgepack.report.report import Report
from tests.benchmark.test_results import RESULT, block, variant
from tests.manifests import document

SIZES = {"edgepack": 51_200, "dense-fp32": 1_630_000, "dense-int8": 412_000}
SCORES = {"edgepack": 97.6, "dense-fp32": 98.0, "dense-int8": 97.9}
PATHS = {"edgepack": "model.onnx", "dense-fp32": "baseline/fp32.onnx", "dense-int8": "baseline/int8.onnx"}
LATENCY_S = {"edgepack": 5e-6, "dense-fp32": 60e-6, "dense-int8": 20e-6}


def drop(score: float) -> dict[str, Any]:
    return {
        "metric": "accuracy", "dense": 98.0, "emitted": score, "drop": 98.0 - score, "bound": 98.2 - score,
        "confidence": 0.9, "standard_error": 0.05, "samples": 1334, "output": 0,
    }  # fmt: skip


def weighed(structure: str, rank: int | None, size_bytes: int, latency_s: float) -> dict[str, Any]:
    return {
        "scheme": "int8-dynamic", "structure": structure, "rank": rank, "loss": 0.1, "size_bytes": size_bytes,
        "ram_bytes": 9, "latency_s": latency_s, "source": "emulated cost table", "alternative": None,
    }  # fmt: skip


LAYER: dict[str, Any] = {
    "layer": "fc1", "out_features": 512, "in_features": 784, "rank": 24, "break_even_rank": 309,
    "scheme": "int8-dynamic", "reason": "rank 24 int8-dynamic: 6.1× faster than dense int8-dynamic, as it says here",
    "predicted": weighed("low-rank", 24, 31_000, 4e-6), "others": [weighed("dense", None, 402_000, 19e-6)],
    "lost_shares": {"truncation": 0.008, "rounding": 0.002, "latent": 1e-5},
}  # fmt: skip


def manifest(name: str) -> dict[str, Any]:
    files: dict[str, Any] = {
        path: {
            "scheme": "int8-dynamic", "size_bytes": SIZES[variant], "metric": SCORES[variant],
            "scored_on": "confirmation", "confirmation": drop(SCORES[variant]), "validation": drop(SCORES[variant]),
        }
        for variant, path in PATHS.items()
    }  # fmt: skip
    files["model.onnx"]["layers"] = [LAYER, LAYER | {"layer": "fc2", "rank": None}]
    trials = [
        {
            "format": "onnx", "scheme": "int8-dynamic", "size_bytes": 40_000 + 1000 * step, "predicted_latency_s": 4e-6,
            "predicted_loss": 0.1, "weight_parameters": 9, "ranks": {"fc1": 8 + step}, "drop": drop(97.0 + step / 10),
        }
        for step in range(6)
    ]  # fmt: skip
    return document({"model": {"name": name}, "files": files, "trials": trials})


def result(name: str) -> BenchResult:
    """Six processes a file."""
    variants = tuple(
        replace(
            variant(
                each,
                *(
                    block(*(LATENCY_S[each] * (1 + 0.01 * step + 0.001 * turn) for step in range(9)))
                    for turn in range(6)
                ),
            ),
            file=PATHS[each],
            size_bytes=SIZES[each],
        )
        for each in PATHS
    )
    return replace(RESULT, conditions=replace(RESULT.conditions, model=name), variants=variants)


def benched_pack(folder: Path, name: str = "mnist-mlp") -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest(name)))
    save_result(result(name), folder / "results" / RESULT.file_name)
    return folder


def compared(folder: Path) -> Compared:
    return compare_packs([benched_pack(folder / "pack")])


def large_report(one: Compared, packs: int) -> Report:
    """As many packs, each for a target of its own."""
    rows = [replace(row, target=f"board-{number}") for number in range(packs) for row in one.rows]
    return comparison_report(rows, (), (), one.sources * packs)
