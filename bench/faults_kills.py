"""SIGKILL at random points of a small build: the next build ends with the same bytes, and nothing is left over."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from watched import edgepack_command

SIDES = (64, 96, 48, 10)
ROWS = 200
MOST_KILLS_IN_A_ROW = 4
DEATH_S = 5.0
"""So long after the kill every process of the build has to have ended."""
_MARK = "EDGEPACK_FAULT_RUN"


def small_model(folder: Path) -> tuple[Path, Path]:
    """A multilayer perceptron with seeded weights, and samples with the classes that it gives them itself."""
    draw = np.random.default_rng(21)
    nodes, weights = [], []
    for index, (inner, outer) in enumerate(pairwise(SIDES)):
        matrix = draw.standard_normal((outer, 8)) @ draw.standard_normal((8, inner)) / inner
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"weight{index}"))
        weights.append(numpy_helper.from_array(draw.standard_normal(outer).astype(np.float32), f"bias{index}"))
        last = index == len(SIDES) - 2
        made = "y" if last else f"sum{index}"
        names = ["x" if index == 0 else f"relu{index - 1}", f"weight{index}", f"bias{index}"]
        nodes.append(helper.make_node("Gemm", names, [made], f"gemm{index}", transB=1))
        nodes += [] if last else [helper.make_node("Relu", [made], [f"relu{index}"], f"relu{index}")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", SIDES[0]), ("y", 10))]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path, data = folder / "small.onnx", folder / "samples.npz"
    onnx.save(model, path)
    samples = draw.standard_normal((ROWS, SIDES[0])).astype(np.float32)
    import onnxruntime

    answers = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": samples})[0]
    np.savez(data, x=samples, y=answers.argmax(axis=1))
    return path, data


class Builds:
    """Builds of one small model, each in the same place with the same cache until `renew`.

    Args:
        folder: of its own.
        formats: that are built.
    """

    def __init__(self, folder: Path, formats: str) -> None:
        self.folder = folder
        self._formats = formats
        self._model, self._data = small_model(folder)
        self._number = 0
        self.renew()

    def renew(self, pack: Path | None = None) -> None:
        """An empty cache, another place for the pack, where an earlier one may stand."""
        self._number += 1
        self.place = self.folder / str(self._number)
        for name in ("dist", "cache", "tmp"):
            (self.place / name).mkdir(parents=True)
        if pack is not None:
            shutil.copytree(pack, self.pack)

    @property
    def pack(self) -> Path:
        """Where the pack is written."""
        return self.place / "dist" / "pack"

    def start(self) -> subprocess.Popen[bytes]:
        """A build that has begun."""
        command = [edgepack_command(), "build", str(self._model), "--data", str(self._data), "--target", "rpi4"]
        command += ["--max-drop", "1", "--formats", self._formats, "--out", str(self.pack)]
        environment = {**os.environ, "EDGEPACK_CACHE": str(self.place / "cache"), "TMPDIR": str(self.place / "tmp")}
        environment[_MARK] = str(self.place)
        with (self.place / "log").open("wb") as log:
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def processes(self) -> list[int]:
        """Numbers of all that runs for the builds in this place."""
        wanted, found = f"{_MARK}={self.place}\0".encode(), []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted in environ.read_bytes() + b"\0":
                    found.append(int(environ.parent.name))
            except OSError:
                continue  # it has ended
        return found

    def left(self) -> list[str]:
        """What is there and should not be."""
        folders = list((self.place / "tmp").iterdir())
        folders += [path for path in (self.place / "dist").iterdir() if path.name != "pack"]
        folders += [path for path in self.place.rglob("*.edgepack") if path not in folders]
        return [str(path.relative_to(self.place)) for path in folders]

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file of the pack."""
        files = sorted(path for path in self.pack.rglob("*") if path.is_file())
        return {str(path.relative_to(self.pack)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kills(folder: Path, count: int, *, formats: str = "onnx,tflite", seed: int = 21) -> dict[str, Any]:
    """Kills builds until `count` have been killed, with one to four kills before each build that may end; every second
    one, by lot, is to take the place of an earlier pack.

    Returns:
        `kills`; `finished`: builds that ended afterwards; `different`: of these, those with another byte anywhere;
        `failed`: those with another exit code than 0; `left`: what then was left over; `outlived`: processes that ran
        `DEATH_S` after their build was killed; `torn`: kills after which there was a pack, but not a whole one;
        `slowest_death_s`: of all processes of a build.
    """
    builds = Builds(folder, formats)
    begun = time.monotonic()
    if builds.start().wait() != 0:
        raise SystemExit((builds.place / "log").read_text())
    whole_s = time.monotonic() - begun
    first, wanted = builds.pack, builds.digests()
    draw = random.Random(seed)
    found: dict[str, Any] = {"formats": formats, "kills": 0, "finished": 0, "different": 0, "failed": 0}
    found |= {"left": [], "torn": 0, "outlived": 0, "slowest_death_s": 0.0, "left_by_kills": 0}
    while found["kills"] < count:
        builds.renew(first if draw.random() < 0.5 else None)
        for _ in range(draw.randint(1, MOST_KILLS_IN_A_ROW)):
            if not _killed(builds, draw.uniform(0.0, whole_s), found):
                break
            found["torn"] += builds.digests() not in ({}, wanted)
        code = builds.start().wait()
        found["finished"] += 1
        found["failed"] += code != 0
        found["different"] += builds.digests() != wanted
        found["left"] += builds.left()
        _tell(found, count)
    return found


def _killed(builds: Builds, after_s: float, found: dict[str, Any]) -> bool:
    """Whether a build was killed in time; one that ended before is as good."""
    build = builds.start()
    try:
        build.wait(after_s)
        return False
    except subprocess.TimeoutExpired:
        build.kill()
    killed = time.monotonic()
    build.wait()
    found["kills"] += 1
    while (running := builds.processes()) and time.monotonic() - killed < DEATH_S:
        time.sleep(0.01)
    found["outlived"] += len(running)
    found["slowest_death_s"] = round(max(found["slowest_death_s"], time.monotonic() - killed), 2)
    found["left_by_kills"] += bool(builds.left())
    return True


def _tell(found: Mapping[str, Any], count: int) -> None:
    said = {key: value for key, value in found.items() if key not in ("formats", "left")}
    print(f"{found['kills']} of {count} kills: {said}, left {len(found['left'])}", flush=True)
