"""What the demo prints: the same commands as `make demo`, in the same folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from watched import edgepack_command, run_watched

TOP = Path(__file__).parent.parent
MODEL = "bench/models/mnist_mlp.py:recipe"
SHOWN = (
    f"build {MODEL} --target host --max-drop 0.3",
    "compare dist/mnist-mlp.rpi4 dist/mnist-mlp.host",
)
COMMANDS = (
    f"build {MODEL} --target rpi4 --max-drop 0.3",
    SHOWN[0],
    "bench dist/mnist-mlp.rpi4 --local --quick",
    "bench dist/mnist-mlp.host --local --quick",
    SHOWN[1],
)


def measure(*, quick: bool = False) -> dict[str, Any]:
    """`shown`: the commands whose output is worth reading, with their output. The demo is quick as it is."""
    del quick
    printed = {}
    for command in COMMANDS:
        done = run_watched([edgepack_command(), *command.split()], cwd=TOP, environment=os.environ)
        printed[command] = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
    return {"shown": [{"command": f"edgepack {command}", "lines": printed[command]} for command in SHOWN]}
