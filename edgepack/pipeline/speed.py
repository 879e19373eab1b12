"""Whether a model file is slower than another on the target: timed where that is this machine, else estimated.

Files are timed in turns, in fresh processes: where a session lies in memory makes 1 to 3 % from process to process, so
that a process is one look, however long it is. What counts is the time that the process had its CPU (the runtimes run
on one thread): of two equal files on a machine with six programs on two cores it differs by 2 % from process to
process, the time on the clock by half.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, median, variance
from typing import Any

import numpy as np

from edgepack.backends.backend import Writer
from edgepack.backends.registry import TOOLS
from edgepack.cost.model import MEASURED
from edgepack.devices.device import Device, Job, run_patiently
from edgepack.devices.local import LocalDevice
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.types import LayerPlan
from edgepack.pipeline.evaluate import FileTrial
from edgepack.pipeline.evaluator import Evaluator
from edgepack.pipeline.latency_estimates import LatencyEstimates, scheme_held
from edgepack.workspace import Keyed, Step, file_digest, record_store

SLACK = 0.02
"""Share of the other file's time that is no difference: so much is between two copies of one file in one process."""
LAYOUT = 0.02
"""Standard deviation, from process to process, of the logarithm of the ratio of two files' times: 1.4 to 2.9 % over 12
processes each of three models in both formats. What is seen of it in a few processes may be less by chance."""
SIGMAS = 2.58
"""Of a 99 % interval: it is looked at after every process."""
PROCESSES, MOST_S = 8, 5.0
"""At most: fresh processes, and seconds after which no other one begins."""
TURN_S, FIRST_ROUNDS, ROUNDS, PROCESS_S = 0.005, 5, 11, 0.25
"""Of one file's turn; rounds of the first process, which tells how many take `PROCESS_S` in the others, at most."""
FEWEST_ROUNDS = 3
TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Speed:
    """How long a file takes, against another one.

    Attributes:
        latency_s, other_s: seconds of one inference; by estimates, of the layers and a call of the runtime.
        ratio: of the first to the second, seen in turns: above 1 the file is slower.
        low, high: 99 % interval of the ratio; an estimate has none, both are the ratio.
        by: where it comes from, for people.
    """

    latency_s: float
    other_s: float
    ratio: float
    low: float
    high: float
    by: str

    @property
    def is_decided(self) -> bool:
        """Whether it is told apart from a file that takes `SLACK` longer."""
        return self.high <= 1 + SLACK or self.low > 1 + SLACK

    def keeps_pace(self, *, is_smaller: bool) -> bool:
        """Whether the file may stand in the place of the other one.

        It is sure to take no more than `SLACK` longer; where that cannot be told in the time that there is, a smaller
        file may seem so: then it errs by less than the interval, 1.8 % after all processes.
        """
        return self.high <= 1 + SLACK or (is_smaller and self.ratio <= 1 + SLACK)


def speed_against(
    evaluator: Evaluator, files: Writer, trial: FileTrial, dense: Path, scheme: Scheme, estimates: LatencyEstimates
) -> Speed | None:
    """How long the file of a plan takes on the target, against a dense one.

    Args:
        files: writer of the format.
        trial: the file, and what was planned of its layers.
        dense: a file whose layers are all dense.
        scheme: that it is in.
        estimates: of the layers, where the target is not this machine.

    Returns:
        None where nothing estimates one of them, or both are the same bytes.

    Raises:
        DeviceError: a process that times them failed.
        OutputError: the cache folder cannot be written.
    """
    digests = file_digest(trial.path), file_digest(dense)
    if digests[0] == digests[1]:
        return None
    if not evaluator.measures_here:
        return _estimated(files, trial, scheme, estimates)
    workspace, key = evaluator.workspace, [*digests, trial.fmt, repr(evaluator.options.target)]
    known = workspace.known(SPEED, Keyed(key))
    if known is not None:
        return known
    workspace.progress(f"time {trial.fmt} against dense int8")
    inputs = workspace.folder / f"speed.{trial.fmt}.npz"
    feed: Mapping[str, Any] = evaluator.file_evaluator.example(workspace.seed)
    np.savez(inputs, **feed)
    found = SPEED.run(Pair((trial.path, dense), trial.fmt, inputs))
    inputs.unlink()
    return workspace.keep(SPEED, Keyed(key), found) if found.is_decided else found


