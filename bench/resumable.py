"""Experiments that keep every row that was measured and go on where they were interrupted."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import figures_file
from results_page import put_section

Row = dict[str, Any]
Key = Mapping[str, Any]


def options(command: str, about: str, subjects: Sequence[str]) -> argparse.ArgumentParser:
    """What every such command takes; `subjects` are the models that `--only` knows."""
    parser = argparse.ArgumentParser(prog=command, description=about)
    parser.add_argument("--fresh", action="store_true", help="measure all of it again")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so long")
    parser.add_argument("--only", choices=subjects, action="append", help="some of the models")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    return parser


def carry_out(
    name: str,
    command: str,
    keys: Sequence[Key],
    measure: Callable[..., list[Row]],
    render: Callable[[Sequence[Row]], str],
    given: argparse.Namespace,
) -> None:
    """Measure the keys of which there is no row yet, keep each, and write the section of bench/RESULTS.md.

    Args:
        name: of the section and of the file under bench/results/experiments/.
        command: that the section names.
        keys: what tells rows apart, in the order of the page; each has a "model".
        measure: takes the items of a key, gives its rows without them.
        render: the section of all rows.
        given: of `options`.
    """
    kept, deadline = f"experiments/{name}", time.monotonic() + 60 * given.minutes
    rows: list[Row] = [] if given.fresh else figures_file.rows(kept) or []
    for key in keys:
        wanted = not given.render and (not given.only or key["model"] in given.only)
        if not wanted or any(_has(row, key) for row in rows) or time.monotonic() > deadline:
            continue
        print(f"{name}: {', '.join(map(str, key.values()))}", file=sys.stderr)
        rows += [{**key, **row} for row in measure(**key)]
        rows.sort(key=lambda row: next((number for number, one in enumerate(keys) if _has(row, one)), len(keys)))
        figures_file.store(kept, {"rows": rows})
    if rows:
        put_section(name, command, figures_file.load(kept), render(rows))


def _has(row: Row, key: Key) -> bool:
    return all(row.get(name) == value for name, value in key.items())
