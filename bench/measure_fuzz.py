"""Every parser on wrong bytes: cases, what was read, what was refused, and anything else that was raised.

`.venv/bin/python bench/measure_fuzz.py` runs a million cases and writes the section of bench/RESULTS.md.
It ends with 1 where anything unexpected was raised; what does it is then kept under tests/fuzz/corpus/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import figures_file
from block_tables import markdown_table
from results_page import put_section

NAME = "experiments/fuzz"
COMMAND = ".venv/bin/python bench/measure_fuzz.py"
COUNTS = ("cases", "read", "refused", "unexpected")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, keep, write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cases", type=int, default=1_000_100, help="of all parsers together: each gets its share, rounded down"
    )
    parser.add_argument("--only", action="append", default=[], help="a parser; the rows of others stay as they are")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        command = [sys.executable, "-m", "tests.fuzz", "--cases", str(given.cases), "--seed", str(given.seed)]
        command += [part for name in given.only for part in ("--only", name)]
        own = {"PYTHONPATH": f".{os.pathsep}bench", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--json", str(counts)], cwd=figures_file.TOP, env={**os.environ, **own}, check=False
        )
        rows = json.loads(counts.read_text())
    kept = {row["parser"]: row for row in [*((given.only and figures_file.rows(NAME)) or []), *rows]}
    rows = list(kept.values())
    stored = figures_file.store(NAME, {"seed": given.seed, "rows": rows})
    put_section("fuzz", COMMAND, stored, render(rows))
    return done.returncode


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section of bench/RESULTS.md."""
    lines = [(row["parser"], *(f"{row.get(name, 0):,}" for name in COUNTS)) for row in rows]
    sums = (f"{sum(row.get(name, 0) for row in rows):,}" for name in COUNTS)
    about = (
        "Each case is a sound file in which bytes, numbers, texts or lengths were changed, seeded, given to one parser "
        "in a process that may take 2 GB. Refused is with one of edgepack's own errors, which is one message and a "
        "documented exit; anything else that is raised is unexpected, and so is the end of the process."
    )
    return f"{about}\n\n{markdown_table(('parser', *COUNTS), [*lines, ('**all**', *sums)], right=COUNTS)}"


if __name__ == "__main__":
    sys.exit(main())
