"""Run a model file on samples in this process, whatever its format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

import numpy as np

from edgepack.backends.backend import THREADS, Session
from edgepack.backends.registry import backend
from edgepack.data import Samples, feeds, is_stacked, rename
from edgepack.errors import ModelError
from edgepack.model.scheme import Format
from edgepack.model.types import Array

T = TypeVar("T")
R = TypeVar("R")

LONG_S = 1e-3
"""An inference from here on is worth a thread of its own."""


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
    """Every output for every sample, samples on the first axis; (N, 0) where its shape changes between samples. Codes
    are the numbers that they stand for.

    Inputs are matched by name, else by order: converters rename them. Where the batch is free, samples run one by one,
    as they are timed: a grid that is chosen at run time covers all samples of a batch, and rounds each of them worse.
    Samples that take long run beside each other, on all cores.
    """
    renamed = rename(samples, model.inputs)
    stacked = any(is_stacked(renamed.inputs[spec.name], spec) for spec in model.inputs)

    def answer(session: Session, fed: tuple[Mapping[str, Array], int]) -> list[Array | None]:
        feed, valid = fed
        batch = None if stacked else len(next(iter(feed.values())))
        return [_by_sample(output, batch, valid) for output in session.numbers(session.run(feed))]

    runs = _each(model, answer, feeds(renamed, model.inputs, dynamic_batch=1))
    return tuple(_joined(parts, len(samples)) for parts in zip(*runs, strict=True))


def _each(model: Session, answer: Callable[[Session, T], R], fed: Iterator[T]) -> Iterator[R]:
    """`answer` of everything that is fed, in order; beside each other where the first took long."""
    start = time.perf_counter()
    yield from (answer(model, one) for one in islice(fed, 1))
    if model.again is None or THREADS == 1 or time.perf_counter() - start < LONG_S:
        yield from (answer(model, one) for one in fed)
        return
    idle: SimpleQueue[Session] = SimpleQueue()
    again = model.again

    def work(one: T) -> R:
        try:
            session = idle.get_nowait()
        except Empty:
            session = again()
        try:
            return answer(session, one)
        finally:
            idle.put(session)

    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from pool.map(work, fed)
    finally:
        pool.shutdown(cancel_futures=True)


def _by_sample(output: Array, batch: int | None, valid: int) -> Array | None:
    """One output of a run, samples on the first axis; None where no axis is that of the samples.

    Args:
        batch: samples of the run; None where the model takes one at a time and has no axis for them.
        valid: how many of them are no filling.
    """
    if batch is None or (batch == 1 and (output.ndim == 0 or output.shape[0] != 1)):
        return output[None]
    axes = [axis for axis, size in enumerate(output.shape) if size == batch]
    if not axes:
        return None
    return (np.moveaxis(output, axes[0], 0) if axes[0] else output)[:valid]


def _joined(parts: Sequence[Array | None], count: int) -> Array:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({part.shape[1:] for part in known}) != 1:
        return np.zeros((count, 0), np.float32)
    return np.concatenate(known)
