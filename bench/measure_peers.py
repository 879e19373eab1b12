"""MNIST: edgepack's files beside those of the tools that people would use instead, same model, same data, same scorer.

`python bench/measure_peers.py` makes an environment for each peer, and writes the section of bench/RESULTS.md. The
peers see what edgepack sees: the trained model and the samples that it is built on.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures_file
import numpy as np
from block_tables import markdown_table
from peers.environment import run_peer
from quiet_build import keeps_limits
from results_page import put_section

from edgepack import BuildOptions, load_target

NAME = "peers"
KEPT = f"experiments/{NAME}"
COMMAND = "python bench/measure_peers.py"
TEST_DIGITS = 10_000
LIMITS = (0.1, 0.3, 1.0)
ABOUT = """784-512-10, trained on 50,000 digits; every tool gets 10,000 others, and the 10,000 test digits are scored
once, by onnxruntime and LiteRT alone. *Time*: median of one inference on this machine, one thread, all files in turns
in one process. *On the front*: no file of its format, of any tool, is as small and as accurate. A tool that fails
stands there with what it said last. AIMET's weight SVD of the same network is in [bytes against
accuracy](#mnist-bytes-against-accuracy)."""


@dataclass(frozen=True)
class Peer:
    """One way of one tool.

    Attributes:
        title: for the table.
        script: of `bench/peers`.
        way: the argument that chooses it.
        suffix: format of the model that it takes and makes.
    """

    title: str
    script: str
    way: str
    suffix: str


PEERS = (
    Peer("onnxslim alone", "ort", "slim", "onnx"),
    Peer("onnxruntime, dynamic int8", "ort", "dynamic", "onnx"),
    Peer("onnxruntime, dynamic int8 per channel", "ort", "dynamic-per-channel", "onnx"),
    Peer("onnxruntime, static int8", "ort", "static", "onnx"),
    Peer("onnxruntime, MatMulNBits in 4 bits", "ort", "4-bit", "onnx"),
    Peer("litert-quantizer, dynamic int8", "litert", "dynamic_wi8_afp32", "tflite"),
    Peer("litert-quantizer, static int8", "litert", "static_wi8_ai8", "tflite"),
    Peer("litert-quantizer, weights alone in int8", "litert", "weight_only_wi8_afp32", "tflite"),
    Peer("litert-quantizer, dynamic int4", "litert", "dynamic_wi4_afp32", "tflite"),
    Peer("litert-quantizer, dynamic int4 in blocks of 32", "litert", "dynamic_wi4b32_afp32", "tflite"),
    Peer("litert-quantizer, dynamic int4 with Hadamard rotation", "litert", "dynamic_wi4c_hr_afp32", "tflite"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    from promise.command import FOLDER
    from promise.measure import Trained

    trained = Trained("classifier", 0, FOLDER)
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as name:
        folder = Path(name)
        np.savez(folder / "data.npz", **trained.data.pool)
        np.savez(folder / "test.npz", **trained.data.unseen)
        rows = scored(made(trained.path, folder), folder)
    stored = figures_file.store(KEPT, {"rows": rows})
    put_section(NAME, COMMAND, stored, render(rows))


def made(model: Path, folder: Path) -> list[dict[str, Any]]:
    """A row for every file: its title and path, or why there is none."""
    rows = []
    for limit in LIMITS:
        out = folder / f"pack-{limit}"
        keeps_limits(
            BuildOptions(
                model=str(model), data=folder / "data.npz", target=load_target("rpi4"), out=out, max_drop=limit
            )
        )
        rows += [
            {"title": f"edgepack `--max-drop {limit}`", "path": str(out / f"model.{fmt}")} for fmt in ("onnx", "tflite")
        ]
    dense = {fmt: folder / f"pack-{LIMITS[0]}" / "baseline" / f"fp32.{fmt}" for fmt in ("onnx", "tflite")}
    rows += [{"title": "dense fp32", "path": str(path)} for path in dense.values()]
    for number, peer in enumerate(PEERS):
        print(f"{NAME}: {peer.title}", file=sys.stderr)
        path = folder / f"peer-{number}.{peer.suffix}"
        row = {"title": peer.title, "path": str(path)}
        source = model if peer.suffix == "onnx" else dense["tflite"]
        try:
            run_peer(peer.script, [source, folder / "data.npz", peer.way, path], folder=folder)
        except (RuntimeError, subprocess.CalledProcessError) as err:
            row["error"] = str(err)
        rows.append(row)
    return rows


def scored(rows: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The same with bytes, accuracy and seconds; paths are left out."""
    test, answer = folder / "test.npz", folder / "answer.json"
    for row in rows:
        if "error" not in row:
            try:
                run_peer("score", ["accuracy", row["path"], test, answer], folder=folder)
            except RuntimeError as err:
                row["error"] = str(err)
                continue
            row |= {"accuracy": json.loads(answer.read_text()), "bytes": Path(row["path"]).stat().st_size}
    whole = [row for row in rows if "error" not in row]
    (folder / "files.json").write_text(json.dumps([row["path"] for row in whole]))
    run_peer("score", ["times", folder / "files.json", test, answer], folder=folder)
    for row, seconds in zip(whole, json.loads(answer.read_text()), strict=True):
        row["seconds"] = seconds
    return [
        {"format": Path(row["path"]).suffix[1:], **{key: value for key, value in row.items() if key != "path"}}
        for row in rows
    ]


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, smallest first; those that failed at the end."""
    lines = []
    for row in sorted((row for row in rows if "error" not in row), key=lambda one: (one["format"], one["bytes"])):
        others = [one for one in rows if one is not row and "error" not in one and one["format"] == row["format"]]
        beaten = any(one["bytes"] <= row["bytes"] and one["accuracy"] >= row["accuracy"] for one in others)
        figures = [f"{row['bytes'] / 1000:.1f} kB", f"{row['accuracy']:.2f}", f"{1e6 * row['seconds']:.1f} µs"]
        lines.append([row["format"], row["title"], *figures, "" if beaten else "•"])
    lines += [[row["format"], row["title"], "failed", row["error"], "", ""] for row in rows if "error" in row]
    headers = ["format", "file", "size", "accuracy", "time", "on the front"]
    table = markdown_table(headers, lines, right=["size", "accuracy", "time"])
    return "\n\n".join([ABOUT, table, *_beating(rows)])


def _beating(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each file of another tool that is more accurate than all of edgepack's, or smaller or faster than
    one that is no more accurate."""
    whole = [row for row in rows if "error" not in row]
    for row in (row for row in whole if not row["title"].startswith(("edgepack", "dense"))):
        own = [one for one in whole if one["format"] == row["format"] and one["title"].startswith("edgepack")]
        equal = [one for one in own if one["accuracy"] >= row["accuracy"]]
        if not equal and own:
            best = max(own, key=lambda one: one["accuracy"])
            digits = round((row["accuracy"] - best["accuracy"]) * TEST_DIGITS / 100)
            error = 100 * math.sqrt(row["accuracy"] / 100 * (1 - row["accuracy"] / 100) / TEST_DIGITS)
            larger, slower = (row[figure] / best[figure] for figure in ("bytes", "seconds"))
            yield (
                f"{row['title']} ({row['format']}) is right on {digits} digits of {TEST_DIGITS:,} more than "
                f"{best['title']}, in {larger:.1f} times the bytes and {slower:.1f} times the time; the standard error "
                f"of one accuracy is {error:.2f} points."
            )
        for figure, what in (("bytes", "smaller"), ("seconds", "faster")):
            if equal and row[figure] < min(one[figure] for one in equal):
                yield f"{row['title']} ({row['format']}) is {what} than all of edgepack's files that are as accurate."


if __name__ == "__main__":
    main()
