"""Measures every figure of a marked block, keeps it under bench/results/ and rewrites the block.

Blocks stand in README.md and bench/RESULTS.md. `make figures` runs all of it, `bench/figures.py --only layer` one
block; `--render` measures nothing and writes the blocks from what is kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import measure_allocation
import measure_demo
import measure_emulated
import measure_emulator
import measure_estimate
import measure_layer
import measure_mnist
import measure_planner
import measure_quickstart
import measure_residual
import measure_tool
import measure_weighting
from accuracy import measure as measure_accuracy
from figures_file import RESULTS, load, store
from pages import put_block
from picture import draw_working_set


def _seeds(*, quick: bool = False) -> dict[str, Any]:
    from seeds.command import measure  # which prints by way of this module

    return measure(quick=quick)


MEASURES: Mapping[str, Callable[..., dict[str, Any]]] = {
    "quickstart": measure_quickstart.measure,
    "demo": measure_demo.measure,
    "mnist": measure_mnist.measure,
    "layer": measure_layer.measure,
    "planner": measure_planner.measure,
    "allocation": measure_allocation.measure,
    "accuracy": measure_accuracy.measure,
    "weighting": measure_weighting.measure,
    "residual": measure_residual.measure,
    "seeds": _seeds,
    "tool": measure_tool.measure,
    "emulated": measure_emulated.measure,
    "estimate": measure_estimate.measure,
    "emulator": measure_emulator.measure,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write. A block that was measured is kept even if a later one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="only this block; may be repeated")
    parser.add_argument("--quick", action="store_true", help="shorter and less certain; the block says so")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the blocks from stored figures")
    options = parser.parse_args(arguments)
    for name in options.only or MEASURES:
        start = time.perf_counter()
        stored = load(name) if options.render else store(name, MEASURES[name](quick=options.quick))
        if name == "emulated":
            draw_working_set(stored["figures"]["curve"], RESULTS / "working-set.svg")
        put_block(stored)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    main()
