"""Packs of ten models against dense int8 on this machine: size, and latency in fresh processes, in turns.

`python bench/measure_pairs.py` builds and benches what is missing, and writes the section of bench/RESULTS.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from block_tables import TITLES, markdown_table
from cases import Case
from quiet_build import keeps_limits

from edgepack import BuildOptions, load_target
from edgepack.benchmark.pack import bench_pack
from edgepack.benchmark.session import Settings
from edgepack.benchmark.summary import summarize_result
from edgepack.devices.local import LocalDevice
from edgepack.pack.manifest import read_document
from edgepack.targets.target import HOST

NAME = "pairs"
COMMAND = "python bench/measure_pairs.py"
ABOUT = """Built for this machine with the default options, then `bench --no-cold`. *Faster*: median of dense int8 over
that of the pack, with its 95 % interval; *verdict* is that of a Mann–Whitney test over the processes. *Kept*: the file
of the pack is the dense int8 file itself. *Refused*: no file keeps the limit, the build said so (exit code 5)."""


def measure(case: Case, out: Path) -> list[dict[str, Any]]:
    """A row per format."""
    host = load_target(HOST)
    kept = keeps_limits(BuildOptions(model=case.model, data=case.data, target=host, max_drop=case.max_drop, out=out))
    with closing(LocalDevice()) as device:
        result = bench_pack(out, target=host, device=device, settings=Settings(cold=False))
    files = read_document(out)["files"]
    sizes = {(row.format, row.variant): row.size_bytes for row in summarize_result(result)}
    digests = {(variant.format, variant.name): variant.sha256 for variant in result.variants}
    return [
        {
            "format": row.format,
            "scheme": files[f"model.{row.format}"]["scheme"],
            "refused": not kept,
            "kept": digests[row.format, "edgepack"] == digests[row.format, "dense-int8"],
            "bytes": row.size_bytes,
            "int8_bytes": sizes[row.format, "dense-int8"],
            "faster": row.vs_int8.speedup,
            "interval": [row.vs_int8.low, row.vs_int8.high],
            "verdict": row.vs_int8.verdict,
            "processes": row.warm.processes,
        }
        for row in summarize_result(result)
        if row.variant == "edgepack" and row.vs_int8 is not None
    ]


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per file."""
    lines = []
    for row in rows:
        low, high = row["interval"]
        notes = " ".join(name for name in ("kept", "refused") if row[name])
        lines.append(
            [
                row["model"],
                TITLES[row["format"]],
                row["scheme"],
                f"{row['bytes'] / 1000:.1f}",
                f"{row['int8_bytes'] / 1000:.1f}",
                f"{row['faster']:.2f}× ({low:.2f}–{high:.2f})",
                row["verdict"],
                notes,
            ]
        )
    headers = ["model", "runtime", "scheme", "kB", "dense int8, kB", "faster", "verdict", ""]
    return f"{ABOUT}\n\n{markdown_table(headers, lines, right=headers[3:6])}"


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    from ten_models import experiment

    experiment(NAME, COMMAND, measure, render)
