"""Builds what is missing of the table, keeps every build, and writes the section."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import figures_file
import numpy as np
from block_tables import markdown_table
from results_page import put_section

from edgepack.workspace import Cache, default_root
from promise.measure import SAMPLES, UNCAUTIOUS, Trained, cells, measure_cell, summary
from promise.subjects import SUBJECTS

NAME = "promise"
KEPT = f"experiments/{NAME}"
FOLDER = default_root() / "bench" / NAME
COMMAND = "python bench/promise"
ABOUT = """{builds} builds for a Raspberry Pi 4, ONNX, with `--confidence 0.9`; each file is scored on 5,000 to 10,000
samples that no build has seen. *Refused*: the build said that no plan keeps the limit, exit code 5. *Over*: of the
others, files that drop more there than was allowed. *Held*: the stated bound is above that drop. The bound is the one
that the plan was accepted by, so that with all plans that were looked at it holds at 90 %: for the first plan it is one
at 95 %. The unseen samples are a sample as well, whose noise counts against it.
*Of int8*: median size over that of the dense int8 file."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, build, write."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), metavar="MODEL")
    parser.add_argument("--fresh", action="store_true", help="build all of it again")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no build after so long")
    parser.add_argument("--render", action="store_true", help="build nothing")
    options = parser.parse_args(arguments)
    rows = {} if options.fresh else _kept()
    if not options.render:
        _build(rows, options.only, time.monotonic() + 60 * options.minutes)
    stored = figures_file.store(KEPT, {"rows": list(rows.values())}) if not options.render else figures_file.load(KEPT)
    put_section(NAME, COMMAND, stored, render(stored["figures"]["rows"]))


def _kept() -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in figures_file.rows(KEPT) or []}


def _build(rows: dict[str, dict[str, Any]], names: list[str], deadline: float) -> None:
    start, cache, trained = time.monotonic(), Cache(), None
    for cell in cells(names):
        if cell.key in rows or time.monotonic() > deadline:
            continue
        if trained is None or trained[0] != (cell.subject, cell.seed):
            trained = (cell.subject, cell.seed), Trained(cell.subject, cell.seed, FOLDER)
        with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
            row = {"key": cell.key, **measure_cell(cell, trained[1], cache, Path(folder))}
        rows[cell.key] = row
        figures_file.store(KEPT, {"rows": list(rows.values())})
        said = "refused" if row["refused"] else f"{row['drop']:+.2f} of {cell.max_drop:g}, at most {row['bound']:.2f}"
        print(f"{time.monotonic() - start:5.0f} s  {cell.key}: {said}, {row['bytes']} bytes", file=sys.stderr)


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The tables of the section, as Markdown."""
    usual = [row for row in rows if row["confidence"] != UNCAUTIOUS]
    limits = sorted({row["max_drop"] for row in usual})
    return "\n\n".join([
        ABOUT.format(builds=len(usual)),
        _table("model", {subject.title: _of(usual, subject=name) for name, subject in SUBJECTS.items()}),
        _table("samples", {str(count): _near(usual, count) for count in SAMPLES}),
        _table("limit", {f"{limit:g}": _of(usual, max_drop=limit) for limit in limits}),
        "What the caution costs: sizes over those of builds with `--confidence 0.5`, where the estimate alone decides.",
        _cost(rows),
    ])  # fmt: skip


def _of(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _near(rows: Sequence[Mapping[str, Any]], samples: int) -> list[Mapping[str, Any]]:
    """A pool may be a little smaller than the largest number."""
    return [row for row in rows if min(SAMPLES, key=lambda count: abs(count - row["samples"])) == samples]


def _table(title: str, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    headers = [title, "builds", "refused", "over", "worst beyond", "held", "of int8"]
    found = {name: summary(rows) for name, rows in groups.items() if rows}
    lines = [
        [
            name,
            str(one.builds),
            str(one.refused),
            _share(one.over, one.builds - one.refused),
            f"{one.worst:+.2f}",
            _share(one.held, one.builds),
            f"{one.of_int8:.2f}",
        ]
        for name, one in found.items()
    ]
    return markdown_table(headers, lines, right=headers[1:])


def _share(count: int, total: int) -> str:
    return f"{count} ({100 * count / max(total, 1):.0f} %)"


def _cost(rows: Sequence[Mapping[str, Any]]) -> str:
    cautious = {_question(row): row for row in rows if row["confidence"] != UNCAUTIOUS}
    lines = []
    for samples in SAMPLES:
        plain = [row for row in _near(rows, samples) if row["confidence"] == UNCAUTIOUS and _question(row) in cautious]
        if plain:
            ratio = float(np.median([cautious[_question(row)]["bytes"] / row["bytes"] for row in plain]))
            one = summary(plain)
            lines.append([str(samples), str(len(plain)), f"{ratio:.2f}", _share(one.over, one.builds - one.refused)])
    headers = ["samples", "pairs", "size, median", "over with 0.5"]
    return markdown_table(headers, lines, right=headers[1:])


def _question(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["subject"], row["seed"], row["samples"], row["max_drop"]
