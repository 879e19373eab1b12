"""The MNIST MLP as a pack for this machine, in both formats, against its dense fp32 and dense int8 baselines."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latencies import measure_files

import edgepack as ep
from edgepack.benchmark.pack import pack_variants
from edgepack.benchmark.schedule import Schedule
from edgepack.benchmark.session import Variant
from edgepack.pack.manifest import file_path

MODEL = f"{Path(__file__).parent / 'models' / 'mnist_mlp.py'}:recipe"
MAX_DROP = 0.3

SCHEDULE = Schedule(
    processes=6,
    warmup_runs=5,
    warmup_s=0.1,
    runs=100,
    seconds=0.3,
    cold_processes=3,
    cold_runs=20,
    memory_processes=1,
    counter_runs=100,
    retries=1,
)
QUICK = Schedule(
    processes=4,
    warmup_runs=3,
    warmup_s=0.05,
    runs=20,
    seconds=0.1,
    cold_processes=1,
    cold_runs=12,
    memory_processes=1,
    counter_runs=20,
    retries=0,
)


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Build the pack and measure it."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        return measure_pack(Path(folder) / "pack", quick=quick)


def measure_pack(out: Path, *, quick: bool = False) -> dict[str, Any]:
    """Build the pack in a folder, then measure its files in turns; `rows` holds a row per file."""
    target = ep.load_target("host")
    pack = ep.build(MODEL, target, max_drop=MAX_DROP, out=out, progress=False)
    manifest = pack.manifest.record()
    variants = pack_variants(out, target)
    schedule = QUICK if quick else SCHEDULE
    measured = measure_files(variants, schedule, model="mnist-mlp", inputs=pack.example_inputs, cold=True)
    rows = zip(variants, measured.pop("rows"), strict=True)
    return {
        "max_drop": MAX_DROP,
        "validation_samples": manifest["data"]["validation_samples"],
        "quick": quick,
        **measured,
        "rows": [{**_facts(manifest, variant), **row} for variant, row in rows],
    }


def _facts(manifest: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """What the build knows of a file: its scheme, what it keeps of the weights, its accuracy on test and validation."""
    entry = manifest["files"][file_path(variant.name, variant.format)]
    dense = manifest["files"][file_path("dense-fp32", variant.format)]
    return {
        "variant": variant.name,
        "form": entry["scheme"],
        "parameters_share": entry.get("matrix_parameters_share", 1.0),
        "test_accuracy": round(entry["test"], 6),
        "test_drop": round(dense["test"] - entry["test"], 6),
        "validation_drop": round(entry["validation"]["drop"], 6),
    }
