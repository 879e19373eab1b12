"""How fast the tool itself is, and how much memory a build takes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from watched import edgepack_command, fastest_s, run_watched

TOP = Path(__file__).parent.parent
MNIST = "bench/models/mnist_mlp.py:recipe"
MINILM = "bench/models/minilm.py:recipe"
LAYER = "bench/models/layer_4096.py:recipe"
HELP_GOAL_S, BENCH_GOAL_S, INSPECT_GOAL_S = 0.3, 90.0, 60.0
MEMORY_MODELS, MEMORY_BASE_BYTES = 4, 600_000_000


def measure(*, quick: bool = False) -> dict[str, Any]:
    """`rows`: one per command, each run with an empty cache; `help_s`: of the fastest of several processes."""
    rows = [run() for run in CASES.values()]
    return {"quick": quick, "help_s": round(help_s(), 4), "help_goal_s": HELP_GOAL_S, "rows": rows}


def help_s() -> float:
    """Least wall time of `edgepack --help`, seconds."""
    return fastest_s([edgepack_command(), "--help"], times=10)


def run_build(
    model: str, *arguments: str, target: str = "rpi4", goal_s: float | None = None, limit_bytes: int | None = None
) -> dict[str, Any]:
    """Build a pack from nothing; where no limit on its memory is given, it follows from the dense fp32 file."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        out = Path(folder) / "pack"
        command = ["build", model, "--target", target, *arguments]
        row = {**_run(command, ["--out", str(out)], Path(folder), goal_s), "recipe_s": recipe_s(model)}
        model_bytes = (out / "baseline" / "fp32.onnx").stat().st_size
    limit_bytes = limit_bytes or MEMORY_MODELS * model_bytes + MEMORY_BASE_BYTES
    return {**row, "model_bytes": model_bytes, "memory_limit_bytes": limit_bytes}


def recipe_s(model: str) -> float:
    """Wall time of a recipe alone, in a process of its own: its imports, its training and its data."""
    path, _, function = model.partition(":")
    code = f"import runpy; runpy.run_path({path!r})[{function!r}]()"
    return round(run_watched([sys.executable, "-c", code], cwd=TOP, environment=os.environ).seconds, 2)


def run_bench() -> dict[str, Any]:
    """A full bench of a small pack against its baselines on this machine."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        pack = Path(folder) / "pack"
        _run(["build", MNIST, "--target", "host", "--max-drop", "0.3"], ["--out", str(pack)], Path(folder), None)
        row = _run(["bench", str(pack), "--local"], [], Path(folder), BENCH_GOAL_S)
    return {**row, "command": "edgepack bench dist/mnist-mlp.host --local"}


def run_inspect() -> dict[str, Any]:
    """Inspect a real transformer from nothing."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        return _run(["inspect", MINILM], [], Path(folder), INSPECT_GOAL_S)


def _run(command: list[str], hidden: list[str], folder: Path, goal_s: float | None) -> dict[str, Any]:
    environment = {**os.environ, "EDGEPACK_CACHE": str(folder / "cache")}
    done = run_watched([edgepack_command(), *command, *hidden], cwd=TOP, environment=environment)
    return {
        "command": " ".join(["edgepack", *command]),
        "seconds": round(done.seconds, 2),
        "goal_s": goal_s,
        "memory_limit_bytes": None,
        "peak_bytes": done.peak_bytes,
        "largest_peak_bytes": done.largest_peak_bytes,
    }


CASES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "build-mnist": partial(run_build, MNIST, "--max-drop", "0.3", goal_s=15.0),
    "build-mnist-host": partial(run_build, MNIST, "--max-drop", "0.3", target="host", goal_s=20.0),
    "build-mnist-distill": partial(run_build, MNIST, "--max-drop", "0.3", "--distill", "3epochs", goal_s=45.0),
    "build-minilm": partial(run_build, MINILM, "--max-drop", "1", goal_s=90.0),
    "build-layer": partial(run_build, LAYER, "--rank", "256", goal_s=30.0, limit_bytes=1_000_000_000),
    "bench-mnist": run_bench,
    "inspect-minilm": run_inspect,
}
