"""A zoo built on two workers of a Dask cluster, one of which is killed at half of the work.

`python bench/measure_build_all.py` makes the models, builds them in four ways, and writes the section of
bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import figures_file
import numpy as np
import onnx
from block_tables import markdown_table
from onnx import TensorProto, helper, numpy_helper
from results_page import put_section
from sklearn.datasets import load_digits

NAME = "build-all"
KEPT = f"experiments/{NAME}"
COMMAND = "python bench/measure_build_all.py"
HIDDEN = (64, 128, 192, 256, 320, 384)
TARGETS = "rpi4,n100"
ABOUT = f"""`edgepack build-all` on {len(HIDDEN)} perceptrons of real 8×8 digits
(64-H-10, H from {HIDDEN[0]} to {HIDDEN[-1]}), each for {TARGETS.replace(",", " and ")} in ONNX,
and on one file that is cut short. All workers are processes of this one machine, each with one build at a time, and
each way but the last begins with an empty cache. *Killed*: as soon as half of the packs are there, a worker gets
SIGKILL, and nobody starts it again. *Same bytes*: model files that are the same to the byte as those of the first
way."""
WAYS = ("here, one after another", "two workers", "two workers, one killed", "the same command again")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        rows = measured(Path(folder))
    stored = figures_file.store(KEPT, {"rows": rows})
    put_section(NAME, COMMAND, stored, render(rows))


def measured(folder: Path) -> dict[str, Any]:
    """A row for each way."""
    write_zoo(folder)
    rows = {WAYS[0]: build(folder, "here", [])}
    with cluster(folder / "a") as (address, _):
        rows[WAYS[1]] = build(folder, "a", ["--scheduler", address])
    with cluster(folder / "b") as (address, workers):
        rows[WAYS[2]] = build(folder, "b", ["--scheduler", address], victim=workers[0])
        rows[WAYS[3]] = build(folder, "b", ["--scheduler", address])
    first = rows[WAYS[0]]["digests"]
    for row in rows.values():
        digests = row.pop("digests")
        row["same"] = sum(digests.get(name) == digest for name, digest in first.items())
    return rows


def write_zoo(folder: Path) -> None:
    """Models, samples and the zoo file."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    train, rest = slice(0, 1000), slice(1000, None)
    np.savez(folder / "digits.npz", x=x[rest], y=y[rest])
    for hidden in HIDDEN:
        weights = np.random.default_rng(hidden).normal(size=(64, hidden)) / 4
        inner = np.maximum(x[train] @ weights, 0)
        ridge = inner.T @ inner + np.eye(hidden)
        last = np.linalg.solve(ridge, inner.T @ (2.0 * np.eye(10)[y[train]] - 1))
        write_perceptron(folder / f"digits-{hidden}.onnx", weights, last)
    (folder / "cut.onnx").write_bytes((folder / f"digits-{HIDDEN[0]}.onnx").read_bytes()[:500])
    models = [*(f"digits-{hidden}.onnx" for hidden in HIDDEN), "cut.onnx"]
    options = {"target": TARGETS, "data": "digits.npz", "formats": "onnx", "max-drop": 1, "models": models}
    (folder / "zoo.yaml").write_text(json.dumps(options))  # JSON is YAML


def write_perceptron(path: Path, first: np.ndarray, last: np.ndarray) -> None:
    """Two layers without biases.

    Args:
        first, last: (inputs, hidden), (hidden, classes).
    """
    arrays = {"w1": first, "w2": last}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, len(first)])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, last.shape[1]])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def build(
    folder: Path, name: str, more: Sequence[str], victim: subprocess.Popen[bytes] | None = None
) -> dict[str, Any]:
    """Build the zoo once; a victim is killed when half of the packs are there."""
    out = folder / name / "packs"
    command = [sys.executable, "-m", "edgepack", "build-all", str(folder / "zoo.yaml"), "--out", str(out), *more]
    environment = {**os.environ, "EDGEPACK_CACHE": str(folder / name / "cache")}
    begun = time.monotonic()
    with subprocess.Popen([*command, "--json"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        while victim is not None and process.poll() is None and len(list(out.glob("*/*.json"))) < len(HIDDEN):
            time.sleep(0.02)
        if victim is not None:
            victim.kill()
        document = json.loads(process.communicate()[0])
    return {
        "seconds": time.monotonic() - begun,
        "built": sum(not pack["kept"] for pack in document["packs"]),
        "kept": sum(pack["kept"] for pack in document["packs"]),
        "failed": [each["model"] for each in document["failed"]],
        "exit": process.returncode,
        "digests": {f"{file['model']}.{file['target']}": file["sha256"] for file in document["files"]},
    }


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers without a nanny, which end with the block; its address and the workers."""
    folder.mkdir()
    file = folder / "scheduler.json"
    environment = {**os.environ, "EDGEPACK_CACHE": str(folder / "cache")}
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "log").open("wb") as log:

        def start(module: str, *words: str) -> None:
            command = [sys.executable, "-m", f"distributed.cli.{module}", *words, "--no-dashboard"]
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder))

        try:
            start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
            while not (file.is_file() and file.read_text().endswith("}")):
                time.sleep(0.05)
            address = str(json.loads(file.read_text())["address"])
            for _ in range(2):
                start("dask_worker", address, "--no-nanny", "--nthreads", "1")
            wait_for_two(address)
            yield address, started[1:]
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()


def wait_for_two(address: str) -> None:
    """Until both workers are there."""
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)


def render(rows: Mapping[str, Any]) -> str:
    """A line for each way."""
    total = 2 * len(HIDDEN)
    lines = [
        [
            way,
            f"{row['seconds']:.0f} s",
            str(row["built"]),
            str(row["kept"]),
            ", ".join(row["failed"]),
            str(row["exit"]),
            f"{row['same']} of {total}",
        ]
        for way, row in rows.items()
    ]
    headers = ["way", "time", "packs built", "kept", "failed", "exit code", "same bytes"]
    return f"{ABOUT}\n\n{markdown_table(headers, lines, right=['time', 'packs built', 'kept', 'exit code'])}"


if __name__ == "__main__":
    main()
