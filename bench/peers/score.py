"""Accuracy and time of model files, by nothing but their runtimes.

`score.py accuracy FILE TEST.npz OUT.json` has a file answer to every sample alone; `score.py times FILES.json TEST.npz
OUT.json` times the files of a list in turns. One thread. Runs in the environment of `requirements/score.txt`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

Run = Callable[[np.ndarray], np.ndarray]
ROUNDS, CALLS = 30, 200
"""How often each file has its turn, and inferences in one."""


def opened(path: str) -> Run:
    """The file in its runtime: one sample in, its scores out."""
    if path.endswith(".onnx"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        return lambda x: session.run(None, {entry.name: x[None]})[0]
    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()

    scale, zero_point = given["quantization"]
    limits = None if given["dtype"] == np.float32 else np.iinfo(given["dtype"])

    def run(x: np.ndarray) -> np.ndarray:
        if limits is not None:  # integers throughout: what a program does before it calls such a file
            x = np.clip(np.round(x / scale) + zero_point, limits.min, limits.max).astype(given["dtype"])
        interpreter.set_tensor(given["index"], x[None])
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    return run


def accuracy(path: str, test: str, out: str) -> None:
    """Percent of the labels that a file hits."""
    with np.load(test) as data:
        x, y = data["x"], data["y"]
    run = opened(path)
    hits = sum(int(run(each).argmax()) == label for each, label in zip(x, y, strict=True))
    Path(out).write_text(json.dumps(100 * hits / len(x)))


def times(files: str, test: str, out: str) -> None:
    """Seconds of one inference of each file, the median of its turns."""
    with np.load(test) as data:
        sample = data["x"][0]
    runs = [opened(path) for path in json.loads(Path(files).read_text())]
    turns: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, own in zip(runs, turns, strict=True):
            run(sample)
            begun = time.perf_counter()
            for _ in range(CALLS):
                run(sample)
            own.append((time.perf_counter() - begun) / CALLS)
    Path(out).write_text(json.dumps([statistics.median(own) for own in turns]))


if __name__ == "__main__":
    {"accuracy": accuracy, "times": times}[sys.argv[1]](*sys.argv[2:])
