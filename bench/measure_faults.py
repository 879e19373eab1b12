"""Faults on purpose: builds that are killed, and benches on devices that fail.

.venv/bin/python bench/measure_faults.py --kills 100
.venv/bin/python bench/measure_faults.py --minutes 90
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import figures_file
from faults_kills import DEATH_S, kills, small_model
from results_page import put_section

HELD = {"kilobytes": "kB of memory", "files": "open files", "threads": "threads"}
KEPT = "experiments/faults"
COMMAND = ".venv/bin/python bench/measure_faults.py --kills 100 --minutes 2"


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
    if given.minutes:
        rows["devices"] = devices(given.minutes)
        figures_file.store(KEPT, {"rows": rows})
    put_section("faults", COMMAND, figures_file.load(KEPT), render(rows))


def devices(minutes: float) -> dict[str, Any]:
    """Benches over a real sshd on a device that breaks every second or two."""
    sys.path.insert(1, str(Path(__file__).parent.parent))
    from edgepack.benchmark.session import Variant
    from edgepack.devices.remote import RemoteDevice
    from tests.devices import faults, sshd

    with tempfile.TemporaryDirectory(prefix="edgepack-faults-") as name:
        folder = Path(name)
        model, _ = small_model(folder)
        with sshd.rig(folder, disk=faults.DISK) as rig:
            counts, _ = faults.run(rig, [Variant("edgepack", "onnx", model)], 60 * minutes)
            RemoteDevice(rig.link()).close()  # the next session sweeps up after those that were cut
            rig.machine.assert_clean()
    told = Counter(message[:60] for message in counts.told)
    plain = {"faults": dict(counts.faults), "errors": dict(counts.errors), "told": dict(told)}
    return {"minutes": minutes, **vars(counts), **plain}


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
    if found := rows.get("devices"):
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found["faults"].items()))
        through = f"{found['benches']} benches with a whole result, begun {found['tries']} times"
        grown = [f"{found[key][0]} and {found[key][1]} {words}" for key, words in HELD.items()]
        what = f"{found['minutes']:g} minutes of benches on an SSH device that fails: {kinds}"
        rest = (
            f"{found['resumed']} jobs taken up; after the first bench and at the end {', '.join(grown)}; nothing left"
        )
        lines.append(f"| {what} | {sum(found['faults'].values())} | {through} | {rest} there |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
