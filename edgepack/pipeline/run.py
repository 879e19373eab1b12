"""`edgepack run`: the files of a pack on a few samples beside the originals: answers, times, where they differ."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from edgepack.backends.backend import Session
from edgepack.backends.registry import FORMATS
from edgepack.backends.runtime import answers, load
from edgepack.data import Samples, feeds, rename
from edgepack.errors import PackError
from edgepack.metrics.classes import agreement
from edgepack.metrics.drop import SHARES
from edgepack.metrics.values import sqnr
from edgepack.model.scheme import Format
from edgepack.model.types import Array
from edgepack.pack.folder import EXAMPLE
from edgepack.pack.manifest import BUILD_AGAIN, Manifest, file_path, read_manifest
from edgepack.sources.images import ImageOptions
from edgepack.sources.samples import read_samples

SHOWN = 3
"""Values of an answer that is no class."""
LONG_S, RUNS = 0.2, 50
"""A glance at the time: as many inferences as fit, at most."""


@dataclass(frozen=True)
class RunFile:
    """One model file.

    Attributes:
        latency_s: median of some inferences here, one thread; no measurement.
        original_s: likewise of the dense fp32 file; None where the pack has none.
        differ: samples whose class is another than the original's; None where answers are no classes, or nothing stands
            beside them.
        least_sqnr_db: of all outputs and samples, at most 100; None without an original.
    """

    file: str
    format: Format
    latency_s: float
    original_s: float | None
    samples: int
    differ: int | None
    least_sqnr_db: float | None


@dataclass(frozen=True)
class RunAnswer:
    """One output of one file for one sample.

    Attributes:
        answer, original: the class with the largest score, else the first values.
        label: of the sample, where it is one number.
        same: whether the classes are; None for values.
        sqnr_db: of all values of the output against the original's, at most 100.
        largest_difference: of a value.
    """

    file: str
    sample: int
    output: int
    label: float | None
    answer: int | tuple[float, ...]
    original: int | tuple[float, ...] | None
    same: bool | None
    sqnr_db: float | None
    largest_difference: float | None


@dataclass(frozen=True)
class Ran:
    """What was seen: of every file, and of every answer."""

    pack: str
    files: tuple[RunFile, ...]
    answers: tuple[RunAnswer, ...]


def run_pack(
    pack: Path,
    data: Path | None = None,
    formats: Sequence[Format] | None = None,
    *,
    samples: int = 5,
    images: ImageOptions | None = None,
) -> Ran:
    """Run every model file of a pack, and the dense fp32 file of its format where the pack has one.

    Args:
        pack: folder.
        data: samples; None for the example inputs that the pack holds.
        formats: None for all.
        samples: at most, the first of the data.
        images: how images become arrays.

    Raises:
        PackError: no pack, or none with these formats.
        DataError: the samples do not fit its models.
        ModelError: a runtime cannot load a file.
    """
    manifest = read_manifest(pack)
    every = [fmt for fmt in FORMATS if (pack / file_path("edgepack", fmt)).is_file() and fmt in (formats or FORMATS)]
    if not every:
        raise PackError(f"{pack}: it has no model file in {' or '.join(formats or FORMATS)}", hint=BUILD_AGAIN)
    files, rows = [], []
    for fmt in every:
        session = load(pack / file_path("edgepack", fmt), fmt, exact=False)
        own = read_samples(data or pack / EXAMPLE, session.inputs, images).head(samples)
        found, entry = _run(pack, manifest, fmt, session, own)
        files.append(entry)
        rows += found
    return Ran(str(pack), tuple(files), tuple(rows))


def _run(
    pack: Path, manifest: Manifest, fmt: Format, session: Session, samples: Samples
) -> tuple[list[RunAnswer], RunFile]:
    name, dense = file_path("edgepack", fmt), pack / file_path("dense-fp32", fmt)
    outputs, latency_s = answers(session, samples), _latency_s(session, samples)
    original: tuple[Array, ...] | None = None
    original_s = None
    if dense.is_file():
        beside = load(dense, fmt, exact=False)
        original, original_s = answers(beside, samples), _latency_s(beside, samples)
    metrics = {judge.output: judge.metric for judge in manifest.metric.outputs}
    rows: list[RunAnswer] = []
    for number, output in enumerate(outputs):
        classes = metrics.get(number) in SHARES
        rows += _answers(name, number, output, None if original is None else original[number], samples, classes)
    judged = [row.same for row in rows if row.same is not None]
    ratios = [row.sqnr_db for row in rows if row.sqnr_db is not None]
    differ = len({row.sample for row in rows if row.same is False}) if judged else None
    return rows, RunFile(name, fmt, latency_s, original_s, len(samples), differ, min(ratios, default=None))


def _answers(
    file: str, number: int, output: Array, original: Array | None, samples: Samples, classes: bool
) -> Iterator[RunAnswer]:
    """Of one output, a row per sample; none where its shape differs between samples."""
    if output.size == 0 or (original is not None and original.shape != output.shape):
        return
    one_class = classes and output[0].size > 1 and output[0].size == max(output[0].shape)
    numbers = output.dtype.kind in "iubf"
    ratios = sqnr(output, original, None) if original is not None and numbers else None
    agreed = agreement(output, original, None) if original is not None and one_class else None
    for index in range(len(output)):
        theirs = None if original is None else original[index]
        yield RunAnswer(
            file=file,
            sample=index,
            output=number,
            label=_label(samples, index),
            answer=_said(output[index], one_class),
            original=None if theirs is None else _said(theirs, one_class),
            same=None if agreed is None else bool(agreed[index] == 100.0),
            sqnr_db=None if ratios is None else float(ratios[index]),
            largest_difference=None if theirs is None or not numbers else _difference(output[index], theirs),
        )


def _difference(own: Array, theirs: Array) -> float:
    return float(np.abs(own.astype(np.float64) - theirs.astype(np.float64)).max())


def _label(samples: Samples, index: int) -> float | None:
    if samples.labels is None or samples.labels[index].size != 1 or samples.labels.dtype.kind not in "iubf":
        return None
    return float(samples.labels[index].reshape(()))


def _said(output: Array, one_class: bool) -> int | tuple[float, ...]:
    flat = output.reshape(-1)
    return int(flat.argmax()) if one_class else tuple(float(value) for value in flat[:SHOWN])


def _latency_s(session: Session, samples: Samples) -> float:
    feed, _ = next(feeds(rename(samples, session.inputs), session.inputs, dynamic_batch=1))
    times: list[float] = []
    while len(times) < RUNS and sum(times) < LONG_S:
        start = time.perf_counter()
        session.run(feed)
        times.append(time.perf_counter() - start)
    return median(times)
