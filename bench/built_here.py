"""Packs built for this machine and timed on it: a row for each format, against dense int8."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import mean
from typing import Any

from block_tables import TITLES, kilobytes, markdown_table
from quiet_build import keeps_limits
from resumable import Row

from edgepack.benchmark.pack import bench_pack
from edgepack.benchmark.session import Settings
from edgepack.benchmark.summary import summarize_result
from edgepack.data import example
from edgepack.devices.local import LocalDevice
from edgepack.natives import native
from edgepack.pack.manifest import read_document
from edgepack.pipeline.activations import row_counts
from edgepack.pipeline.datasets import load_data
from edgepack.pipeline.options import BuildOptions
from edgepack.sources import open_model


def built_and_timed(options: BuildOptions) -> list[Row]:
    """Builds a pack, scores it on `test` and benches it: a row per format.

    Args:
        options: for this machine, with a test and a folder.

    Raises:
        ValueError: the bench has no ratio, or the multiplications of the model cannot be counted.
    """
    if options.out is None or options.test is None:
        raise ValueError("a folder and a test were expected")
    kept = keeps_limits(options)
    with closing(LocalDevice()) as device:
        result = bench_pack(options.out, target=options.target, device=device, settings=Settings(cold=False))
    files = read_document(options.out)["files"]
    summary = {(row.format, row.variant): row for row in summarize_result(result)}
    rows = []
    for fmt in options.chosen_formats:
        entry, own, int8 = files[f"model.{fmt}"], summary[fmt, "edgepack"], summary[fmt, "dense-int8"]
        fp32 = files[f"baseline/fp32.{fmt}"]
        if own.vs_int8 is None:
            raise ValueError(f"{options.model}: the bench has no ratio of {fmt} files")
        rows.append(
            {
                "format": fmt,
                "refused": not kept,
                "fewer_macs": fewer_macs(options, entry["layers"]),
                "bytes": own.size_bytes,
                "int8_bytes": int8.size_bytes,
                "drop": fp32["test"] - entry["test"],
                "int8_drop": fp32["test"] - files[f"baseline/int8.{fmt}"]["test"],
                "trained": entry["distillation"] is not None and entry["distillation"]["kept"],
                "layers": {layer["layer"]: [layer["structure"], layer["scheme"]] for layer in entry["layers"]},
                "faster": own.vs_int8.speedup,
                "verdict": own.vs_int8.verdict,
            }
        )
    return rows


def fewer_macs(options: BuildOptions, layers: Sequence[Mapping[str, Any]]) -> float:
    """Multiplications of the dense model over those with its layers as a manifest has them, at as many places each."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        opened = open_model(options.model, Path(folder), ("onnx",))
        data = load_data(options.data, opened, options.model, options.seed)
        places = row_counts(opened, data.calibration, options.seed)
        feed = example(data.calibration, opened.inputs, options.seed)
        total = native(opened.native).macs(opened.content, feed)
    if total is None or places is None:
        raise ValueError(f"{options.model}: its multiplications cannot be counted")
    dense = {layer["layer"]: layer["out_features"] * layer["in_features"] for layer in layers}
    saved = sum(places[layer["layer"]] * (dense[layer["layer"]] - layer["weight_parameters"]) for layer in layers)
    return total / (total - saved)


def table_of(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """A line per model, build and format: means over the rows that are alike."""
    lines = []
    for key in dict.fromkeys((row["model"], row["build"], row["format"]) for row in rows):
        alike = [row for row in rows if (row["model"], row["build"], row["format"]) == key]
        verdicts = [row["verdict"] for row in alike]
        said = [f"{verdicts.count(one)} {one}" for one in dict.fromkeys(verdicts)]
        said += [f"{count} refused" for count in [sum(row["refused"] for row in alike)] if count]
        means = {name: mean(row[name] for row in alike) for name in NUMBERS}
        lines.append(
            [
                titles[key[0]],
                key[1],
                TITLES[key[2]],
                f"{means['fewer_macs']:.2f}×",
                kilobytes(means["bytes"]),
                kilobytes(means["int8_bytes"]),
                f"{means['drop']:+.2f}",
                f"{means['int8_drop']:+.2f}",
                f"{means['faster']:.2f}×",
                ", ".join(said),
            ]
        )
    headers = ["model", "build", "runtime", "MACs", "kB", "int8, kB", "drop", "int8 drop", "faster", "verdicts"]
    return markdown_table(headers, lines, right=headers[3:9])


NUMBERS = ("fewer_macs", "bytes", "int8_bytes", "drop", "int8_drop", "faster")
