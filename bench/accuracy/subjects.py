"""The models that are compressed, what they are calibrated on, and what they are tested on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from models import magika_files, minilm, mnist_mlp

from edgepack.data import Samples
from edgepack.metrics.classes import accuracy, agreement
from edgepack.metrics.values import cosine
from edgepack.model.types import Array

MODELS = Path(__file__).parent.parent / "models"
SENTENCES = 200

Score = Callable[[Array, Array, Array | None], float]
"""(outputs, the dense fp32 file's outputs, labels or None) → higher is better."""


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        what: the data, in a few words.
        models: as on the command line, one per seed that it was trained from.
        test: samples that nothing is chosen by; nothing is calibrated on them.
        scores: by name; the first is the one that counts.
        levels: ranks, or shares of each layer's weights, that all pairs of a file get.
        distilled: those of them at which distillation is shown.
        epochs: of distillation.
        classes: whether the model answers with class scores.
        sizes: shares of the dense int8 file's bytes for which a scheme is chosen per layer.
        data: `.npz` to calibrate on; None for a recipe, which brings its own.
    """

    name: str
    title: str
    what: str
    models: tuple[str, ...]
    test: Samples
    scores: Mapping[str, Score]
    levels: tuple[int | float, ...]
    distilled: tuple[int | float, ...]
    epochs: int
    classes: bool
    sizes: tuple[float, ...] = ()
    data: Path | None = None


def make_subject(name: str, folder: Path) -> Subject:
    """One of `SUBJECTS`; data that have to be gathered go into the folder."""
    return SUBJECTS[name](folder)


def _mnist(folder: Path) -> Subject:
    del folder
    return Subject(
        "mnist",
        "MNIST MLP 784-512-10",
        "handwritten digits; three models of different seeds, mean ± standard deviation",
        tuple(f"{MODELS / 'mnist_mlp.py'}:{function}" for function in ("recipe", "second", "third")),
        _test_digits(784),
        {"accuracy": _mean(accuracy)},
        levels=(8, 12, 16, 24, 32, 48),
        distilled=(12, 16, 24, 32),
        epochs=20,
        classes=True,
    )


def _lstm(folder: Path) -> Subject:
    del folder
    return Subject(
        "lstm",
        "LSTM classifier",
        "the same digits as sequences of 28 rows of pixels; the gates of its two cells are linear layers, used at every"
        " step, and the nodes of the unrolled steps are 80 kB of a file or more",
        (f"{MODELS / 'lstm_classifier.py'}:recipe",),
        _test_digits(28, 28),
        {"accuracy": _mean(accuracy)},
        levels=(0.5, 0.75),
        distilled=(0.5, 0.75),
        epochs=2,
        classes=True,
    )


def _minilm(folder: Path) -> Subject:
    del folder
    return Subject(
        "minilm",
        "all-MiniLM-L6-v2",
        f"first lines of the Python standard library's docstrings, {SENTENCES} of them held out",
        (f"{MODELS / 'minilm.py'}:recipe",),
        Samples(minilm.tokenized(minilm.held_out_sentences(SENTENCES))),
        {"cosine": _mean_cosine, "rank correlation": similarity_order},
        levels=(0.5, 0.75),
        distilled=(0.75,),
        epochs=2,
        classes=False,
        sizes=(0.65, 0.75, 0.85),
    )


def _magika(folder: Path) -> Subject:
    calibration, test = magika_files.write_data(folder)
    with np.load(test) as arrays:
        samples = Samples(dict(arrays))
    return Subject(
        "magika",
        "magika",
        "files of this machine, agreement with the original",
        (str(magika_files.model_path()),),
        samples,
        {"agreement": _mean(agreement)},
        levels=(0.25, 0.5),
        distilled=(0.5,),
        epochs=2,
        classes=True,
        data=calibration,
    )


SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {
    "mnist": _mnist,
    "lstm": _lstm,
    "minilm": _minilm,
    "magika": _magika,
}


def _test_digits(*shape: int) -> Samples:
    _, _, images, labels = mnist_mlp.digits()
    return Samples({"x": images.reshape(-1, *shape)}, labels)


def _mean(metric: Callable[..., Any]) -> Score:
    return lambda outputs, reference, labels: float(metric(outputs, reference, labels).mean())


def _mean_cosine(outputs: Array, reference: Array, labels: Array | None) -> float:
    return float(cosine(outputs, reference, labels).mean()) / 100


def similarity_order(outputs: Array, reference: Array, labels: Array | None = None) -> float:
    """Spearman's correlation of the similarities of all pairs of rows (N, features) with those of the reference."""
    from scipy.stats import spearmanr

    del labels
    pairs = np.triu_indices(len(outputs), 1)
    ours, theirs = (_similarities(rows)[pairs] for rows in (outputs, reference))
    return float(spearmanr(ours, theirs).statistic)


def _similarities(rows: Array) -> Array:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)
