"""Latency and memory of all files of a group in turns, in one session; counts on an emulated board."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from edgepack import load_target
from edgepack.benchmark import session
from edgepack.benchmark.emulate import emulate_variants
from edgepack.benchmark.results import latencies
from edgepack.benchmark.session import Variant, bench_variants
from edgepack.benchmark.stats import process_medians
from edgepack.benchmark.summary import summarize_result
from edgepack.devices.local import LocalDevice
from edgepack.emulator.counts import middle
from edgepack.errors import EdgepackError
from edgepack.targets.target import HOST
from seeds.lab import Made
from seeds.settings import Settings

BOARD = "rpi-zero2w"
DIGITS = 5


def distinct(group: dict[str, Any]) -> list[Made]:
    """Every way to write the group's model, once; the dense ones first."""
    both = [row[side] for row in group["rows"] for side in ("own", "default") if row[side] is not None]
    found: dict[str, Made] = {}
    for made in (*group["dense"].values(), *both):
        found.setdefault(made["paths"]["onnx"], made)
    return list(found.values())


def measure_group(group: dict[str, Any], settings: Settings) -> None:
    """Put latencies, and bytes that are held for the weights, beside every file of the group."""
    made = distinct(group)
    found = measure_files([variant for _, variant in _variants(made)], settings, cold=group["name"] == "deepthin")
    by_path = {str(variant.path): one for (_, variant), one in zip(_variants(made), found, strict=True)}
    every = [row[side] for row in group["rows"] for side in ("own", "default") if row[side] is not None]
    for one in (*group["dense"].values(), *every):
        for fmt, path in one["paths"].items():
            one["files"][fmt] |= by_path[path]


def _variants(made: Sequence[Made]) -> Iterator[tuple[str, Variant]]:
    for index, one in enumerate(made):
        for fmt, path in one["paths"].items():
            yield fmt, Variant(f"{one['label']} {index}", fmt, Path(path))


def measure_files(variants: Sequence[Variant], settings: Settings, *, cold: bool) -> list[dict[str, Any]]:
    """Medians of the processes in seconds, and bytes held above a process that only imports the runtime."""
    with closing(LocalDevice()) as device:
        result = bench_variants(
            variants,
            target=load_target(HOST),
            device=device,
            model="seeds",
            settings=session.Settings(cold=cold, schedule=settings.schedule),
        )
    rows = []
    for variant, summary in zip(result.variants, summarize_result(result), strict=True):
        imports = [snapshot.anon_bytes for snapshot in result.import_only.get(variant.format, ())]
        held = [memory.loaded.anon_bytes for memory in variant.memory]
        known = [value for value in (*imports, *held) if value is not None]
        row: dict[str, Any] = {
            "process_medians_s": _rounded(process_medians(latencies(variant.warm))),
            "resident_bytes": summary.resident_bytes,
            "anonymous_bytes": held[0] - imports[0] if len(known) > 1 else None,
        }
        if variant.cold:
            row["cold_process_medians_s"] = _rounded(process_medians(latencies(variant.cold)))
        rows.append(row)
    return rows


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def emulated(group: dict[str, Any], ratios: Sequence[int]) -> list[dict[str, Any]] | str:
    """Instructions and last-level misses of one inference on the board: dense, DeepThin both ways, the default pair."""
    rows = {row["key"]: row for row in group["rows"]}
    made = [group["dense"]["fp32"], group["dense"]["int8"]]
    for ratio in ratios:
        made += [
            rows[f"deepthin-{ratio}"]["own"],
            rows[f"deepthin-conv-{ratio}"]["own"],
            rows[f"deepthin-{ratio}"]["default"],
        ]
    variants = list(_variants(made))
    try:
        result = emulate_variants([one for _, one in variants], None, target=load_target(BOARD))
    except EdgepackError as err:
        return str(err)
    paths = {str(variant.path): found for (_, variant), found in zip(variants, result.variants, strict=True)}
    found_rows = []
    for one in made:
        for fmt, path in one["paths"].items():
            counts = middle(paths[path].rounds)
            found_rows.append(
                {
                    "label": one["label"],
                    "path": path,
                    "format": fmt,
                    "instructions": round(counts.instructions),
                    "last_level": counts.last_level,
                    "last_level_misses": round(max(counts.misses[counts.last_level], 0)),
                }
            )
            one["files"][fmt]["emulated"] = {k: v for k, v in found_rows[-1].items() if k not in ("label", "path")}
    return found_rows
