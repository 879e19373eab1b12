"""The models of MLPerf Tiny: packs against their own published int8 files, counted on two boards.

`python bench/measure_tiny.py CHECKOUT` takes a checkout of mlcommons/tiny, builds and counts what is missing, and
writes the section of bench/RESULTS.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from block_tables import decibels, kilobytes, markdown_table
from quiet_build import keeps_limits
from resumable import Row, carry_out, options

from edgepack.backends.tflite.macs import macs
from edgepack.backends.tflite.read import read_content
from edgepack.benchmark.emulate import emulate_variants
from edgepack.benchmark.session import Variant
from edgepack.emulator.counts import middle
from edgepack.metrics.classes import agreement
from edgepack.metrics.values import sqnr, sqnr_db
from edgepack.model.types import Array
from edgepack.natives import native
from edgepack.pack.manifest import read_document
from edgepack.pipeline.options import BuildOptions
from edgepack.sources import open_model
from edgepack.targets.file import get_target
from edgepack.targets.target import Target
from edgepack.units import count

NAME = "tiny"
COMMAND = "python bench/measure_tiny.py CHECKOUT"
TARGETS = ("rpi-zero2w", "rpi4")
INPUT = "input_1"
HELD_OUT = 0.2
"""Of the inputs, the last of them, on which no build looks."""
METRICS = {"sqnr": sqnr, "agreement": agreement}
ABOUT = """The benchmark's float models, built as TFLite files from the first four fifths of the inputs. *Published* is
the int8 file of the benchmark itself; what it loses on these inputs was the `--max-drop` of the build, by `--metric
agreement`, or `sqnr` for AD01, which has no classes. *Instructions* and *misses* (L1d, L2) are those of one inference
on the emulated board, batch 1, one thread, in LiteRT. *Agree* and *SQNR* compare with the float model on the last
fifth: the share of equal decisions, and signal over noise of all outputs. The benchmark's float file for keywords has
weights in 8 bits itself, so that LiteRT rounds its activations too; it is compared with those weights in float32."""


def measure(checkout: Path, model: str, target: str) -> list[Row]:
    """A row for the float file, the published one and that of the pack."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        return _measured(checkout, model, get_target(target), Path(folder))


def _measured(checkout: Path, model: str, target: Target, work: Path) -> list[Row]:
    from tiny_models import MODELS, answers

    tiny = MODELS[model]
    inputs = tiny.inputs(checkout)
    first = len(inputs) - int(HELD_OUT * len(inputs))
    np.savez(work / "data.npz", **{INPUT: inputs[:first]})
    source, published, pack = checkout / tiny.source, checkout / tiny.int8, work / "pack"
    reference = _of_the_source(source, inputs, work)
    score = METRICS[tiny.metric]
    limit = 100.0 - float(np.mean(score(answers(published, inputs[:first]), reference[:first], None)))
    data, formats = work / "data.npz", ("tflite",)
    asked = BuildOptions(
        str(source), target, data, formats=formats, metric=tiny.metric, max_drop=max(limit, 0.0), out=pack
    )
    kept = keeps_limits(asked)
    files = {
        "float": pack / "baseline" / "fp32.tflite",
        "published": published,
        "pack": pack / "model.tflite",
    }
    counted = emulate_variants([Variant(role, "tflite", path) for role, path in files.items()], None, target=target)
    layers = read_document(pack)["files"]["model.tflite"]["layers"]
    rows = []
    for found in counted.variants:
        counts, path = middle(found.rounds), files[found.name]
        rows.append(
            {
                "file": found.name,
                "inputs": [first, len(inputs) - first],
                "max_drop": asked.max_drop,
                "bytes": found.size_bytes,
                "macs": read_content(path.read_bytes(), path.name, macs),
                "instructions": round(counts.instructions),
                "misses": {level: round(max(missed, 0)) for level, missed in counts.misses.items()},
                "refused": not kept and found.name == "pack",
                "low_rank": sum(layer["rank"] is not None for layer in layers) if found.name == "pack" else 0,
                **_compared(answers(path, inputs[first:]), reference[first:]),
            }
        )
    return rows


def _of_the_source(source: Path, inputs: Array, work: Path) -> Array:
    """(N, outputs): the answers of the float model."""
    opened = open_model(str(source), work, ("tflite",))
    session = native(opened.native).session(opened.content, {}, threads=1)
    return np.concatenate([session.run({opened.inputs[0].name: sample})[0] for sample in inputs[:, None]])


def _compared(outputs: Array, reference: Array) -> dict[str, float | None]:
    noise = sqnr_db(outputs, reference)
    agree = float(np.mean(outputs.argmax(axis=1) == reference.argmax(axis=1)))
    return {"sqnr_db": None if np.isinf(noise) else round(noise, 1), "agree": agree}


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for each board: a line per file."""
    from tiny_models import MODELS

    parts = [ABOUT, "Inputs: " + "; ".join(_told(name, rows) for name in MODELS if _of(rows, name)) + "."]
    headers = ["model", "file", "low rank", "kB", "MACs", "instructions", "L1d", "L2", "agree", "SQNR, dB"]
    for target in TARGETS:
        lines = [
            [
                MODELS[row["model"]].title,
                row["file"] + (" (refused)" if row["refused"] else ""),
                str(row["low_rank"] or ""),
                kilobytes(row["bytes"]),
                *(count(row[key]) for key in ("macs", "instructions")),
                *(count(row["misses"][level]) for level in ("L1d", "L2")),
                "" if row["model"] == "ad" else f"{row['agree']:.4f}",
                decibels(row["sqnr_db"]),
            ]
            for name in MODELS
            for row in _of(rows, name)
            if row["target"] == target
        ]
        parts += [f"{target}:", markdown_table(headers, lines, right=headers[2:])]
    return "\n\n".join(parts)


def _of(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["model"] == name]


def _told(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    from tiny_models import MODELS

    row = _of(rows, name)[0]
    built, unseen = row["inputs"]
    return f"{MODELS[name].title}: {MODELS[name].told}, {built} and {unseen}, {row['max_drop']:.2f} allowed"


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    from tiny_models import MODELS

    parser = options("python bench/measure_tiny.py", str(__doc__), list(MODELS))
    parser.add_argument("checkout", type=Path, help="of mlcommons/tiny")
    given = parser.parse_args()
    keys = [{"model": model, "target": target} for model in MODELS for target in TARGETS]
    carry_out(NAME, COMMAND, keys, partial(measure, given.checkout), render, given)
