"""What a tool on the device measured, in the runner's report schema; what it does not say is null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bench.devices.device import Job
from edgepack.bench.devices.native_output import Figures
from edgepack.bench.devices.native_probe import hottest
from edgepack.bench.devices.reply import SCHEMA_VERSION

_NOTHING = dict.fromkeys(
    ("rss_bytes", "pss_bytes", "anon_bytes", "file_bytes", "peak_bytes", "swap_bytes", "major_faults")
)


def tool_report(job: Job, name: str, version: str, figures: Figures, found: Mapping[str, str]) -> dict[str, Any]:
    """The report of a job of mode `latency` or `memory`.

    Args:
        job: as it was asked for.
        name, version: of the tool.
        figures: of its output.
        found: what the script around it says: `governors`, `hot`.
    """
    phases = dict.fromkeys(("process_s", "numpy_s", "runtime_s"))
    common = {
        "schema_version": SCHEMA_VERSION,
        "mode": job.mode,
        "tool": {"name": name, "version": version},
        "runtime": None,
        "format": job.format,
        "threads": job.threads,
        "cpus": list(job.cpus),
        "inputs": "random",
        "load": {**phases, "session_s": figures.session_s, "first_inference_s": figures.first_inference_s},
        "governor": ", ".join(sorted({line[:40] for line in found.get("governors", "").split()})) or None,
    }
    return {**common, **(_memory if job.mode == "memory" else _latency)(figures, found)}


def import_report(job: Job, found: Mapping[str, str]) -> dict[str, Any]:
    """The report of mode `memory` without a model, which no tool runs.

    What benchmark_model says of memory is above its own start. So that start, the tool without a model, is 0.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": job.mode,
        "import_only": True,
        "imported": {**_NOTHING, "peak_bytes": 0 if job.format == "tflite" else None},
        "temperature_c": _temperatures(found)[1],
    }


def _latency(figures: Figures, found: Mapping[str, str]) -> dict[str, Any]:
    return {
        "latency_s": list(figures.latency_s),
        "kept_every": figures.kept_every,
        "runs": figures.runs,
        "seconds": figures.seconds,
        "warmup_runs": figures.warmup_runs,
        "clock": None,
        "temperature_c": list(_temperatures(found)),
        "throttle": None,
        "others_busy": None,
    }


def _memory(figures: Figures, found: Mapping[str, str]) -> dict[str, Any]:
    return {
        "import_only": False,
        "imported": {**_NOTHING, "peak_bytes": 0 if figures.above_start else None},
        "loaded": {**_NOTHING, "peak_bytes": figures.loaded_bytes},
        "ran": {**_NOTHING, "peak_bytes": figures.ran_bytes},
        "temperature_c": _temperatures(found)[1],
    }


def _temperatures(found: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Before and after, °C."""
    before, _, after = found.get("hot", "").partition(",")
    return hottest(before.split()), hottest(after.split())
