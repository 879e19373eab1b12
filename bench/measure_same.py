"""How often a bench claims a difference between a file and itself.

`python bench/measure_same.py` measures one file under two names, again and again, and writes the section of
bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures_file
import numpy as np
import onnx
from block_tables import markdown_table
from results_page import put_section

from edgepack import load_target
from edgepack.benchmark.schedule import FULL, QUICK
from edgepack.benchmark.session import Settings, Variant, bench_variants
from edgepack.benchmark.summary import summarize_result
from edgepack.devices.local import LocalDevice
from edgepack.targets.target import HOST

NAME = "same"
KEPT = f"experiments/{NAME}"
COMMAND = "python bench/measure_same.py"
WARM = {"memory_processes": 1}
"""Only warm latency is compared: a session with fewer looks at memory claims no more and no less."""
SCHEDULES = {"quick": replace(QUICK, **WARM), "full": replace(FULL, **WARM)}
ABOUT = """One ONNX file (784-512-10, 1.6 MB) under two names, `edgepack` and `dense-int8`, as `bench` measures it on
this machine without cold latency. *Claims*: sessions that call one of them faster. *Widest*: the largest ratio of the
two medians of a session."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--sessions", type=int, default=200, help="of each length")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no session after so long, in all")
    parser.add_argument("--fresh", action="store_true", help="forget earlier sessions")
    options = parser.parse_args(arguments)
    rows = {} if options.fresh else figures_file.rows(KEPT) or {}
    deadline = time.monotonic() + 60 * options.minutes
    for length in SCHEDULES:
        own = rows.setdefault(length, [])
        while len(own) < options.sessions and time.monotonic() < deadline:
            own.append(measure(length))
            figures_file.store(KEPT, {"rows": rows})
            print(f"{NAME}: {length} {len(own)} of {options.sessions}: {own[-1]['verdict']}", file=sys.stderr)
    stored = figures_file.store(KEPT, {"rows": rows})
    put_section(NAME, COMMAND, stored, render(rows))


def measure(length: str) -> dict[str, Any]:
    """One session."""
    from promise.command import FOLDER
    from promise.measure import Trained

    model = onnx.load(Trained("classifier", 0, FOLDER).path)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder, closing(LocalDevice()) as device:
        variants = []
        for name in ("edgepack", "dense-int8"):
            path = Path(folder) / f"{name}.onnx"
            onnx.save(model, path)  # with all its weights in it
            variants.append(Variant(name, "onnx", path))
        settings = Settings(quick=length == "quick", cold=False, schedule=SCHEDULES[length])
        result = bench_variants(variants, target=load_target(HOST), device=device, settings=settings)
    row = summarize_result(result)[0]
    if row.vs_int8 is None:
        raise ValueError("no comparison")
    return {
        "verdict": row.vs_int8.verdict,
        "ratio": round(row.vs_int8.speedup, 4),
        "processes": row.warm.processes,
        "seconds": round(time.monotonic() - started, 1),
    }


def render(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A line per length."""
    lines = []
    for length, own in rows.items():
        if own:
            claims = sum(row["verdict"] != "no difference" for row in own)
            widest = max(max(row["ratio"], 1 / row["ratio"]) for row in own)
            processes, seconds = (np.median([row[name] for row in own]) for name in ("processes", "seconds"))
            share = f"{claims} ({100 * claims / len(own):.1f} %)"
            lines.append([length, str(len(own)), share, f"{widest:.3f}", f"{processes:.0f}", f"{seconds:.0f} s"])
    headers = ["length", "sessions", "claims", "widest", "processes, median", "time, median"]
    return f"{ABOUT}\n\n{markdown_table(headers, lines, right=headers[1:])}"


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    main()
