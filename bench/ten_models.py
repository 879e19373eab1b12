"""Ten models with data to build on and data that no build sees: those of the promise table and three recipes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cases import MODELS, Case
from promise.command import FOLDER
from promise.measure import Trained
from promise.subjects import SUBJECTS

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
