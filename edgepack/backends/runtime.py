"""Run a model file on samples in this process, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgepack.backends.backend import Session
from edgepack.backends.registry import backend
from edgepack.data import Samples, feeds, is_stacked, rename
from edgepack.errors import ModelError
from edgepack.model.scheme import Format
from edgepack.model.types import Array


def load(path: Path, fmt: Format, *, threads: int = 1, exact: bool = True) -> Session:
    """Load `path` into the runtime of its format; see `Backend.load`."""
    return backend(fmt).load(path, threads=threads, exact=exact)


def predict(model: Session, samples: Samples) -> Array:
    """The first output for every sample, samples on the first axis; see `answers`.

    Raises:
        ModelError: it holds no number of values that is the same for all samples.
    """
    first = answers(model, samples)[0]
    if first.size == 0:
        raise ModelError("the model's first output has another shape for other samples, so that it cannot be scored")
    return first


def answers(model: Session, samples: Samples) -> tuple[Array, ...]:
    """Every output for every sample, samples on the first axis; (N, 0) where its shape changes between samples.

    Inputs are matched by name, else by order: converters rename them. Where the batch is free, samples run one by one,
    as they are timed: a grid that is chosen at run time covers all samples of a batch, and rounds each of them worse.
    """
    renamed = rename(samples, model.inputs)
    stacked = any(is_stacked(renamed.inputs[spec.name], spec) for spec in model.inputs)
    runs: list[list[Array | None]] = []
    for feed, valid in feeds(renamed, model.inputs, dynamic_batch=1):
        batch = None if stacked else len(next(iter(feed.values())))
        runs.append([_by_sample(output, batch, valid) for output in model.run(feed)])
    return tuple(_joined(parts, len(samples)) for parts in zip(*runs, strict=True))


def _by_sample(output: Array, batch: int | None, valid: int) -> Array | None:
    """One output of a run, samples on the first axis; None where no axis is that of the samples.

    Args:
        batch: samples of the run; None where the model takes one at a time and has no axis for them.
        valid: how many of them are no filling.
    """
    if batch is None or (batch == 1 and (output.ndim == 0 or output.shape[0] != 1)):
        return output[None]
    axes = [axis for axis, size in enumerate(output.shape) if size == batch]
    return np.moveaxis(output, axes[0], 0)[:valid] if axes else None


def _joined(parts: Sequence[Array | None], count: int) -> Array:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({part.shape[1:] for part in known}) != 1:
        return np.zeros((count, 0), np.float32)
    return np.concatenate(known)
