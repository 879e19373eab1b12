"""Faults on purpose: builds that are killed, and benches on devices that fail.

.venv/bin/python bench/measure_faults.py --kills 100
.venv/bin/python bench/measure_faults.py --minutes 90
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import figures_file
from faults_kills import DEATH_S, kills
from results_page import put_section

KEPT = "experiments/faults"
COMMAND = ".venv/bin/python bench/measure_faults.py --kills 100 --minutes 90"


def main() -> None:
    """Measure what was asked for, keep it, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="builds to kill")
    parser.add_argument("--formats", default="onnx,tflite", help="that they write")
    parser.add_argument("--minutes", type=float, default=0.0, help="of benches with faults")
    given = parser.parse_args()
    rows: dict[str, Any] = dict(figures_file.rows(KEPT) or {})
    if given.kills:
        with tempfile.TemporaryDirectory(prefix="edgepack-faults-") as folder:
            rows["kills"] = kills(Path(folder), given.kills, formats=given.formats)
        figures_file.store(KEPT, {"rows": rows})
    put_section("faults", COMMAND, figures_file.load(KEPT), render(rows))


def render(rows: Mapping[str, Any]) -> str:
    """The section's text."""
    lines = ["| what | how often | came through | otherwise |", "|---|--:|--:|---|"]
    if found := rows.get("kills"):
        well = found["finished"] - found["different"] - found["failed"]
        what = f"SIGKILL at a random point of a build ({found['formats']}), then the same build again"
        through = f"{well} of {found['finished']} builds with the same bytes"
        rest = [
            f"{found['outlived']} processes ran {DEATH_S:g} s after it",
            f"the slowest ended after {found['slowest_death_s']} s",
            f"{len(found['left'])} things left over at the end",
            f"{found['torn']} torn packs",
        ]
        lines.append(f"| {what} | {found['kills']} | {through} | {'; '.join(rest)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
