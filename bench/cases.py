"""The models that the planner's figures are measured on, with their data and what each may lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models import magika_files

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        model: as on the command line.
        max_drop: in the unit of the model's metric.
        data, test: `.npz`; None for a recipe, which brings its own.
    """

    name: str
    model: str
    max_drop: float
    data: Path | None = None
    test: Path | None = None


def cases(names: Sequence[str], folder: Path) -> list[Case]:
    """The named ones of `mnist`, `lstm`, `minilm` and `magika`; data that have to be gathered go into the folder."""
    return [_case(name, folder) for name in names]


def _case(name: str, folder: Path) -> Case:
    if name == "magika":
        calibration, test = magika_files.write_data(folder)
        return Case("magika", str(magika_files.model_path()), 1.0, calibration, test)
    known = {
        "mnist": ("MNIST MLP", "mnist_mlp.py", 0.3),
        "lstm": ("LSTM classifier", "lstm_classifier.py", 0.5),
        "minilm": ("MiniLM", "minilm.py", 1.0),
    }
    title, file, max_drop = known[name]
    return Case(title, f"{MODELS / file}:recipe", max_drop)
