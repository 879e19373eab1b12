"""DTLN's two parts as TFLite files: bytes, SI-SDR on speech with noise, and the bound for a Raspberry Pi 3B+.

`python bench/measure_dtln.py` fetches them out of a package, builds and counts what is missing, and writes the section
of bench/RESULTS.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from block_tables import kilobytes, markdown_table
from quiet_build import keeps_limits
from resumable import Row, carry_out, options

from edgepack.backends.registry import backend
from edgepack.benchmark.emulate import emulate_variants
from edgepack.benchmark.session import Variant
from edgepack.emulator.counts import middle
from edgepack.emulator.estimate import time_bound
from edgepack.pipeline.options import BuildOptions
from edgepack.targets.file import get_target

if TYPE_CHECKING:
    from dtln import Sound
    from zoo_files import ModelFile

    from edgepack.model.types import Array

NAME = "dtln"
COMMAND = "python bench/measure_dtln.py"
TARGET = "rpi3b+"
PACKED = "model.tflite"
DROPS = (0.5, 2.0, 5.0)
SECONDS = {"build": (0, 100), "choice": (100, 160), "test": (160, 280)}
EVERY = 6
"""Frames of the build's sound that become samples."""
MOST_LOST_DB = 0.3
PUBLISHED_MS = {"fp32": 9.6, "int8": 2.2}
"""A frame of both parts in TFLite, from the README of github.com/breizhn/DTLN."""
ABOUT = f"""Both parts built for {TARGET} as TFLite files by `--optimize size` with several `--max-drop`, in points of
variance explained, on frames of 100 s of espeak-ng's speech with pink noise of 0 to 10 dB. *SI-SDR lost*: that of the
float files less that of these, both in their loop, on the 60 s by which the pair of parts is chosen (the smallest that
loses at most {MOST_LOST_DB} dB there) and on 120 others; of the other pairs those that no smaller one is as good as.
*Bound*: of both parts' time for one frame by emulated counts, one thread; *published* as measured on the board, and how
far it lies from the middle of the bound. The convolutions that encode and decode in part 2, 262,144 weights, stay dense
in 8 bits in every plan that loses so little: LiteRT has no fast 4-bit kernel for CONV_2D, and factors of them lose far
more than 4 bits in the other layers; the matrices of part 1's recurrent states are stored in 8 bits as they are."""


def measure(model: str) -> list[Row]:
    """A row for the float files, the dense int8 ones and every pair of packed parts; the chosen one is scored and
    counted like the dense ones."""
    del model
    import dtln

    sounds = {name: dtln.sound(*seconds) for name, seconds in SECONDS.items()}
    source = [backend("onnx").load(part.file) for part in dtln.PARTS]
    _, fed = dtln.suppressed(source, sounds["build"].noisy)
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        packs = [_packs(part, feeds, Path(folder)) for part, feeds in zip(dtln.PARTS, fed, strict=True)]
        dense = {
            role: [packs[part][DROPS[0]] / "baseline" / f"{role}.tflite" for part in (0, 1)] for role in PUBLISHED_MS
        }
        rows = [_row(role, paths, sounds, ("choice", "test")) for role, paths in dense.items()]
        pairs = {
            f"packs, {first:g} and {second:g}": [packs[0][first] / PACKED, packs[1][second] / PACKED]
            for first in DROPS
            for second in DROPS
        }
        tried = [_row(name, paths, sounds, ("choice",)) for name, paths in pairs.items()]
        limit = rows[0]["si_sdr_db"]["choice"] - MOST_LOST_DB
        fitting = [row for row in tried if row["si_sdr_db"]["choice"] >= limit]
        chosen = min(fitting or tried, key=lambda row: sum(row["bytes"]))
        chosen |= _row(chosen["file"], pairs[chosen["file"]], sounds, ("choice", "test")) | {"chosen": True}
        paths = {**dense, chosen["file"]: pairs[chosen["file"]]}
        for row in (*rows, chosen):
            row["bound_s"] = _bound_s(paths[row["file"]])
        noisy = dtln.si_sdr_db(sounds["test"].noisy, sounds["test"].clean)
        return [{**row, "noisy_db": noisy} for row in (*rows, *tried)]


