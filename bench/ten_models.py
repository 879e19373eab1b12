"""Ten models with data to build on and data that no build sees: those of the promise table and three recipes; and
experiments that go over all of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import figures_file
import numpy as np
from cases import MODELS, Case
from promise.command import FOLDER
from promise.measure import Trained
from promise.subjects import SUBJECTS
from results_page import put_section

SAMPLES = 4000
Rows = list[dict[str, Any]]
RECIPES = {"mnist_mlp": 0.3, "mnist_cnn": 0.3, "minilm": 1.0}
NAMES = (*SUBJECTS, *RECIPES)


def ten_models(folder: Path, names: tuple[str, ...] = NAMES) -> Iterator[Case]:
    """Those that are named; what has to be written goes into the folder, a model of seed 0 into the promise table's."""
    for name in names:
        if name in RECIPES:
            yield Case(name, f"{MODELS / name}.py:recipe", RECIPES[name])
            continue
        trained = Trained(name, 0, FOLDER)
        data, test = folder / f"{name}.npz", folder / f"{name}.test.npz"
        pool = trained.data.pool
        drawn = np.random.default_rng(0).permutation(len(next(iter(pool.values()))))[:SAMPLES]
        np.savez(data, **{key: array[drawn] for key, array in pool.items()})
        np.savez(test, **trained.data.unseen)
        yield Case(name, str(trained.path), SUBJECTS[name].limits[1], data, test)


def experiment(
    name: str,
    command: str,
    measure: Callable[[Case, Path], Rows],
    render: Callable[[Rows], str],
    arguments: Sequence[str] | None = None,
) -> None:
    """Measure the models that are missing of an experiment, keep each, and write its section of bench/RESULTS.md.

    Args:
        name: of the section.
        command: that the section names.
        measure: (model, folder to work in) -> rows, each with the name of its "model".
        render: the section of all rows, as Markdown.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog=command)
    parser.add_argument("--fresh", action="store_true", help="measure all of it again")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no model after so long")
    parser.add_argument("--only", choices=NAMES, action="append", help="some of the models")
    options = parser.parse_args(arguments)
    kept, deadline = f"experiments/{name}", time.monotonic() + 60 * options.minutes
    rows: Rows = [] if options.fresh else figures_file.rows(kept) or []
    missing = tuple(one for one in options.only or NAMES if one not in {row["model"] for row in rows})
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        for case in ten_models(Path(folder), missing):
            if time.monotonic() > deadline:
                break
            print(f"{name}: {case.name}", file=sys.stderr)
            rows += measure(case, Path(folder) / case.name)
            figures_file.store(kept, {"rows": rows})
    if rows:
        put_section(name, command, figures_file.load(kept), render(rows))
