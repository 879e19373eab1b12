"""Builds packs and scores their files on samples that no build has seen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from quiet_build import keeps_limits

from edgepack import BuildOptions, load_target
from edgepack.backends.runtime import answers, load
from edgepack.data import LABELS, Samples
from edgepack.metrics.choose import Judge, choose
from edgepack.model.types import Array
from edgepack.pack.manifest import read_document
from edgepack.pipeline.limits import DIGITS
from edgepack.workspace import Cache
from promise.subjects import SUBJECTS, Data

TARGET = "rpi4"
FORMAT = "onnx"
SAMPLES = (500, 1000, 4000, 10_000)
UNCAUTIOUS = 0.5
"""A level at which the bound is the estimate itself: what caution costs is measured against it."""


@dataclass(frozen=True)
class Cell:
    """One build: `max_drop` and `confidence` as on the command line, `samples` of the pool as its data."""

    subject: str
    seed: int
    samples: int
    max_drop: float
    confidence: float

    @property
    def key(self) -> str:
        """Unique in the table."""
        return f"{self.subject} {self.seed} {self.samples} {self.max_drop:g} {self.confidence:g}"


def cells(names: list[str]) -> Iterator[Cell]:
    """The table's builds, the uncautious ones of the middle limit after the others of a model."""
    for name in names:
        subject = SUBJECTS[name]
        for seed in range(subject.seeds):
            for samples in SAMPLES:
                for limit in subject.limits:
                    yield Cell(name, seed, samples, limit, 0.9)
                yield Cell(name, seed, samples, subject.limits[1], UNCAUTIOUS)


class Trained:
    """A model with its data, and what the dense model answers to the unseen samples."""

    def __init__(self, subject: str, seed: int, folder: Path) -> None:
        """Trained unless the folder has it from before."""
        self.path = folder / f"{subject}-{seed}.onnx"
        self._stored = folder / f"{subject}-{seed}.npz"
        if not self._stored.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = SUBJECTS[subject].write(self.path, seed)
            pool = {f"pool.{name}": array for name, array in data.pool.items()}
            np.savez(self._stored, **pool, **{f"unseen.{name}": array for name, array in data.unseen.items()})

    @cached_property
    def data(self) -> Data:
        """To build on, and not to be seen."""
        with np.load(self._stored) as stored:
            parts: dict[str, dict[str, Array]] = {"pool": {}, "unseen": {}}
            for name in stored.files:
                part, _, array = name.partition(".")
                parts[part][array] = stored[name]
        return Data(**parts)

    @cached_property
    def unseen(self) -> Samples:
        """As a session takes them."""
        arrays = dict(self.data.unseen)
        labels = arrays.pop(LABELS, None)
        return Samples(arrays, labels)

    @cached_property
    def reference(self) -> tuple[Array, ...]:
        """Of the dense model."""
        return self.answers(self.path)

    def answers(self, path: Path) -> tuple[Array, ...]:
        """Of a file to all unseen samples."""
        return answers(load(path, FORMAT), self.unseen)

    @cached_property
    def judges(self) -> tuple[Judge, ...]:
        """How every output is scored."""
        return choose(self.reference, self.unseen.labels, None, self.unseen.inputs.values())

    def drop(self, path: Path) -> float:
        """On the unseen samples, of the output that loses most."""
        found, labels = self.answers(path), self.unseen.labels
        drops = [
            float(np.mean(judge.scores(self.reference, self.reference, labels)))
            - float(np.mean(judge.scores(found, self.reference, labels)))
            for judge in self.judges
        ]
        return max(drops)


def measure_cell(cell: Cell, trained: Trained, cache: Cache, folder: Path) -> dict[str, Any]:
    """Build one pack and score it; `refused`: the build itself said that no plan keeps the limit."""
    data, out = folder / "data.npz", folder / "pack"
    drawn = np.random.default_rng([cell.seed, cell.samples]).permutation(len(next(iter(trained.data.pool.values()))))
    chosen = drawn[: cell.samples]
    np.savez(data, **{name: array[chosen] for name, array in trained.data.pool.items()})
    options = BuildOptions(
        model=str(trained.path),
        data=data,
        target=load_target(TARGET),
        formats=(FORMAT,),
        max_drop=cell.max_drop,
        confidence=cell.confidence,
        out=out,
    )
    refused = not keeps_limits(options, cache)
    manifest = read_document(out)
    entry = manifest["files"][f"model.{FORMAT}"]
    stated = entry["confirmation"] or entry["validation"]
    return {
        **asdict(cell),
        "samples": len(chosen),
        "refused": refused,
        "drop": trained.drop(out / f"model.{FORMAT}"),
        "stated": stated["drop"],
        "bound": stated["bound"],
        "bytes": (out / f"model.{FORMAT}").stat().st_size,
        "int8_bytes": (out / "baseline" / f"int8.{FORMAT}").stat().st_size,
        "scheme": entry["scheme"],
    }


@dataclass(frozen=True)
class Summary:
    """Of some builds: how many there are, said themselves that no plan keeps the limit, drop more than was allowed
    without having said so, and stated a bound that holds.

    Attributes:
        worst: drop beyond the limit.
        of_int8: median size over that of the dense int8 file.
    """

    builds: int
    refused: int
    over: int
    held: int
    worst: float
    of_int8: float


def summary(rows: Sequence[Mapping[str, Any]]) -> Summary:
    """Of at least one build."""
    kept = [row for row in rows if not row["refused"]]
    return Summary(
        builds=len(rows),
        refused=len(rows) - len(kept),
        over=sum(round(row["drop"], DIGITS) > row["max_drop"] for row in kept),
        held=sum(row["drop"] <= row["bound"] for row in rows),
        worst=max((row["drop"] - row["max_drop"] for row in kept), default=0.0),
        of_int8=float(np.median([row["bytes"] / row["int8_bytes"] for row in rows])),
    )
