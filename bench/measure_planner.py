"""What the planner makes of three models for this machine, how fast it solves, and how well it predicts losses."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import Case, cases
from latencies import measure_files
from measure_loss_order import measure_loss_order
from measure_mnist import QUICK, SCHEDULE
from measure_solver import measure_solver

from edgepack import BuildOptions, load_target
from edgepack.backends.registry import FORMATS
from edgepack.benchmark.pack import pack_variants
from edgepack.model.scheme import Format
from edgepack.pack.folder import EXAMPLE
from edgepack.pack.manifest import file_path
from edgepack.pipeline.build import build
from edgepack.targets.target import HOST
from edgepack.workspace import Cache

NAMES = ("mnist", "magika", "minilm")
SEARCH_MINUTES, QUICK_SEARCH_MINUTES = 4.0, 1.0
LOST_FORMAT = "no TFLite file"


def measure(*, quick: bool = False, names: Sequence[str] = NAMES) -> dict[str, Any]:
    """Every model built and measured, then the solver, then the order of plans by predicted loss."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        found = [measure_case(case, Path(folder) / case.name, quick=quick) for case in cases(names, Path(folder))]
        return {
            "target": HOST,
            "quick": quick,
            "threads": found[0]["threads"],
            "schedule": found[0]["schedule"],
            "models": [one["model"] for one in found],
            "rows": [row for one in found for row in one["rows"]],
            "solver": measure_solver(quick=quick),
            "loss_order": measure_loss_order([name for name in names if name != "magika"], quick=quick),
        }


def measure_case(case: Case, work: Path, *, quick: bool = False) -> dict[str, Any]:
    """One model built with an empty cache, then its files in turns in one session; `rows` holds a row per format."""
    target, out = load_target(HOST), work / "pack"
    options = BuildOptions(
        model=case.model,
        target=target,
        data=case.data,
        test=case.test,
        max_drop=case.max_drop,
        time_limit_s=60 * (QUICK_SEARCH_MINUTES if quick else SEARCH_MINUTES),
        out=out,
    )
    start = time.perf_counter()
    manifest = build(options, cache=Cache(work / "cache")).manifest.record()
    build_s = time.perf_counter() - start
    schedule = replace(QUICK if quick else SCHEDULE, cold_processes=1, cold_runs=1)
    variants = pack_variants(out, target)
    measured = measure_files(variants, schedule, model=case.name, inputs=out / EXAMPLE)
    files: dict[str, dict[str, Any]] = {}
    for variant, row in zip(variants, measured["rows"], strict=True):
        files.setdefault(variant.format, {})[variant.name] = row
    model = {
        "name": case.name,
        "metric": manifest["metric"]["name"],
        "max_drop": case.max_drop,
        "validation_samples": manifest["data"]["validation_samples"],
        "loss_weighted_by": manifest["loss_weighted_by"],
        "build_s": round(build_s, 1),
        "lost_formats": [warning for warning in manifest["warnings"] if warning.startswith(LOST_FORMAT)],
    }
    rows = [_row(case.name, fmt, manifest, files[fmt]) for fmt in FORMATS if fmt in files]
    return {"model": model, "rows": rows, "threads": measured["threads"], "schedule": measured["schedule"]}


def _row(name: str, fmt: Format, manifest: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    """A format of a model: what the plan is, what it costs in accuracy, and the three files' sizes and latencies."""
    entry, int8, fp32 = (manifest["files"][file_path(name, fmt)] for name in ("edgepack", "dense-int8", "dense-fp32"))
    layers = entry["layers"]
    schemes = Counter(layer["scheme"] or entry["scheme"] for layer in layers)
    dense = [layer for layer in layers if layer["rank"] is None]
    return {
        "model": name,
        "format": fmt,
        "form": entry["scheme"],
        "forms": dict(schemes.most_common()),
        "layers": len(layers),
        "factored": len(layers) - len(dense),
        "dense_reason": commonest([layer["reason"] for layer in dense]),
        "validation_drop": round(entry["validation"]["drop"], 6),
        "int8_drop": round(int8["validation"]["drop"], 6),
        "test_drop": None if entry["test"] is None else round(fp32["test"] - entry["test"], 6),
        "trials": sum(plan_trial["format"] == fmt for plan_trial in manifest["trials"]),
        "cost_source": manifest["cost_sources"][fmt],
        "chosen_by": entry["scheme_chosen_by"],
        "files": dict(files),
    }


def commonest(reasons: Sequence[str]) -> dict[str, Any] | None:
    """The reason that most layers have, whatever its figures: how many layers, and the first of them word for word."""
    if not reasons:
        return None
    kinds = [re.sub(r"\d+(\.\d+)?", "#", reason) for reason in reasons]
    kind, layers = Counter(kinds).most_common(1)[0]
    return {"layers": layers, "reason": reasons[kinds.index(kind)]}
