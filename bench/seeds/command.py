"""Runs some experiments or all, prints one table, keeps the results."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import figures_file
from blocks_seeds import render_seeds
from pages import put_block

from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.workspace import Cache
from seeds.bench import Bench
from seeds.measure import emulated, measure_group
from seeds.rows import EXPERIMENTS
from seeds.settings import FULL, QUICK, Settings

NAME = "seeds"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python bench/seeds", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), metavar="ROW", help=", ".join(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="one seed, one ratio, two epochs")
    parser.add_argument("--fresh", action="store_true", help="train and write everything again")
    parser.add_argument("--keep", action="store_true", help="rewrite its block of bench/RESULTS.md as well")
    options = parser.parse_args(arguments)
    found = measure(quick=options.quick, names=options.only, fresh=options.fresh)
    print(render_seeds(found))
    if not options.quick:
        stored = figures_file.store(NAME, joined(found))
        if options.keep:
            put_block(stored)


def joined(found: dict[str, Any]) -> dict[str, Any]:
    """What was found, and what was kept of experiments that did not run this time."""
    path = figures_file.RESULTS / f"{NAME}.json"
    kept = figures_file.load(NAME)["figures"]["groups"] if path.exists() else []
    groups = {group["name"]: group for group in (*kept, *found["groups"])}
    return {**found, "groups": [groups[name] for name in EXPERIMENTS if name in groups]}


def measure(*, quick: bool = False, names: Sequence[str] | None = None, fresh: bool = False) -> dict[str, Any]:
    """Run experiments; what was trained and written before is taken from edgepack's cache."""
    settings = QUICK if quick else FULL
    start = time.monotonic()

    def say(message: str) -> None:
        print(f"seeds: {time.monotonic() - start:.0f} s: {message}", file=sys.stderr, flush=True)

    cache = Cache(fresh=fresh)
    groups = []
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepack-bench-")))
        bench = Bench(settings, cache, work, stack.enter_context(TfliteEmitter()), say)
        for name in names or EXPERIMENTS:
            groups.append(EXPERIMENTS[name](bench))
    for group in groups:
        say(f"{group['name']}: latency and memory")
        measure_group(group, settings)
        if group["name"] == "deepthin":
            say("deepthin: on an emulated board")
            group["emulated"] = emulated(group, sorted({settings.ratios[0], settings.ratios[-1]}))
    for group in groups:
        _without_paths(group)
    say("done")
    return {"quick": quick, **_facts(settings), "groups": groups}


def _facts(settings: Settings) -> dict[str, Any]:
    names = ("epochs", "recovery", "seeds", "ratios")
    return {**{name: getattr(settings, name) for name in names}, "processes": settings.schedule.processes}


def _without_paths(group: dict[str, Any]) -> None:
    sides = [row[side] for row in group["rows"] for side in ("own", "default") if row[side] is not None]
    for made in (*group["dense"].values(), *sides):
        made.pop("paths", None)
    if isinstance(group.get("emulated"), list):
        for one in group["emulated"]:
            one.pop("path")
