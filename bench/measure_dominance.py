"""Whether an option of the tool gives a file that another option beats in size, counted latency and accuracy at once.

`python bench/measure_dominance.py` builds what is missing of ten models times the options, for a Raspberry Pi 4 in both
formats, counts every file in QEMU and writes the section of bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import figures_file
from block_tables import markdown_table
from cases import Case
from results_page import put_section

from edgepack.benchmark.emulate import emulate_variants
from edgepack.benchmark.session import Variant
from edgepack.emulator.counts import middle
from edgepack.emulator.estimate import time_bound
from edgepack.errors import BudgetError
from edgepack.pack.manifest import read_document
from edgepack.pipeline.build import build
from edgepack.pipeline.options import BuildOptions
from edgepack.targets.file import get_target
from edgepack.workspace import file_digest

NAME = "dominance"
KEPT = f"experiments/{NAME}"
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
ABOUT = """{files} files of ten models; the limit on the drop is the same for all files of a model. *Beaten*: another
option's file of the same model and format is smaller, counted faster (the middle of the time bound of its counts) and
more accurate on samples that no build has seen, all three at once. A file whose own build said that it leaves the limit
(exit code 5) beats none."""
TARGET = get_target("rpi4")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, build, count, write."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="build all of it again")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no model after so long")
    options = parser.parse_args(arguments)
    path = figures_file.RESULTS / f"{KEPT}.json"
    rows = [] if options.fresh or not path.exists() else figures_file.load(KEPT)["figures"]["rows"]
    deadline = time.monotonic() + 60 * options.minutes
    from ten_models import NAMES, ten_models

    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        missing = tuple(name for name in NAMES if name not in {row["model"] for row in rows})
        for case in ten_models(Path(folder), missing):
            if time.monotonic() > deadline:
                break
            rows += _measured(case, Path(folder) / case.name)
            figures_file.store(KEPT, {"rows": rows})
    stored = figures_file.store(KEPT, {"rows": rows})
    put_section(NAME, COMMAND, stored, render(rows))


def _measured(case: Case, folder: Path) -> list[dict[str, Any]]:
    """A row per option and format."""
    rows: list[dict[str, Any]] = []
    files: dict[tuple[str, str], Path] = {}
    for option, chosen in OPTIONS.items():
        print(f"{NAME}: {case.name} {option}", file=sys.stderr)
        out = folder / str(len(files) + len(rows))
        for row in _built(case, option, chosen, out):
            files.setdefault((row["format"], row["digest"]), out / f"model.{row['format']}")
            rows.append(row)
    variants = [Variant(f"{digest}", fmt, path) for (fmt, digest), path in files.items()]  # type: ignore[arg-type]
    counted = {(v.format, v.name): v for v in emulate_variants(variants, None, target=TARGET, model=case.name).variants}
    for row in rows:
        bound = time_bound(middle(counted[row["format"], row.pop("digest")].rounds), TARGET)
        if isinstance(bound, str):
            raise ValueError(bound)
        row["latency_s"] = (bound.low_s + bound.high_s) / 2
    return rows


def _built(case: Case, option: str, chosen: Mapping[str, Any], out: Path) -> Iterator[dict[str, Any]]:
    options = BuildOptions(
        model=case.model, data=case.data, test=case.test, target=TARGET, max_drop=case.max_drop, out=out, **chosen
    )
    refused = True
    with warnings.catch_warnings(), suppress(BudgetError):
        warnings.simplefilter("ignore")
        build(options)
        refused = False
    for name, entry in read_document(out)["files"].items():
        kind, _, fmt = name.partition(".")
        if kind == "model":
            path = out / name
            yield {
                "model": case.name,
                "option": option,
                "format": fmt,
                "scheme": entry["scheme"],
                "refused": refused,
                "bytes": path.stat().st_size,
                "accuracy": entry["test"],
                "digest": file_digest(path),
            }


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
    return f"{ABOUT.format(files=len(rows))}\n\n{markdown_table(headers, lines, right=headers[1:3])}"


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    main()
