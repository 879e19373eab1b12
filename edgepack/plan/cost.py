"""Which form is fast on a target: measured where the target is at hand, else a stated order of preference.

The measured table, emulated counts and the roofline belong here; `plan/solve.py` will read them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from edgepack.types import Format

PREFERENCE: Mapping[tuple[Format, bool], tuple[str, ...]] = {
    ("onnx", True): ("int8-static-qdq", "int8-dynamic"),
    ("onnx", False): ("int8-dynamic", "int8-static-qdq"),
    ("tflite", True): ("int8-dynamic-range", "int8-static"),
    ("tflite", False): ("int8-dynamic-range", "int8-static"),
}
"""Int8 forms by (format, any layer factored), fastest first. Source: instructions per inference of one 1024×1024 layer,
rank 128, counted in each runtime's own aarch64 kernels on an emulated Cortex-A72: ONNX Runtime dense 399 k dynamic,
441 k static; pair 180 k dynamic, 115 k static; LiteRT dense 444 k and pair 170 k dynamic-range."""

CLEARLY = 0.9
"""A measured form displaces a preferred one only when its latency is below this share: noise must not flip a build."""

ROUNDS = 15
ROUND_S = 0.02


def preferred(fmt: Format, *, factored: bool, calibrated: bool) -> tuple[str, ...]:
    """Int8 forms of a format in order of preference; static forms need calibration data."""
    forms = PREFERENCE[fmt, factored]
    return forms if calibrated else tuple(form for form in forms if "static" not in form)


def interleaved_latency_s(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds per call of each run, in turns, so that drift of the machine falls on all alike."""
    calls: dict[str, int] = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        calls[name] = max(1, int(ROUND_S / max(time.perf_counter() - start, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            samples[name].append((time.perf_counter() - start) / calls[name])
    return {name: median(values) for name, values in samples.items()}


def fastest(candidates: Sequence[str], latency_s: Mapping[str, float]) -> str:
    """The first candidate, unless a later one measured clearly faster; the first where nothing was measured."""
    chosen = candidates[0]
    for name in candidates[1:]:
        if latency_s and latency_s[name] < CLEARLY * latency_s[chosen]:
            chosen = name
    return chosen
