"""All files of a model, row by row: metric against bytes, and what rounding alone loses."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from accuracy.dense import rounded_dense
from accuracy.distillation import distilled
from accuracy.mixed import mixed_rows
from accuracy.pairs import PAIRS, rounded_product
from accuracy.rounding_error import dense_error, entry, pair_error
from accuracy.study import Row, Study, opened_study
from accuracy.subjects import SUBJECTS, Subject, make_subject
from edgepack.backends.onnx.schemes import INT8_DYNAMIC, NBITS4
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.workers import one_thread

SCHEMES = (INT8_DYNAMIC, NBITS4)
PROCESSES = 2
ORDER = ("minilm", "mnist", "lstm", "magika")
"""The longest first."""
SEEDS = {"mnist": 3}
WAYS: Mapping[Scheme, Sequence[str]] = {
    INT8_DYNAMIC: tuple(PAIRS),
    NBITS4: ("whitened", "+ latent rotation", "+ alternation"),
}


def measure(*, quick: bool = False, names: Sequence[str] = tuple(SUBJECTS)) -> dict[str, Any]:
    """Every model; the largest first, as some are measured beside each other."""
    tasks = [(name, seed, quick) for name in names for seed in range(1 if quick else SEEDS.get(name, 1))]
    tasks.sort(key=lambda task: ORDER.index(task[0]))
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        found = dict(zip(tasks, pool.map(_run, tasks), strict=True))
    return {
        "quick": quick,
        "models": [_joined([one for task, one in found.items() if task[0] == name]) for name in names],
    }


def _run(task: tuple[str, int, bool]) -> dict[str, Any]:
    """A task, in a process of its own."""
    name, seed, quick = task
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        subject = make_subject(name, Path(folder))
        return measure_model(shortened(subject) if quick else subject, seed, said)


def said(message: str) -> None:
    """Progress, for whoever waits."""
    print(f"accuracy: {message}", file=sys.stderr, flush=True)


def shortened(subject: Subject) -> Subject:
    """One level, one epoch."""
    level = subject.levels[len(subject.levels) // 2]
    return replace(subject, levels=(level,), distilled=(level,), sizes=subject.sizes[:1], epochs=1)


def measure_model(subject: Subject, seed: int = 0, say: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
    """All ways to write one of a subject's models; rows with lists of one entry, for this seed."""
    start = time.monotonic()
    rows: list[Row] = []
    rounding: list[dict[str, Any]] = []
    with opened_study(subject, subject.models[seed]) as study, one_thread():
        for row in _rows(study, rounding):
            rows.append(row)
            what = row["way"] if row["level"] is None else f"{row['way']} at {row['level']:g}"
            say(f"{subject.name} {seed + 1}/{len(subject.models)}, {time.monotonic() - start:.0f} s: {what}")
        samples = {
            "calibration": len(study.calibration),
            "validation": len(study.validation),
            "test": len(subject.test),
        }
        layers = len(study.layers)
    return {
        "name": subject.name,
        "title": subject.title,
        "what": subject.what,
        "scores": list(subject.scores),
        "samples": samples,
        "layers": layers,
        "epochs": subject.epochs,
        "rounding_level": rounding_level(subject),
        "rows": rows,
        "rounding": rounding,
    }


def _joined(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    lists = {key: merged([one[key] for one in seeds]) for key in ("rows", "rounding")}
    return {**seeds[0], "seeds": len(seeds), **lists}


def rounding_level(subject: Subject) -> int | float:
    """The level of the pairs whose rounding is looked at on its own."""
    return subject.levels[len(subject.levels) // 2]


def merged(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of several seeds as one: their lists joined."""
    return [_merged(rows) for rows in zip(*runs, strict=True)]


def _merged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for key, first in rows[0].items():
        values = [row[key] for row in rows]
        if isinstance(first, list):
            joined[key] = [one for value in values for one in value]
        elif isinstance(first, dict):
            joined[key] = _merged(values)
        else:
            joined[key] = first
    return joined


def _rows(study: Study, rounding: list[dict[str, Any]]) -> Iterator[Row]:
    """Rows in the order of the table; what rounding alone loses goes into `rounding`."""
    yield from _dense_rows(study, rounding)
    for level in study.subject.levels:
        yield from _pair_rows(study, level, rounding)
    for level in study.subject.distilled:
        yield from _recovered_rows(study, level)
    if study.subject.sizes:
        yield from mixed_rows(study, study.subject.sizes)


def _dense_rows(study: Study, rounding: list[dict[str, Any]]) -> Iterator[Row]:
    path = study.work / "dense.fp32.onnx"
    yield study.row(path, "dense", 32)
    for scheme in SCHEMES:
        if scheme == INT8_DYNAMIC:
            study.files.write_baseline(INT8_DYNAMIC, study.work / "candidate.onnx")
            path = study.work / "candidate.onnx"
        else:
            path = study.write({}, scheme)
        yield study.row(path, "dense", scheme.bits)
        weights = {name: rounded_dense(layer, scheme) for name, layer in study.layers.items()}
        yield study.row(study.write(weights, scheme), "dense GPTQ", scheme.bits)
        rounding.append(entry("dense", scheme.bits, "to nearest", dense_error(study, scheme)))
        rounding.append(entry("dense", scheme.bits, "GPTQ", dense_error(study, scheme, weights)))


def _pair_rows(study: Study, level: int | float, rounding: list[dict[str, Any]]) -> Iterator[Row]:
    ranks = study.ranks(level)
    for scheme, ways in WAYS.items():
        for way in ways:
            pairs = {name: PAIRS[way](study, name, rank, scheme) for name, rank in ranks.items()}
            yield study.row(_write_pairs(study, pairs, scheme), way, scheme.bits, level)
            if level == rounding_level(study.subject) and way != "plain SVD":
                rounding.append(entry("pair", scheme.bits, way, pair_error(study, ranks, scheme, pairs)))


def _recovered_rows(study: Study, level: int | float) -> Iterator[Row]:
    trained = distilled(study, study.ranks(level), study.subject.epochs)
    for scheme in SCHEMES:
        pairs = {name: rounded_product(study.layers[name], pair, scheme) for name, pair in trained.items()}
        yield study.row(_write_pairs(study, pairs, scheme), "+ distillation", scheme.bits, level)


def _write_pairs(study: Study, pairs: Mapping[str, Replacement], scheme: Scheme) -> Path:
    """Pairs in a scheme, all other layers in int8."""
    return study.write(pairs, INT8_DYNAMIC, dict.fromkeys(pairs, scheme))
