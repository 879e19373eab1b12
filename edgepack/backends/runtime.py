"""Run a model file on samples in this process, whatever its format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgepack.backends.backend import Session
from edgepack.backends.registry import backend
from edgepack.data import Samples, feeds, is_stacked, rename
from edgepack.model.scheme import Format
from edgepack.model.types import Array


def load(path: Path, fmt: Format, *, threads: int = 1, exact: bool = True) -> Session:
    """Load `path` into the runtime of its format; see `Backend.load`."""
    return backend(fmt).load(path, threads=threads, exact=exact)


def predict(model: Session, samples: Samples) -> Array:
    """The first output for every sample, samples on the first axis.

    Inputs are matched by name, else by order: converters rename them. Where the batch is free, samples run one by one,
    as they are timed: a grid that is chosen at run time covers all samples of a batch, and rounds each of them worse.
    """
    return np.concatenate(_outputs(model, samples))


def _outputs(model: Session, samples: Samples) -> list[Array]:
    renamed = rename(samples, model.inputs)
    stacked = any(is_stacked(renamed.inputs[spec.name], spec) for spec in model.inputs)
    outputs = []
    for feed, valid in feeds(renamed, model.inputs, dynamic_batch=1):
        first = model.run(feed)[0]
        outputs.append(first[None] if stacked else first[:valid])
    return outputs
