"""What TFLite's benchmark_model and ONNX Runtime's onnxruntime_perf_test print, as numbers. Nothing in it is trusted.

The texts are those of tensorflow/lite/tools/benchmark/benchmark_model.cc with tsl/util/stats_calculator.h (TensorFlow
2.4 to 2.19), and of onnxruntime/test/perftest/performance_runner.cc (onnxruntime 1.8 to 1.23).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.bench.devices.reply import last_lines
from edgepack.errors import StableDeviceError

KEEP = 1000
"""Between so many and twice as many raw times are kept, evenly spaced, as the runner does."""
_MOST_S, _MOST_RUNS, _MOST_BYTES = 1e5, 10**9, 1 << 50
_NUMBER = r"(\d{1,20}(?:\.\d{1,20})?(?:e[+-]?\d{1,3})?)"
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, Warmup \(avg\): {_NUMBER}, "
    rf"Inference \(avg\): {_NUMBER}"
)
_COUNT = re.compile(r"^(?:\w+: )?count=(\d{1,12}) ", re.MULTILINE)
_FOOTPRINT = re.compile(
    r"(?:Memory footprint delta from the start of the tool|Peak memory footprint) \(MB\): "
    rf"init={_NUMBER} overall={_NUMBER}"
)
_SESSION = re.compile(rf"Session creation time cost: {_NUMBER} s")
_FIRST = re.compile(rf"First inference time cost: {_NUMBER} ms")
_PEAK = re.compile(r"Peak working set size: ?(\d{1,18})")


@dataclass(frozen=True)
class Figures:
    """What a tool measured, in seconds and bytes; None where it does not say.

    Attributes:
        latency_s: single inferences in order, every `kept_every`-th of `runs`; or one, the mean of all.
        runs, seconds: of the timed part; no runs where all of them were warm-up.
        warmup_runs: before it.
        session_s: from the model file to a model that is ready.
        above_start: what `loaded_bytes` and `ran_bytes`, the peaks after the load and after inference, leave out: the
            tool's own memory when it starts.
    """

    latency_s: tuple[float, ...]
    kept_every: int
    runs: int
    seconds: float
    warmup_runs: int
    session_s: float | None
    first_inference_s: float | None
    loaded_bytes: int | None
    ran_bytes: int | None
    above_start: bool


def read_benchmark_model(what: str, text: str) -> Figures:
    """The figures of one run of benchmark_model: it gives the mean of all inferences, no single ones.

    Args:
        what: the run, for messages.
        text: all it printed.

    Raises:
        StableDeviceError: that is not its output, or a figure cannot be.
    """
    timings, counts = _TIMINGS.search(text), _COUNT.findall(text)
    if timings is None or len(counts) != 2:
        raise _unexpected(what, text, "the line 'Inference timings in us' and two lines 'count='")
    # Small numbers are whole, large ones in the notation 1.24e+06.
    init_s, first_s, _, mean_s = (float(number) / 1e6 for number in timings.groups())
    warmup_runs, runs = int(counts[0]), int(counts[1])
    footprint = _FOOTPRINT.search(text)
    loaded, ran = (_whole(float(number) * (1 << 20)) for number in footprint.groups()) if footprint else (None, None)
    _check(what, text, [mean_s], runs, [init_s, first_s], [loaded, ran])
    return Figures((mean_s,), 1, runs, mean_s * runs, warmup_runs, init_s, first_s, loaded, ran, above_start=True)


def read_perf_test(what: str, text: str, times: str, *, warmup_runs: int, warmup_s: float) -> Figures:
    """The figures of one run of onnxruntime_perf_test, and every single time of its result file.

    The tool warms up with one inference. So the first times, until both `warmup_runs` and `warmup_s` are reached, are
    taken for warm-up too.

    Args:
        what: the run, for messages.
        text: all it printed.
        times: its result file: a line `model,seconds,peak bytes,CPU share,number` for every inference.
        warmup_runs, warmup_s: to leave out.

    Raises:
        StableDeviceError: that is not its output, or a figure cannot be.
    """
    every = [_time(what, line, index) for index, line in enumerate(_rows(times))]
    skip, spent = 0, 0.0
    while skip < len(every) and (skip < warmup_runs or spent < warmup_s):
        spent += every[skip]
        skip += 1
    timed = every[skip:]
    session, first, peak = _SESSION.search(text), _FIRST.search(text), _PEAK.search(text)
    if not every or session is None:
        raise _unexpected(what, text, f"'Session creation time cost' and a file of times; found {len(every)} of them")
    session_s, first_s = float(session[1]), float(first[1]) / 1e3 if first else None
    ran = int(peak[1]) if peak else None
    _check(what, text, every, len(every), [session_s, first_s], [ran])
    step = max(1, len(timed) // KEEP)
    return Figures(
        tuple(timed[::step]),
        step,
        len(timed),
        sum(timed),
        1 + skip,
        session_s,
        first_s,
        loaded_bytes=None,
        ran_bytes=ran or None,
        above_start=False,
    )


def _rows(times: str) -> list[str]:
    """The lines of single times: with statistics asked for, an empty line and other lines follow."""
    return [line for line in times.partition("\n\n")[0].splitlines() if line.strip()]


def _time(what: str, line: str, index: int) -> float:
    fields = line.rsplit(",", 4)
    if len(fields) != 5 or not re.fullmatch(_NUMBER, fields[1]) or fields[4].strip() != str(index):
        raise _unexpected(what, line, f"the time of inference {index} as 'model,seconds,bytes,CPU share,{index}'")
    return float(fields[1])


def _whole(value: float) -> int:
    return int(min(value, 2.0 * _MOST_BYTES))


def _check(
    what: str,
    text: str,
    latencies: Sequence[float],
    runs: int,
    phases: Sequence[float | None],
    amounts: Sequence[int | None],
) -> None:
    if not 1 <= runs <= _MOST_RUNS or not all(0 < seconds < _MOST_S for seconds in latencies):
        raise _unexpected(what, text, f"positive times of 1 to {_MOST_RUNS} inferences")
    if not all(seconds is None or 0 <= seconds < _MOST_S for seconds in phases):
        raise _unexpected(what, text, "seconds of loading")
    if not all(amount is None or 0 <= amount <= _MOST_BYTES for amount in amounts):
        raise _unexpected(what, text, "amounts of memory")


def _unexpected(what: str, text: str, expected: str) -> StableDeviceError:
    clean = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    found = last_lines(clean.encode()).removeprefix("; last lines on stderr: ")[:600] or "nothing"
    return StableDeviceError(
        f"{what}: the tool's output is not as expected: found {found!r}; expected {expected}",
        hint="is it benchmark_model or onnxruntime_perf_test, of a version that edgepack knows?",
    )