def _packs(part: ModelFile, feeds: Sequence[Mapping[str, Array]], folder: Path) -> dict[float, Path]:
    """A pack of the part for each drop."""
    import dtln

    data = folder / f"{part.file.stem}.npz"
    np.savez(data, **dtln.stacked(feeds, EVERY))
    packs = {drop: folder / f"{part.file.stem}.{drop}" for drop in DROPS}
    for drop, out in packs.items():
        keeps_limits(
            BuildOptions(
                str(part.file), get_target(TARGET), data, formats=("tflite",), out=out, max_drop=drop, optimize="size"
            )
        )
    return packs


def _row(name: str, paths: Sequence[Path], sounds: Mapping[str, Sound], asked: Sequence[str]) -> Row:
    import dtln

    parts = [backend("tflite").load(path) for path in paths]
    scores = {each: dtln.si_sdr_db(dtln.suppressed(parts, sounds[each].noisy)[0], sounds[each].clean) for each in asked}
    return {"file": name, "bytes": [path.stat().st_size for path in paths], "si_sdr_db": scores, "chosen": False}


def _bound_s(paths: Sequence[Path]) -> list[float]:
    """Least and most seconds of both parts."""
    target = get_target(TARGET)
    variants = [Variant(f"part {number}", "tflite", path) for number, path in enumerate(paths)]
    counted = emulate_variants(variants, None, target=target).variants
    bounds = [time_bound(middle(one.rounds), target) for one in counted]
    if any(isinstance(bound, str) for bound in bounds):
        raise ValueError(f"{TARGET}: {bounds}")
    return [sum(getattr(bound, end) for bound in bounds) for end in ("low_s", "high_s")]


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for the float files, the int8 ones, and each pair that no smaller one is as good as."""
    dense = {row["file"]: row for row in rows if row["file"] in PUBLISHED_MS}
    pairs = sorted((row for row in rows if row["file"] not in dense), key=lambda row: sum(row["bytes"]))
    best = [
        row
        for number, row in enumerate(pairs)
        if row["chosen"] or all(_lost(row, dense, "choice") < _lost(one, dense, "choice") for one in pairs[:number])
    ]
    headers = ["files", "part 1, kB", "part 2, kB", "both, kB", "SI-SDR lost, choice", "SI-SDR lost, test"]
    headers += ["bound, ms", "published, ms"]
    table = markdown_table(headers, [_cells(row, dense) for row in (*dense.values(), *best)], right=headers[1:])
    float_db, noisy_db = dense["fp32"]["si_sdr_db"]["test"], dense["fp32"]["noisy_db"]
    told = f"SI-SDR of the test: {noisy_db:.2f} dB before, {float_db:.2f} dB behind the float files."
    return "\n\n".join([ABOUT, table, told])


def _cells(row: Mapping[str, Any], dense: Mapping[str, Mapping[str, Any]]) -> list[str]:
    bound, off = "", ""
    if "bound_s" in row:
        low, high = (1000 * end for end in row["bound_s"])
        bound, published = f"{low:.2f} – {high:.2f}", PUBLISHED_MS.get(row["file"])
        off = "" if published is None else f"{published:.1f} ({2 * published / (low + high) - 1:+.0%})"
    return [
        f"**{row['file']}**" if row["chosen"] else row["file"],
        *(kilobytes(size) for size in (*row["bytes"], sum(row["bytes"]))),
        *(f"{_lost(row, dense, part):+.2f}" if part in row["si_sdr_db"] else "" for part in ("choice", "test")),
        bound,
        off,
    ]


def _lost(row: Mapping[str, Any], dense: Mapping[str, Mapping[str, Any]], part: str) -> float:
    return float(dense["fp32"]["si_sdr_db"][part] - row["si_sdr_db"][part])


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    given = options(COMMAND, str(__doc__), ["dtln"]).parse_args()
    carry_out(NAME, COMMAND, [{"model": "dtln"}], measure, render, given)
