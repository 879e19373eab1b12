"""Whether an option of the tool gives a file that another option beats in size, counted latency and accuracy at once.

`python bench/measure_dominance.py` builds what is missing of ten models times the options, for a Raspberry Pi 4 in both
formats, counts every file in QEMU and writes the section of bench/RESULTS.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from block_tables import markdown_table
from cases import Case
from counted_time import counted_s
from quiet_build import keeps_limits

from edgepack import BuildOptions, load_target
from edgepack.backends.registry import FORMATS
from edgepack.benchmark.emulate import emulate_variants
from edgepack.benchmark.session import Variant
from edgepack.pack.manifest import read_document
from edgepack.workspace import file_digest

NAME = "dominance"
COMMAND = "python bench/measure_dominance.py"
DEFAULT = "the default"
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "--optimize latency": {"optimize": "latency"},
    "--optimize size": {"optimize": "size"},
    "--precision int8": {"precision": "int8"},
    "--precision int4": {"precision": "int4"},
    "--precision fp32": {"precision": "fp32"},
    "--rank 0.5": {"rank": 0.5},
}
ABOUT = """{files} files of {models} models; the limit on the drop is the same for all files of a model. *Beaten*:
another option's file of the same model and format is smaller, counted faster (the middle of the time bound of its
counts) and more accurate on samples that no build has seen, all three at once. A file whose own build said that it
leaves the limit (exit code 5) beats none."""
TARGET = load_target("rpi4")


def measure(case: Case, folder: Path) -> list[dict[str, Any]]:
    """A row per option and format."""
    rows: list[dict[str, Any]] = []
    files: dict[str, Variant] = {}
    for option, chosen in OPTIONS.items():
        print(f"{NAME}: {case.name} {option}", file=sys.stderr)
        for path, row in _built(case, chosen, folder / option):
            digest = file_digest(path)
            files.setdefault(digest, Variant(digest, row["format"], path))
            rows.append({"option": option, "digest": digest, **row})
    counted = emulate_variants(list(files.values()), None, target=TARGET, model=case.name)
    seconds = {variant.name: counted_s(variant, TARGET) for variant in counted.variants}
    return [{**row, "latency_s": seconds[row["digest"]]} for row in rows]


def _built(case: Case, chosen: Mapping[str, Any], out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The model files of a pack, and what is known of each."""
    options = BuildOptions(
        model=case.model, data=case.data, test=case.test, target=TARGET, max_drop=case.max_drop, out=out, **chosen
    )
    kept = keeps_limits(options)
    for fmt in FORMATS:
        path = out / f"model.{fmt}"
        if path.is_file():
            entry = read_document(out)["files"][path.name]
            size, accuracy = path.stat().st_size, entry["test"]
            scheme = entry["scheme"]
            yield path, {"format": fmt, "scheme": scheme, "refused": not kept, "bytes": size, "accuracy": accuracy}


def beaten_by(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of the same model and format that are better in everything."""
    return [
        other
        for other in rows
        if (other["model"], other["format"]) == (row["model"], row["format"])
        and not other["refused"]
        and other["bytes"] < row["bytes"]
        and other["latency_s"] < row["latency_s"]
        and other["accuracy"] > row["accuracy"]
    ]


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many files of each option are beaten, and by which."""
    lines = []
    for option in OPTIONS:
        own = [row for row in rows if row["option"] == option]
        beaten = [(row, found) for row in own if (found := beaten_by(row, rows))]
        if own:
            said = "; ".join(
                f"{row['model']}, {row['format']}, by `{found[0]['option']}`: {row['bytes'] / 1000:.1f} → "
                f"{found[0]['bytes'] / 1000:.1f} kB, {row['latency_s'] * 1e6:.0f} → "
                f"{found[0]['latency_s'] * 1e6:.0f} µs, {row['accuracy']:.2f} → {found[0]['accuracy']:.2f}"
                for row, found in beaten
            )
            lines.append([f"`{option}`" if option != DEFAULT else option, str(len(own)), str(len(beaten)), said])
    headers = ["option", "files", "beaten", "which"]
    about = ABOUT.format(files=len(rows), models=len({row["model"] for row in rows}))
    return f"{about}\n\n{markdown_table(headers, lines, right=headers[1:3])}"


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    from ten_models import experiment

    experiment(NAME, COMMAND, measure, render)
