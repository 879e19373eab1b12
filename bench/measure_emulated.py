"""What dense layers and pairs make boards execute and fetch: one layer, a network, and a curve over the rank."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import measure_layer
import measure_mnist

from edgepack import Target, load_target
from edgepack.backends.tflite.schemes import INT8_DYNAMIC
from edgepack.benchmark.emulate import emulate_variants
from edgepack.benchmark.results import EmulatedVariant
from edgepack.cost.count import Counter
from edgepack.emulator.counts import middle
from edgepack.emulator.plugin import cache_arguments
from edgepack.model.point import linear_point
from edgepack.workspace import Cache, open_workspace

TARGETS = ("rpi4", "rpi5", "rpi3b+", "rpi-zero2w")
MODELS = Path(__file__).parent / "models"
LAYER = (f"{MODELS / 'layer_4096.py'}:recipe_1024", 128)
NETWORK = (measure_mnist.MODEL, 32)
SIDE = 2048
SCHEME = INT8_DYNAMIC
RANKS = (16, 32, 64, 96, 112, 128, 144, 160, 192, 224, 240, 256, 272, 288, 320, 384, 448, 512, 576, 640, 768, 896, 1024)


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Counts of every file on every target; targets with the same core and caches are counted once."""
    groups = _alike(TARGETS[:1] if quick else TARGETS)
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        tables = {
            name: _table(groups, *source, Path(folder) / name)
            for name, source in (("layer", LAYER), ("network", NETWORK))
        }
    return {
        "quick": quick,
        "targets": [names for names, _ in groups],
        "ranks": {"layer": LAYER[1], "network": NETWORK[1]},
        **tables,
        "curve": {"side": SIDE, "form": SCHEME.name, "points": list(_curve(groups, RANKS[::4] if quick else RANKS))},
    }


def _alike(names: Sequence[str]) -> list[tuple[str, Target]]:
    """Targets that nothing in a count can tell apart, under their names together."""
    groups: dict[tuple[Any, ...], list[Target]] = {}
    for target in map(load_target, names):
        key = target.main_cluster.core, target.isa, cache_arguments(target)
        groups.setdefault(key, []).append(target)
    return [(", ".join(target.name for target in alike), alike[0]) for alike in groups.values()]


def _table(groups: Sequence[tuple[str, Target]], model: str, rank: int, work: Path) -> list[dict[str, Any]]:
    """A row per file and group of targets."""
    work.mkdir()
    files = measure_layer.model_files(work, model, rank)
    rows = []
    for names, target in groups:
        result = emulate_variants([file.variant for file in files], None, target=target)
        rows += [
            {"target": names, "layer": file.layer, "form": file.scheme.name, **_counted(found)}
            for file, found in zip(files, result.variants, strict=True)
        ]
    return rows


def _counted(found: EmulatedVariant) -> dict[str, Any]:
    counts = middle(found.rounds)
    lowest, *_, highest = sorted(one.instructions for one in found.rounds)
    return {
        "format": found.format,
        "size_bytes": found.size_bytes,
        "instructions": round(counts.instructions),
        "l1d_misses": round(max(counts.misses["L1d"], 0)),
        "last_level": counts.last_level,
        "last_level_misses": round(max(counts.misses[counts.last_level], 0)),
        "spread": (highest - lowest) / counts.instructions,
    }


def _curve(groups: Sequence[tuple[str, Target]], ranks: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Misses of every level over the rank of one pair, the call of the runtime taken off."""
    points = [linear_point(SCHEME, SIDE, SIDE, rank, 1) for rank in ranks]
    for names, target in groups:
        with open_workspace(Cache()) as workspace, closing(Counter(target, workspace)) as counter:
            counted = counter.count(points)
        cluster = target.main_cluster
        for point in points:
            counts = counted[point]
            yield {
                "target": names,
                "rank": point.rank,
                "weight_bytes": 2 * SIDE * (point.rank or 0),
                "instructions": counts.instructions,
                "misses": dict(counts.misses),
                "last_level": counts.last_level,
                "last_level_bytes": cluster.data_caches[-1].size_bytes,
            }
