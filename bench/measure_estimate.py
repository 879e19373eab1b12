"""The time bound of emulated counts against published times of the same networks on the same boards."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgepack import load_target
from edgepack.backends.backend import WriterData
from edgepack.backends.registry import backend
from edgepack.backends.tflite.schemes import FP32, INT8_STATIC
from edgepack.benchmark.emulate import emulate_variants
from edgepack.benchmark.session import Variant
from edgepack.data import example
from edgepack.emulator.counts import middle
from edgepack.emulator.estimate import time_bound
from edgepack.pipeline.datasets import load_data
from edgepack.quantize.grids import WEIGHT_MAX
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace

MODELS = Path(__file__).parent / "models"
SEED = 0
THREADS = 4
SCHEMES = {"fp32": FP32, "int8": INT8_STATIC}
# README of XNNPACK (github.com/google/XNNPACK), section "Performance": milliseconds, all cores of the board.
PUBLISHED_MS = {
    ("v1", "fp32", "rpi3b+"): 114,
    ("v1", "int8", "rpi3b+"): 46,
    ("v1", "fp32", "rpi4"): 77,
    ("v1", "int8", "rpi4"): 24,
    ("v2", "fp32", "rpi4"): 46,
    ("v2", "int8", "rpi4"): 17,
}


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Counts of one inference on one thread, and the bound for all cores beside the published time."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        for network in ("v1",) if quick else ("v1", "v2"):
            variants = _files(network, Path(folder))
            for name in dict.fromkeys(target for model, _, target in PUBLISHED_MS if model == network):
                target = load_target(name)
                result = emulate_variants(variants, None, target=target, model=network)
                for found in result.variants:
                    counts = middle(found.rounds)
                    bound = time_bound(counts, target, THREADS)
                    if isinstance(bound, str):
                        raise ValueError(bound)
                    rows.append(
                        {
                            "model": network,
                            "precision": found.name,
                            "target": name,
                            "instructions": counts.instructions,
                            "last_level_misses": counts.misses[counts.last_level],
                            "low_s": bound.low_s,
                            "high_s": bound.high_s,
                            "published_s": PUBLISHED_MS[network, found.name, name] / 1e3,
                            "assumptions": bound.assumptions,
                        }
                    )
    return {"quick": quick, "threads": THREADS, "rows": rows}


def _files(network: str, work: Path) -> list[Variant]:
    """The network in float32 and in int8, as the runtime's own converter and quantizer write it."""
    source = f"{MODELS / 'mobilenet.py'}:{network}"
    opened = open_model(source, work)
    data = load_data(None, opened, source, SEED)
    variants = []
    with backend("tflite").engine() as engine:
        inputs = example(data.validation, opened.inputs, SEED)
        given = WriterData(data.calibration, inputs, WEIGHT_MAX)
        files = backend("tflite").open(opened, given, engine, Workspace(Cache(), work, SEED))
        for precision, scheme in SCHEMES.items():
            path = work / f"{network}.{precision}.tflite"
            files.write_dense(path) if scheme.is_float else files.write_baseline(scheme, path)
            variants.append(Variant(precision, "tflite", path))
    return variants
