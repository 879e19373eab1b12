"""How often a check of a pack against itself raises an alarm, and whether it names a layer that grew by 3 %.

`python bench/measure_check.py` builds the packs, checks them again and again, each time in fresh processes whose
environment is of another size, and writes the section of bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import figures_file
from block_tables import markdown_table
from results_page import put_section

NAME = "check"
KEPT = f"experiments/{NAME}"
COMMAND = "python bench/measure_check.py"
TARGET = "rpi4"
RECIPES = {
    "perceptron": "mnist_mlp.py:deeper",
    "conv net": "mnist_cnn.py:recipe",
    "LSTM": "lstm_classifier.py:recipe",
}
FEWER = {"LSTM": 4}
"""A check of it takes so many times as long, and it is checked less often by that."""
LAYER, RANKS = "2.weight", (192, 198)
"""The layer of 512×512 whose rank grows by 3.1 %."""
DESCRIBED = {
    "perceptron": f"784-512-512-10, its middle layer at rank {RANKS[0]} in int8, all else dense in fp32",
    "conv net": "that of the section on real digits",
    "LSTM": "two layers, unrolled in ONNX, whose layers stand in many places",
}
ABOUT = """Each pack is checked against its own counts of an earlier process (`edgepack check PACK --against base.json`,
ONNX and TFLite), in an environment of another size each time, while other programs keep the machine busy (*load*: mean
number of processes that want a CPU, of two). *Alarms*: checks that ended with exit code 6. *Widest*: the largest change
of a figure in any check, of those with at least 10,000 instructions or 1,000 misses."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--repeats", type=int, default=50, help="checks of each pack against itself")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no check after so long, in all")
    parser.add_argument("--folder", type=Path, default=figures_file.TOP / "dist" / NAME, help="for the packs")
    parser.add_argument("--fresh", action="store_true", help="forget earlier checks")
    options = parser.parse_args(arguments)
    rows = {} if options.fresh else figures_file.rows(KEPT) or {}
    deadline = time.monotonic() + 60 * options.minutes
    bases = {name: taken(built(name, options.folder)) for name in RECIPES}
    grown = built("perceptron", options.folder, RANKS[1])
    if "grown" not in rows:
        rows["grown"] = check(grown, bases["perceptron"], 0)
    for name, base in bases.items():
        own = rows.setdefault(name, [])
        while len(own) < options.repeats // FEWER.get(name, 1) and time.monotonic() < deadline:
            own.append(check(base.with_suffix(""), base, 97 * len(own)))
            figures_file.store(KEPT, {"rows": rows})
            print(f"{NAME}: {name} {len(own)}: {own[-1]['over']}", file=sys.stderr)
    stored = figures_file.store(KEPT, {"rows": rows})
    put_section(NAME, COMMAND, stored, render(rows))


def built(name: str, folder: Path, rank: int = RANKS[0]) -> Path:
    """A pack for the target."""
    out = folder / f"{name.replace(' ', '-')}-{rank}"
    if not out.exists():
        recipe = Path(__file__).parent / "models" / RECIPES[name]
        fixed = ["--rank", str(rank), "--only", LAYER, "--precision", "int8"] if name == "perceptron" else []
        run("build", str(recipe), "--target", TARGET, "--no-baseline", *fixed, "--out", str(out), padding=0)
    return out


def taken(pack: Path) -> Path:
    """Its figures, as a base."""
    base = pack.with_name(f"{pack.name}.json")
    if not base.exists():
        base.write_text(json.dumps(run("check", str(pack), padding=0)))
    return base


def check(pack: Path, base: Path, padding: int) -> dict[str, Any]:
    """One check."""
    load = os.getloadavg()[0]
    document = run("check", str(pack), "--against", str(base), padding=padding)
    return {
        "over": [
            [one["file"], one["part"], one["figure"], one["growth"]] for one in document["changes"] if one["over"]
        ],
        "figures": len(document["changes"]),
        "widest": {kind: max(abs(growth) for growth in large(document, kind)) for kind in ("instructions", "misses")},
        "load": round((load + os.getloadavg()[0]) / 2, 2),
    }


def large(document: Mapping[str, Any], kind: str) -> Iterator[float]:
    """Growths of the figures of a kind that are large enough for a share to say something."""
    least = {"instructions": 10_000, "misses": 1000}[kind]
    yield 0.0
    yield from (one["growth"] for one in document["changes"] if one["what"] == kind and one["base"] >= least)


def run(*arguments: str, padding: int) -> dict[str, Any]:
    """The document of a command; the environment moves what the guest has on its stack."""
    command = [sys.executable, "-m", "edgepack", *arguments, "--json"]
    done = subprocess.run(command, env={**os.environ, "PADDING": "x" * padding}, capture_output=True, text=True)
    if done.returncode not in (0, 6):
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return dict(json.loads(done.stdout))


def render(rows: Mapping[str, Any]) -> str:
    """A line per pack, and what grew."""
    lines = []
    for name in RECIPES:
        own = rows.get(name, [])
        if own:
            widest = [f"{100 * max(one['widest'][kind] for one in own):.2f} %" for kind in ("instructions", "misses")]
            load = sum(one["load"] for one in own) / len(own)
            alarms = sum(bool(one["over"]) for one in own)
            lines.append([name, str(len(own)), str(own[0]["figures"]), str(alarms), *widest, f"{load:.1f}"])
    headers = ["pack", "checks", "figures of each", "alarms", "widest, instructions", "widest, misses", "load"]
    found = [[file, part or "whole file", what, f"{100 * growth:+.1f} %"] for file, part, what, growth in
             rows["grown"]["over"]]  # fmt: skip
    grew = markdown_table(["file", "part", "figure", "growth"], found, right=["growth"])
    described = "; ".join(f"*{name}*: {DESCRIBED[name]}" for name in RECIPES if rows.get(name))
    table = markdown_table(headers, lines, right=headers[1:])
    return f"{ABOUT} {described}.\n\n{table}\n\nThe perceptron with rank {RANKS[1]}, 3.1 % more:\n\n{grew}"


if __name__ == "__main__":
    main()
