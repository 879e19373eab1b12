"""Convolutions and recurrent layers on real digits: multiplications, bytes, accuracy and latency against dense int8.

`python bench/measure_kinds.py` trains every model from three seeds, builds it for this machine with and without
distillation, benches what is missing, and writes the section of bench/RESULTS.md. It goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import mean
from typing import Any

import figures_file
from block_tables import TITLES, markdown_table
from quiet_build import keeps_limits
from results_page import put_section

from edgepack.benchmark.pack import bench_pack
from edgepack.benchmark.session import Settings
from edgepack.benchmark.summary import summarize_result
from edgepack.data import read_arrays
from edgepack.devices.local import LocalDevice
from edgepack.distill.budget import Epochs
from edgepack.natives import native
from edgepack.pack.manifest import read_document
from edgepack.pipeline.inspect import InspectOptions, inspect
from edgepack.pipeline.options import BuildOptions
from edgepack.sources import open_model
from edgepack.targets.file import get_target
from edgepack.targets.target import HOST

NAME = "kinds"
COMMAND = "python bench/measure_kinds.py"
MAX_DROP = 0.5
BUILDS: Mapping[str, Mapping[str, Any]] = {
    f"`--max-drop {MAX_DROP}`": {},
    f"`--max-drop {MAX_DROP} --distill 3epochs`": {"distill": Epochs(3)},
}
SEEDS = 3
ABOUT = f"""Trained on 50,000 MNIST digits, built for this machine on 10,000 others, scored on the 10,000 test digits;
means over {SEEDS} seeds. *MACs*: those of the dense model over the pack's. *Faster*: median latency of dense
int8 over that of the pack, in fresh processes in turns; *verdicts* are those of the seeds' Mann–Whitney tests. A GRU
comes out unrolled in LiteRT, and its layers stay dense there."""
"""The lines above the table."""
Row = dict[str, Any]


def measure(name: str, seed: int, build: str, folder: Path) -> list[Row]:
    """A row per format of one build of a model that stands in the folder."""
    out, host = folder / "pack", get_target(HOST)
    model, data, test = (folder / file for file in ("model.onnx", "data.npz", "test.npz"))
    options = BuildOptions(str(model), data=data, test=test, target=host, max_drop=MAX_DROP, out=out, **BUILDS[build])
    kept = keeps_limits(options)
    with closing(LocalDevice()) as device:
        result = bench_pack(out, target=host, device=device, settings=Settings(cold=False))
    files = read_document(out)["files"]
    summary = {(row.format, row.variant): row for row in summarize_result(result)}
    rows = []
    for fmt in ("onnx", "tflite"):
        entry, own, int8 = files[f"model.{fmt}"], summary[fmt, "edgepack"], summary[fmt, "dense-int8"]
        if own.vs_int8 is None:
            raise ValueError(f"{name}: the bench has no ratio of {fmt} files")
        rows.append(
            {
                "model": name,
                "seed": seed,
                "build": build,
                "format": fmt,
                "refused": not kept,
                "fewer_macs": fewer_macs(model, data, entry["layers"]),
                "bytes": own.size_bytes,
                "int8_bytes": int8.size_bytes,
                "drop": files[f"baseline/fp32.{fmt}"]["test"] - entry["test"],
                "int8_drop": files[f"baseline/fp32.{fmt}"]["test"] - files[f"baseline/int8.{fmt}"]["test"],
                "layers": {layer["layer"]: [layer["structure"], layer["scheme"]] for layer in entry["layers"]},
                "faster": own.vs_int8.speedup,
                "verdict": own.vs_int8.verdict,
            }
        )
    return rows


def fewer_macs(model: Path, data: Path, layers: Sequence[Mapping[str, Any]]) -> float:
    """Multiplications of the dense model over those with its layers as a manifest has them, at as many places each."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        opened = open_model(str(model), Path(folder), ("onnx",))
        total = native(opened.native).macs(opened.content, {"x": read_arrays(data)["x"][:1]})
    if total is None:
        raise ValueError(f"{model.name}: its multiplications cannot be counted")
    places = {layer.name: layer.rows or 0 for layer in inspect(InspectOptions(str(model), data=data)).layers}
    dense = {layer["layer"]: layer["out_features"] * layer["in_features"] for layer in layers}
    saved = sum(places[layer["layer"]] * (dense[layer["layer"]] - layer["weight_parameters"]) for layer in layers)
    return total / (total - saved)


def render(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """A line per model, build and format: means over the seeds."""
    lines = []
    for key in dict.fromkeys((row["model"], row["build"], row["format"]) for row in rows):
        alike = [row for row in rows if (row["model"], row["build"], row["format"]) == key]
        verdicts = [row["verdict"] for row in alike]
        said = [f"{verdicts.count(one)} {one}" for one in dict.fromkeys(verdicts)]
        said += [f"{count} refused"] if (count := sum(row["refused"] for row in alike)) else []
        lines.append(
            [
                titles[key[0]],
                key[1],
                TITLES[key[2]],
                f"{_mean(alike, 'fewer_macs'):.2f}×",
                f"{_mean(alike, 'bytes') / 1000:.1f}",
                f"{_mean(alike, 'int8_bytes') / 1000:.1f}",
                f"{_mean(alike, 'drop'):+.2f}",
                f"{_mean(alike, 'int8_drop'):+.2f}",
                f"{_mean(alike, 'faster'):.2f}×",
                ", ".join(said),
            ]
        )
    headers = ["model", "build", "runtime", "MACs", "kB", "int8, kB", "drop", "int8 drop", "faster", "verdicts"]
    return f"{ABOUT}\n\n{markdown_table(headers, lines, right=headers[3:9])}"


def _mean(rows: Sequence[Row], name: str) -> float:
    return mean(row[name] for row in rows)


def main() -> None:
    """Measure what is missing, keep each, and write the section."""
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    import kinds_models

    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("--fresh", action="store_true", help="measure all of it again")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no model after so long")
    parser.add_argument("--only", choices=kinds_models.SUBJECTS, action="append", help="some of the models")
    parser.add_argument("--attempt", action="store_true", help="one seed, few digits: prints, and keeps nothing")
    given = parser.parse_args()
    kept, deadline = f"experiments/{NAME}", time.monotonic() + 60 * given.minutes
    rows: list[Row] = [] if given.fresh or given.attempt else figures_file.rows(kept) or []
    sizes = kinds_models.Sizes(4000, 1500, 1000, 2) if given.attempt else kinds_models.Sizes()
    known = {(row["model"], row["seed"], row["build"]) for row in rows}
    titles = {name: subject.title for name, subject in kinds_models.SUBJECTS.items()}
    for name in given.only or titles:
        for seed in range(1 if given.attempt else SEEDS):
            missing = [build for build in BUILDS if (name, seed, build) not in known]
            if not missing or time.monotonic() > deadline:
                continue
            with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
                print(f"{NAME}: {name}, seed {seed}", file=sys.stderr)
                kinds_models.write(name, seed, sizes, Path(folder))
                for build in missing:
                    rows += measure(name, seed, build, Path(folder))
                    if not given.attempt:
                        figures_file.store(kept, {"rows": rows})
    if given.attempt:
        print(render(rows, titles))
    elif rows:
        put_section(NAME, COMMAND, figures_file.load(kept), render(rows, titles))


if __name__ == "__main__":
    main()
