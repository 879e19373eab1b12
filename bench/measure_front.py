"""Bytes against accuracy on MNIST: trained on 50,000 digits, built on 10,000 others, scored on the 10,000 test digits.

`python bench/measure_front.py` writes the section of bench/RESULTS.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import figures_file
import numpy as np
from block_tables import markdown_table
from peers.environment import run_peer
from quiet_build import keeps_limits
from results_page import put_section

from edgepack import BuildOptions, load_target
from edgepack.distill.budget import Epochs
from edgepack.pack.manifest import read_document

NAME = "front"
COMMAND = "python bench/measure_front.py"


@dataclass(frozen=True)
class Row:
    """One build: what it is called, and its options."""

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)


ROWS = (
    *(Row(f"`--max-drop {limit}`", {"max_drop": limit}) for limit in (0.1, 0.3, 1.0, 3.0)),
    Row("`--max-drop 0.3 --optimize size`", {"max_drop": 0.3, "optimize": "size"}),
    Row("`--max-drop 0.3 --distill 10epochs`", {"max_drop": 0.3, "distill": Epochs(10)}),
    *(
        Row(f"plain SVD, rank {rank}, int8", {"rank": rank, "method": "svd", "precision": "int8"})
        for rank in (48, 32, 24)
    ),
    *(Row(f"plain SVD, rank {rank}, int4", {"rank": rank, "method": "svd", "precision": "int4"}) for rank in (48, 32)),
)
"""Plain SVD is a truncation of W alone, without data."""
AIMET_RATIOS = (0.2, 0.15, 0.1, 0.05)
"""Shares of the multiplications that AIMET's weight SVD is asked for; it chooses the ranks by accuracy on the data."""


def measure() -> dict[str, Any]:
    """Every row's files, with their bytes and their drop on the test digits."""
    from promise.command import FOLDER
    from promise.measure import Trained

    trained = Trained("classifier", 0, FOLDER)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        data, test = Path(folder) / "data.npz", Path(folder) / "test.npz"
        np.savez(data, **trained.data.pool)
        np.savez(test, **trained.data.unseen)
        for row in ROWS:
            print(f"{NAME}: {row.title}", file=sys.stderr)
            rows += _built(row, trained.path, data, test, Path(folder) / "pack", dense=row is ROWS[0])
        dense = next(row["accuracy"] for row in rows if row["title"] == "dense fp32" and row["format"] == "onnx")
        for ratio in AIMET_RATIOS:
            print(f"{NAME}: AIMET {ratio}", file=sys.stderr)
            path = Path(folder) / "aimet.onnx"
            run_peer("aimet", [trained.path, data, str(ratio), path], folder=Path(folder))
            accuracy = _accuracy(path, trained.data.unseen)
            rows.append(
                {
                    "title": f"AIMET weight SVD to {ratio:.0%} of the multiplications, onnxruntime's int8",
                    "format": "onnx",
                    "scheme": "int8-dynamic",
                    "bytes": path.stat().st_size,
                    "accuracy": accuracy,
                    "drop": dense - accuracy,
                }
            )
    return {"rows": rows}


def _accuracy(path: Path, unseen: Mapping[str, Any]) -> float:
    """Percent of the labels that a file hits, in plain onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    opened = onnxruntime.InferenceSession(path, options)
    hits = [
        opened.run(None, {"x": x[None]})[0].argmax() == label for x, label in zip(unseen["x"], unseen["y"], strict=True)
    ]
    return 100.0 * sum(hits) / len(hits)


def _built(row: Row, model: Path, data: Path, test: Path, out: Path, *, dense: bool) -> list[dict[str, Any]]:
    options = BuildOptions(model=str(model), data=data, test=test, target=load_target("rpi4"), out=out, **row.options)
    keeps_limits(options)
    files = read_document(out)["files"]
    names = {"model": row.title, **({"baseline/int8": "dense int8", "baseline/fp32": "dense fp32"} if dense else {})}
    return [
        {
            "title": title,
            "format": fmt,
            "scheme": entry["scheme"],
            "bytes": (out / f"{name}.{fmt}").stat().st_size,
            "accuracy": entry["test"],
            "drop": files[f"baseline/fp32.{fmt}"]["test"] - entry["test"],
        }
        for name, title in names.items()
        for fmt in ("onnx", "tflite")
        if (entry := files.get(f"{name}.{fmt}")) is not None
    ]


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, smallest first, and what lies on the front of its format."""
    lines = []
    for row in sorted(rows, key=lambda one: (one["format"], one["bytes"])):
        alike = [other for other in rows if other["format"] == row["format"] and other is not row]
        beaten = any(o["bytes"] <= row["bytes"] and o["accuracy"] >= row["accuracy"] for o in alike)
        size, accuracy = f"{row['bytes'] / 1000:.1f} kB", f"{row['accuracy']:.2f}"
        lines.append(
            [row["format"], row["title"], row["scheme"], size, accuracy, f"{row['drop']:+.2f}", "" if beaten else "•"]
        )
    headers = ["format", "build", "scheme", "size", "accuracy", "drop", "on the front"]
    return markdown_table(headers, lines, right=["size", "accuracy", "drop"])


def main() -> None:
    """Build, score, write."""
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    stored = figures_file.store(f"experiments/{NAME}", measure())
    put_section(NAME, COMMAND, stored, render(stored["figures"]["rows"]))


if __name__ == "__main__":
    main()
