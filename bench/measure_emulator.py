"""What the cache model costs: CPU time under QEMU with the plugin, all of it simulated, against QEMU alone."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure_mnist import MAX_DROP, MODEL

import edgepack as ep
from edgepack import Target, load_target
from edgepack.backends.registry import FORMATS
from edgepack.emulator import programs
from edgepack.emulator.guest import guest
from edgepack.emulator.plugin import cache_arguments, plugin_file
from edgepack.workspace import shipped

TARGET = "rpi4"
GOAL_RATIO = 6.0
ROUNDS, QUICK_ROUNDS = 5, 3
INFERENCES, QUICK_INFERENCES = 2000, 200
MATVEC, QUICK_MATVEC = ("512", "512", "400"), ("512", "512", "40")


@dataclass(frozen=True)
class Case:
    """A program in QEMU: the command in two parts, between which options of QEMU go."""

    name: str
    qemu: str
    rest: tuple[str, ...]
    environment: Mapping[str, str]

    def command(self, *options: str) -> list[str]:
        """The whole command line."""
        return [self.qemu, *options, *self.rest]


def measure(*, quick: bool = False) -> dict[str, Any]:
    """`rows`: CPU seconds of every process, plain and simulated in turns, and the ratio of their medians."""
    target = load_target(TARGET)
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        cases = [*_inferences(target, Path(folder), quick), *_products(Path(folder), quick)]
        rounds = QUICK_ROUNDS if quick else ROUNDS
        rows = [_row(case, cache_arguments(target), Path(folder), rounds) for case in cases]
    return {"target": TARGET, "quick": quick, "rounds": rounds, "goal_ratio": GOAL_RATIO, "rows": rows}


def _row(case: Case, caches: tuple[str, ...], folder: Path, rounds: int) -> dict[str, Any]:
    out = folder / "counters"
    simulate = ("-plugin", ",".join([str(plugin_file(case.qemu)), f"out={out}", *caches]))
    plain: list[float] = []
    simulated: list[float] = []
    for _ in range(rounds):
        plain.append(_cpu_s(case.command(), case.environment))
        simulated.append(_cpu_s(case.command(*simulate), case.environment))
    instructions = int(out.read_text().splitlines()[-1].split()[2])
    ratios = sorted(after / before for before, after in zip(plain, simulated, strict=True))
    return {
        "case": case.name,
        "plain_cpu_s": [round(seconds, 3) for seconds in plain],
        "simulated_cpu_s": [round(seconds, 3) for seconds in simulated],
        "ratio": round(statistics.median(simulated) / statistics.median(plain), 2),
        "lowest_ratio": round(ratios[0], 2),
        "highest_ratio": round(ratios[-1], 2),
        "instructions": instructions,
    }


def _inferences(target: Target, folder: Path, quick: bool) -> Iterator[Case]:
    """Python on the target with the pack of the MNIST MLP, start-up included."""
    pack = folder / "pack"
    ep.build(MODEL, target, max_drop=MAX_DROP, out=pack, progress=False)
    found, runs = guest(target), QUICK_INFERENCES if quick else INFERENCES
    for fmt in FORMATS:
        model = ["--format", fmt, "--model", str(pack / f"model.{fmt}")]
        run = ["latency", *model, "--runs", str(runs), "--warmup-seconds", "0"]
        rest = (*found.options, found.python, str(shipped("runtimes/runner.py")), *run)
        yield Case(f"MNIST MLP, {fmt}, {runs} inferences", found.qemu, rest, found.environment)


def _products(folder: Path, quick: bool) -> Iterator[Case]:
    """A loop in C that does nothing but read: integers, which QEMU runs fast, and floats, which it computes itself."""
    size = QUICK_MATVEC if quick else MATVEC
    for number in ("int", "float"):
        program = folder / number
        flags = ["-O1", "-fno-tree-vectorize", "-static", f"-DNUMBER={number}"]
        source = Path(__file__).parent.parent / "tests/runtimes/emulator/guests/matvec.c"
        subprocess.run([programs.require("cc"), *flags, "-o", str(program), str(source)], check=True)
        name = f"C loop, {number} matrix {size[0]}×{size[1]} times vector, {size[2]} times"
        yield Case(name, programs.require("qemu-x86_64"), (str(program), *size), os.environ)


def _cpu_s(command: list[str], environment: Mapping[str, str]) -> float:
    """CPU seconds of all threads of a process, which other load disturbs less than wall time."""
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {stderr.read()[-2000:]}")
    return usage.ru_utime + usage.ru_stime
