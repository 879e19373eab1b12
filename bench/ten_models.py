"""Ten models with data to build on and data that no build sees: those of the promise table and three recipes; and
experiments that go over all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from cases import MODELS, Case
from promise.command import FOLDER
from promise.measure import Trained
from promise.subjects import SUBJECTS
from resumable import Row, carry_out, options

SAMPLES = 4000
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
    name: str, command: str, measure: Callable[[Case, Path], list[Row]], render: Callable[[Sequence[Row]], str]
) -> None:
    """Measure the models that are missing of an experiment, keep each, and write its section of bench/RESULTS.md.

    Args:
        name: of the section.
        command: that the section names.
        measure: (model, folder to work in) -> rows, without the name of the model.
        render: the section of all rows, as Markdown.
    """

    def measured(model: str) -> list[Row]:
        with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
            (case,) = ten_models(Path(folder), (model,))
            return measure(case, Path(folder) / model)

    keys = [{"model": model} for model in NAMES]
    given = options(command, str(__doc__), NAMES).parse_args()
    carry_out(name, command, keys, measured, render, given)
