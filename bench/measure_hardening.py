"""More than a thousand wrong inputs over all commands: exits by code, internal errors, hangs, memory.

`.venv/bin/python bench/measure_hardening.py` runs all of them, each in a process of its own that may take 30 s and
2 GB, and writes the section of bench/RESULTS.md; `--only onnx` measures some of them again. It ends with 1 where
an input ended in another way than documented.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import figures_file
from hardening import containers, forked, measured, things
from hardening.arguments import wrong_arguments
from hardening.case import Case, Outcome
from hardening.graphs import wrong_graphs
from hardening.recipes import wrong_recipes
from hardening.streams import wrong_streams
from results_page import put_section

NAME = "experiments/hardening"
COMMAND = ".venv/bin/python bench/measure_hardening.py"


FAMILIES: Mapping[str, Callable[[things.Things, int], Iterable[Case]]] = {
    "arguments": lambda found, seed: wrong_arguments(found),
    "onnx": wrong_graphs,
    "tflite": containers.wrong_tflite,
    "pt2": containers.wrong_programs,
    "keras": containers.wrong_keras,
    "data": containers.wrong_data,
    "packs": containers.wrong_packs,
    "archive": containers.wrong_archives,
    "targets": containers.wrong_targets,
    "recipes": lambda found, seed: wrong_recipes(found),
    "streams": lambda found, seed: wrong_streams(found),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", choices=FAMILIES, help="some families; those of others stay as they are"
    )
    parser.add_argument("--case", action="append", help="cases with such words alone; nothing is kept then")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--folder", type=Path, help="where sound files are made, and found again")
    parser.add_argument("-v", "--verbose", action="store_true", help="print how each ended")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="edgepack-hardening-") as temporary:
        folder = given.folder or Path(temporary)
        environment = _prepared(folder)
        found = things.make(folder, environment)
        forked.import_all(found.program)
        failed = [one for name in given.only or FAMILIES for one in _family(name, found, environment, given)]
    for one in failed:
        print(
            f"\n{one.case.family}: {one.case.name}: exit {one.code}, {one.seconds:.0f} s, {one.peak_bytes >> 20} MiB\n"
            f"  {' '.join(one.case.arguments)[:300]}\n{one.said[-700:]}"
        )
    return int(bool(failed))


def _prepared(folder: Path) -> dict[str, str]:
    """The environment of commands: with a home and a cache of their own."""
    own = folder / "home"
    own.mkdir(parents=True, exist_ok=True)
    known = {"HOME": str(own), "TMPDIR": str(own), "EDGEPACK_CACHE": str(own / "cache"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **known}


def _family(
    name: str, found: things.Things, environment: Mapping[str, str], given: argparse.Namespace
) -> list[Outcome]:
    """Run a family and keep its row; what failed of it."""
    outcomes = []
    for case in FAMILIES[name](found, given.seed):
        if given.case and not any(word in f"{case.family} {case.name}" for word in given.case):
            continue
        one = forked.run(case, found.wrong.parent, environment)
        outcomes.append(one)
        if given.verbose:
            last = (one.said.strip().splitlines() or [""])[0][:150]
            print(
                f"{one.code} {one.seconds:5.1f} s {one.peak_bytes >> 20:5d} MiB {case.family} {case.name}: {last}",
                flush=True,
            )
    if outcomes and not given.case:
        _keep(measured.rows(outcomes), given.seed)
    return measured.failed(outcomes)


def _keep(rows: list[dict[str, Any]], seed: int) -> None:
    """Rows of families in the place of those that there were, and the section of all."""
    kept = {row["family"]: row for row in [*(figures_file.rows(NAME) or []), *rows]}
    stored = figures_file.store(NAME, {"seed": seed, "rows": list(kept.values())})
    put_section("hardening", COMMAND, stored, measured.render(stored["figures"]["rows"]))


if __name__ == "__main__":
    sys.exit(main())
