"""What a build for a Raspberry Pi 4 makes of model files as people have them, each in its own format.

`python bench/zoo.py` fetches them out of packages, builds what has no row yet in a process of its own, and writes the
section of bench/RESULTS.md. `--latency` and `--counts` measure the packs that were built here and not measured yet.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures_file
import numpy as np
import zoo_pack
from block_tables import decibels, kilobytes, markdown_table, one_line
from results_page import put_section
from zoo_files import FOLDER, SEEDED, ZOO, ModelFile

from edgepack.backends.registry import backend
from edgepack.data import Samples, feeds, rename
from edgepack.errors import EdgepackError
from edgepack.metrics.values import sqnr_db
from edgepack.model.types import Array
from edgepack.pack.folder import EXAMPLE
from edgepack.pack.manifest import read_document
from edgepack.targets.file import get_target

NAME = "zoo"
KEPT = f"experiments/{NAME}"
COMMAND = "python bench/zoo.py"
TARGET = "rpi4"
MOST_S = 1200
SEARCH_MINUTES = 1
NOTICEABLE = 0.03
"""Share by which a file is slower."""
HELD_OUT = 0.2
"""Of the samples, the last of them, on which no build looks."""
ABOUT = """Each file was built for a Raspberry Pi 4 in its own format with the default options and `--time-limit
1min`, in a process of its own with one thread and at most twenty minutes, on machines that others used as well:
latencies are those of the one that is named above, later rows come from one with AVX-VNNI as well. *Int8*: the best
dense int8 file. *Layers*: how many of those that edgepack knows are in low-rank factors. *Inputs*: what the build was
given as `--data`; where they are seeded there were none, so that nothing measured the accuracy. *Agree* and *SQNR*
compare the answers of the pack's file with those of the source, on samples that no build has seen, in the output that
loses most: the share of equal decisions (which of several numbers is the largest, or on which side of one half a
single one lies), and signal over noise. Heads of wake words with inputs of their own were built with `--metric
agreement --max-drop 0.1 --confidence 0.5 --optimize size`. Where such a head hears its word rarely, its samples are
all in which it does and every eighth of the others: of all of them it hears Mycroft in one of 1,600, and a file that
never heard it agreed in 99.9 %. *Faster*: latency of dense int8 over that of the pack's file, which was built for a
Raspberry Pi 4 and timed here, on a machine with other kernels and other work, medians of four fresh processes in
turns: what is slower here need not be so there. *Minstr* and *k misses*: instructions (millions) and lines that come
into L2 (thousands), of one inference on an emulated Raspberry Pi 4, dense int8 → pack. Where a build stops, its exit
code and its own words."""
LAYERS = """What became of the layers, one line a kind: how many of them are in low-rank factors, and why the others are
not, by the first reason that their manifests give. Below, operators with weights that are no layers: they are stored in
8 bits where that keeps the drop, never factored."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, build, write."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="files whose name has this, built again")
    parser.add_argument(
        "--seeded", action="store_true", help="without data, which takes seconds where they take minutes"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier builds")
    parser.add_argument("--latency", action="store_true", help="measure packs on this machine, which wants it quiet")
    parser.add_argument("--counts", action="store_true", help="count packs on the emulated target")
    parser.add_argument("--most", type=float, default=float("inf"), metavar="S", help="begin nothing after so long")
    parser.add_argument("--render", action="store_true", help="build nothing")
    options = parser.parse_args(arguments)
    rows = {} if options.fresh else {row["name"]: row for row in figures_file.rows(KEPT) or []}
    if options.render:
        put_section(NAME, COMMAND, figures_file.load(KEPT), render(list(rows.values())))
        return
    begun = time.monotonic()
    for file in sorted(ZOO, key=lambda each: each.file.stat().st_size):
        row = rows.get(file.name)
        if time.monotonic() - begun > options.most or not _is_wanted(file, row, options):
            continue
        if options.latency or options.counts:
            rows[file.name] = dict(row or {}) | _measured(file, counts=options.counts)
        else:
            rows[file.name] = measure(replace(file, inputs=SEEDED, options=()) if options.seeded else file)
        kept = [rows[each.name] for each in ZOO if each.name in rows]
        put_section(NAME, COMMAND, figures_file.store(KEPT, {"rows": kept}), render(kept))
        print(f"{file.name}: {_line(rows[file.name])}", file=sys.stderr)


def _is_wanted(file: ModelFile, row: Mapping[str, Any] | None, options: argparse.Namespace) -> bool:
    """Whether it is named, or lacks what is asked for; what is measured of a pack needs one."""
    named = any(part in file.name for part in options.only or ())
    if not (options.latency or options.counts):
        return named or (not options.only and row is None)
    packed = row is not None and "pack_bytes" in row and _pack_of(file).is_dir()
    lacks = row is not None and ("counts" if options.counts else "faster") not in row
    return packed and (named or (not options.only and lacks))


def _pack_of(file: ModelFile) -> Path:
    return FOLDER / "built" / f"{file.name}.pack"


def _measured(file: ModelFile, *, counts: bool) -> dict[str, Any]:
    """What is measured of its pack; None for what cannot be, which is said."""
    try:
        if counts:
            return {"counts": zoo_pack.counts(file, _pack_of(file), get_target(TARGET))}
        return {"faster": zoo_pack.faster(file, _pack_of(file))}
    except EdgepackError as err:
        print(f"{file.name}: {err.message}", file=sys.stderr)
        return {"counts" if counts else "faster": None}


def measure(file: ModelFile) -> dict[str, Any]:
    """A row: what the build made, or said."""
    row = {
        "name": file.name, "package": file.package, "format": file.format, "bytes": file.file.stat().st_size,
        "inputs": file.inputs, "options": list(file.options),
    }  # fmt: skip
    out = _pack_of(file)
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        data, held_out = [], None
        if file.inputs != SEEDED:
            held_out, data = _with_data(file, Path(folder) / "samples.npz")
        begun = time.monotonic()
        code, said = _build(file, [*data, "--out", str(out)])
        row |= {"exit": code, "seconds": round(time.monotonic() - begun)}
        if not out.is_dir():
            return row | {"reason": said}
        return row | {"reason": said if code else None} | _pack(file, out, held_out)


def _with_data(file: ModelFile, path: Path) -> tuple[Samples, list[str]]:
    """Samples that are held out, and the option with the others."""
    from zoo_inputs import inputs  # which are those of bench/models as well

    arrays = inputs(file.inputs, backend(file.format).load(file.running))
    count = len(next(iter(arrays.values())))
    first = count - int(HELD_OUT * count)
    np.savez(path, **{name: array[:first] for name, array in arrays.items()})
    return Samples({name: array[first:] for name, array in arrays.items()}), ["--data", str(path)]


def _build(file: ModelFile, options: Sequence[str]) -> tuple[int, str]:
    """Its exit code, and the error that it ended with."""
    command = [sys.executable, "-m", "edgepack", "build", str(file.file), "--target", TARGET]
    command += ["--formats", file.format, "--time-limit", f"{SEARCH_MINUTES}min", "--json", *file.options, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=MOST_S, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return 124, f"no pack after {MOST_S} s"
    said = json.loads(ended.stdout or "{}").get("error", {}).get("message", "") if ended.returncode else ""
    return ended.returncode, said.replace(str(file.file), file.name)


def _pack(file: ModelFile, out: Path, held_out: Samples | None) -> dict[str, Any]:
    manifest = read_document(out)
    packed = manifest["files"][f"model.{file.format}"]
    layers = packed["layers"]
    int8 = manifest["files"][f"baseline/int8.{file.format}"]
    dropped = (int8["confirmation"] or int8["validation"] or {"drop": 0.0})["drop"]
    return {
        "pack_bytes": packed["size_bytes"],
        "int8_bytes": int8["size_bytes"],
        "int8_is_rival": dropped <= (manifest["options"]["max_drop"] or 0.0),
        "scheme": packed["scheme"],
        "layers": len(layers),
        "low_rank": sum(layer["rank"] is not None for layer in layers),
        "kinds": zoo_pack.layers(file, out),
        "warnings": [re.sub(r"/\S*/", "", line) for line in manifest["warnings"]],
    } | _compared(file, out, held_out)


def _compared(file: ModelFile, out: Path, held_out: Samples | None) -> dict[str, float | None]:
    """Of the output that loses most: equal decisions, and SQNR in dB, None where the answers are the same."""
    load = backend(file.format).load
    source, packed = load(file.running), load(out / f"model.{file.format}")
    if held_out is None:
        with np.load(out / EXAMPLE, allow_pickle=False) as archive:
            given = [dict(archive)]
    else:
        given = [feed for feed, _ in feeds(rename(held_out, source.inputs), source.inputs, dynamic_batch=1)]
    expected, answered = ([one.run(feed) for feed in given] for one in (source, packed))
    noise, agreed = [], []
    for number in range(len(expected[0])):
        reference, answer = (
            np.concatenate([_rows(outputs[number]) for outputs in all_outputs]) for all_outputs in (expected, answered)
        )
        noise.append(sqnr_db(answer, reference))
        agreed.append(float(np.mean(_decided(answer) == _decided(reference))))
    worst = min(noise)
    return {"sqnr_db": None if np.isinf(worst) else round(worst, 1), "agree": round(min(agreed), 5)}


def _rows(output: Array) -> Array:
    """Vectors along the last axis."""
    return np.asarray(output).reshape(-1, output.shape[-1] if output.ndim else 1)


def _decided(scores: Array) -> Array:
    return scores[:, 0] > 0.5 if scores.shape[1] == 1 else scores.argmax(axis=1)


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per file, and what they come to."""
    built = [row for row in rows if "pack_bytes" in row]
    smaller = float(np.exp(np.mean([np.log(row["int8_bytes"] / row["pack_bytes"]) for row in built]))) if built else 1.0
    over = [row["name"] for row in built if row["pack_bytes"] > min([row["bytes"], *_rival(row)])]
    timed = sum(row.get("faster") is not None for row in built)
    slower = [row["name"] for row in built if (row.get("faster") or 1.0) < 1 - NOTICEABLE]
    counts = (
        f"{len(built)} of {len(rows)} files have a pack, in the geometric mean {smaller:.2f} times smaller than int8; "
        f"{_named(over, 'larger than their source, or than an int8 file within the budget')}; "
        f"of {timed or 'none'} timed here {_named(slower, 'over 3 % slower than int8')}."
    )
    headers = [
        "file", "source, kB", "int8, kB", "pack, kB", "layers", "scheme", "inputs", "agree", "SQNR, dB", "faster",
        "Minstr", "k misses", "s",
    ]  # fmt: skip
    table = markdown_table(headers, [_cells(row) for row in built], right=[*headers[1:4], *headers[7:]])
    stopped = [
        [row["name"], kilobytes(row["bytes"]), str(row["exit"]), one_line(row["reason"])]
        for row in rows
        if row not in built
    ]
    stops = [
        "Builds that stop:",
        markdown_table(["file", "source, kB", "exit", "reason"], stopped, right=["source, kB", "exit"]),
    ]
    known = {row["name"] for row in rows}
    lacking = [file.name for file in ZOO if file.name not in known]
    rest = [f"{len(lacking)} files have no row yet: {', '.join(lacking)}."] if lacking else []
    return "\n\n".join([ABOUT, counts, table, LAYERS, _by_kind(built), *(stops if stopped else []), *rest])


def _named(names: Sequence[str], what: str) -> str:
    return f"{len(names)} are {what}{': ' if names else ''}{', '.join(names)}"


def _by_kind(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per kind of layer, over all files, and one per kind of operator that is none."""
    found: dict[str, Counter[str]] = {}
    files: Counter[str] = Counter()
    for row in rows:
        for kind, fates in row.get("kinds", {}).items():
            found.setdefault(kind, Counter()).update(fates)
            files[kind] += 1
    reasons = [*zoo_pack.LEFT, zoo_pack.OTHER]
    headers = ["kind", "files", "all", "factors", *reasons]
    known = sorted((kind for kind in found if zoo_pack.NO_LAYER not in found[kind]), key=lambda kind: -files[kind])
    lines = [
        [kind, str(files[kind]), str(found[kind].total()), *(str(found[kind][fate]) for fate in headers[3:])]
        for kind in known
    ]
    others = [
        [kind, str(files[kind]), str(found[kind].total()), *["–"] * len(headers[3:])]
        for kind in found
        if kind not in known
    ]
    return markdown_table(headers, [*lines, *others], right=headers[1:])


def _rival(row: Mapping[str, Any]) -> list[int]:
    return [row["int8_bytes"]] if row["int8_is_rival"] else []


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"] + (f" (exit {row['exit']})" if row["exit"] else ""),
        *(kilobytes(row[size]) for size in ("bytes", "int8_bytes", "pack_bytes")),
        f"{row['low_rank']} of {row['layers']}", row["scheme"], row["inputs"], f"{row['agree']:.4f}",
        decibels(row["sqnr_db"]), "–" if row.get("faster") is None else f"{row['faster']:.2f}×",
        _change(row, "instructions", 1e6), _change(row, "l2_misses", 1e3), str(row["seconds"]),
    ]  # fmt: skip


def _change(row: Mapping[str, Any], event: str, unit: float) -> str:
    """Of dense int8 and of the pack; as low as 0, since these are differences of counts."""
    if not row.get("counts"):
        return "–"
    return " → ".join(f"{max(row['counts'][name][event], 0) / unit:.3g}" for name in ("int8", "pack"))


def _line(row: Mapping[str, Any]) -> str:
    if "pack_bytes" not in row:
        return f"exit {row['exit']} after {row['seconds']} s: {row['reason']}"
    return f"{row['bytes']} → int8 {row['int8_bytes']}, pack {row['pack_bytes']} bytes, {row['seconds']} s"


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    main()
