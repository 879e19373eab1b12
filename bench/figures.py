"""Measures every figure that the README shows, keeps it under bench/results/ and rewrites the README's marked blocks.

`make figures` runs all of it, `bench/figures.py --only layer` one block; `--render` measures nothing and writes the
blocks from what is kept.
"""

from __future__ import annotations

import argparse
import json
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
import measure_residual
import measure_tool
import measure_weighting
from accuracy import measure as measure_accuracy
from blocks import render, replace_block
from machine import conditions
from picture import draw_working_set

from edgepack.workspace import atomic_path

TOP = Path(__file__).parent.parent
README = TOP / "README.md"
RESULTS = Path(__file__).parent / "results"
SCHEMA_VERSION = 1


def _seeds(*, quick: bool = False) -> dict[str, Any]:
    from seeds.command import measure  # which prints by way of this module

    return measure(quick=quick)


MEASURES: Mapping[str, Callable[..., dict[str, Any]]] = {
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
        write(README, replace_block(README.read_text(), name, render(stored)))
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def store(name: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Keep figures with the machine they were measured on."""
    stored = {"schema_version": SCHEMA_VERSION, "name": name, "machine": conditions(), "figures": figures}
    write(RESULTS / f"{name}.json", json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    return stored


def load(name: str) -> dict[str, Any]:
    """Figures that were kept."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def write(path: Path, text: str) -> None:
    """Write a whole file or leave it as it was."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