def _estimated(files: Writer, trial: FileTrial, dense: Scheme, estimates: LatencyEstimates) -> Speed | None:
    """By what is estimated of the layers as they were written, one by one; None where nothing is of one of them."""
    own = [_layer_s(plan, trial.scheme, estimates) for plan in trial.layers]
    single = {layer.name: scheme_held(files, layer, dense) for layer in estimates.layers.values()}
    other = estimates.dense_latency_s(dense, single)
    known = [latency for latency in own if latency is not None]
    if not known or len(known) < len(own) or not other:
        return None
    call_s = estimates.call_s(trial.fmt)
    latency_s, other_s = sum(known) + call_s, other + call_s
    ratio = latency_s / other_s
    return Speed(latency_s, other_s, ratio, ratio, ratio, f"by the {estimates.source_name(trial.fmt)}")


def _layer_s(plan: LayerPlan, file: FileScheme, estimates: LatencyEstimates) -> float | None:
    """Of one layer in the scheme that it was written in, which need not be the planned one."""
    scheme, planned = plan.scheme_in(file), plan.predicted
    if planned is not None and (planned.structure, planned.scheme) == (plan.structure, scheme):
        return planned.latency_s
    estimate = estimates.estimate(plan.layer, plan.structure, scheme)
    return None if estimate is None else estimate.latency_s


@dataclass(frozen=True)
class Pair:
    """Two files of one format, and an `.npz` with inputs of both."""

    files: tuple[Path, Path]
    fmt: Format
    inputs: Path


def timed(pair: Pair, device: Device, clock: Callable[[], float] = time.monotonic) -> Speed:
    """The first file against the second on a device: fresh processes until the interval tells, or the time is up.

    Raises:
        DeviceError: see `Device.run`.
    """
    until = clock() + MOST_S
    looks: list[_Look] = []
    rounds = FIRST_ROUNDS
    for number in range(PROCESSES):
        look = _look(pair, device, rounds, swapped=bool(number % 2))
        looks.append(look)
        found = _speed(looks)
        if found.is_decided or clock() >= until:
            break
        rounds = min(ROUNDS, max(FEWEST_ROUNDS, int(PROCESS_S / look.round_s)))
    return found


@dataclass(frozen=True)
class _Look:
    """One process.

    Attributes:
        own_s, other_s: seconds per inference of every round.
        round_s: of both turns.
    """

    own_s: Sequence[float]
    other_s: Sequence[float]
    round_s: float

    @property
    def logs(self) -> list[float]:
        """Of the ratio, round by round."""
        return [log(own / other) for own, other in zip(self.own_s, self.other_s, strict=True)]


def _look(pair: Pair, device: Device, rounds: int, *, swapped: bool) -> _Look:
    """A fresh process that runs both files in turns, the second one first where they are swapped."""
    files = pair.files[::-1] if swapped else pair.files
    first, second = (device.push(path) for path in files)
    report = run_patiently(
        device,
        Job(
            "turns",
            pair.fmt,
            first,
            device.push(pair.inputs),
            more_models=(second,),
            warmup_runs=2,
            seconds=TURN_S,
            rounds=rounds,
            timeout_s=TIMEOUT_S,
        ),
    )
    own, other = report["models"][::-1] if swapped else report["models"]
    # A turn begins with a call that is not timed.
    round_s = sum((one["calls"] + 1) * median(one["turns_s"]) for one in (own, other))
    return _Look(own["cpu_s"], other["cpu_s"], round_s)


def _speed(looks: Sequence[_Look]) -> Speed:
    """Over the processes: the mean of their median logarithms of the ratio, and its interval.

    Its variance is that of the processes as they are seen, and no less than `LAYOUT` and the standard errors of their
    medians (McGill, Tukey and Larsen, 1978) make it.
    """
    middles = [median(look.logs) for look in looks]
    least = LAYOUT**2 + fmean(_error(look.logs) ** 2 for look in looks)
    spread = max(least, variance(middles)) if len(looks) > 1 else least
    middle, width = fmean(middles), SIGMAS * sqrt(spread / len(looks))
    own_s = median(second for look in looks for second in look.own_s)
    other_s = median(second for look in looks for second in look.other_s)
    return Speed(own_s, other_s, exp(middle), exp(middle - width), exp(middle + width), MEASURED)


def _error(logs: Sequence[float]) -> float:
    """Standard error of their median: 1.25 IQR / (1.35 √n)."""
    low, high = np.quantile(logs, [0.25, 0.75])
    return float(1.25 / 1.35 * (high - low) / sqrt(len(logs)))


def _timed_here(pair: Pair) -> Speed:
    return timed(pair, LocalDevice())


SPEED: Step[Pair, Speed] = Step(
    "speed", 1, _timed_here, record_store(asdict, lambda record: Speed(**record)), tools=TOOLS
)
