"""What the README shows first: an ONNX file and its samples, built for a Raspberry Pi 4."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from watched import edgepack_command, run_watched

SAMPLES = 4000
COMMAND = "build digits.onnx --target rpi4 --data samples.npz --max-drop 0.5"


def measure(*, quick: bool = False) -> dict[str, Any]:
    """`shown`: the command and what it prints; nothing is timed here. It is quick as it is."""
    del quick
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as work:
        write_files(Path(work))
        done = run_watched([edgepack_command(), *COMMAND.split()], cwd=Path(work), environment=os.environ)
    lines = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
    return {"shown": [{"command": f"edgepack {COMMAND}", "lines": lines}]}


def write_files(folder: Path) -> None:
    """A 784-512-10 perceptron as `digits.onnx`, and real MNIST digits that it was not trained on in `samples.npz`."""
    from promise.command import FOLDER
    from promise.measure import Trained

    trained = Trained("classifier", 0, FOLDER)
    onnx.save(onnx.load(trained.path), folder / "digits.onnx")  # with all its weights in it
    np.savez(folder / "samples.npz", **{name: array[:SAMPLES] for name, array in trained.data.pool.items()})
