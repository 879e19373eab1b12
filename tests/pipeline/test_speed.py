"""Whether a file is slower than another one: real files in fresh processes, and how it is told apart from chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.backends.registry import FORMATS
from edgepack.backends.schemes import DENSE_INT8
from edgepack.cost.layer_files import layer_files
from edgepack.devices.device import Job
from edgepack.devices.fake import FakeDevice
from edgepack.devices.local import LocalDevice
from edgepack.metrics.drop import Drop
from edgepack.model.point import linear_point
from edgepack.model.scheme import FileScheme, Format
from edgepack.pipeline.evaluate import FileTrial
from edgepack.pipeline.prepare import Prepared
from edgepack.pipeline.speed import (
    LAYOUT,
    MOST_S,
    PROCESSES,
    ROUNDS,
    SIGMAS,
    SLACK,
    SPEED,
    Pair,
    Speed,
    speed_against,
    timed,
)
from tests.linear_plans import linear_plan
from tests.pipeline.small_builds import options, working_in

SIDE = 1024


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_file_with_a_small_part_of_the_work_is_faster(fmt: Format, tmp_path: Path) -> None:
    scheme = DENSE_INT8[fmt][0]
    dense, thin = (linear_point(scheme, SIDE, SIDE, rank, 1) for rank in (None, 8))
    files = layer_files([dense, thin])
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((1, SIDE), np.float32))
    pair = Pair((files[thin], files[dense]), fmt, tmp_path / "x.npz")
    faster = timed(pair, LocalDevice())
    assert faster.is_decided
    assert faster.keeps_pace(is_smaller=False)
    assert 0 < faster.low < faster.ratio < faster.high < 1
    assert faster.latency_s < faster.other_s
    slower = timed(replace(pair, files=pair.files[::-1]), LocalDevice())
    assert slower.is_decided
    assert not slower.keeps_pace(is_smaller=True)


def device_of(ratios: Callable[[int, int], float], jobs: list[Job]) -> FakeDevice:
    """The first file takes `ratios(process, round)` times as long as the second; the clock tells nothing."""

    def reply(job: Job) -> Mapping[str, Any]:
        own = [1e-3 * ratios(len(jobs), turn) for turn in range(job.rounds)]
        by_name = {"own": own, "other": [1e-3] * job.rounds}
        jobs.append(job)
        rng = np.random.default_rng(len(jobs))
        return {
            "models": [
                {"calls": 5, "turns_s": list(rng.random(job.rounds) / 1000), "cpu_s": by_name[Path(name).stem]}
                for name in (str(job.model), *job.more_models)
            ]
        }

    return FakeDevice({}, reply)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    for name in ("own.onnx", "other.onnx", "x.npz"):
        (tmp_path / name).write_bytes(name.encode())
    return Pair((tmp_path / "own.onnx", tmp_path / "other.onnx"), "onnx", tmp_path / "x.npz")


def test_a_clear_case_takes_one_process_and_a_close_one_all_of_them(pair: Pair) -> None:
    jobs: list[Job] = []
    clear = timed(pair, device_of(lambda *_: 0.7, jobs))
    assert len(jobs) == 1
    assert clear.ratio == pytest.approx(0.7)
    assert clear.high == pytest.approx(0.7 * np.exp(SIGMAS * LAYOUT))
    jobs.clear()
    close = timed(pair, device_of(lambda *_: 1 + SLACK, jobs))
    assert len(jobs) == PROCESSES
    assert not close.is_decided
    assert {job.rounds for job in jobs[1:]} == {ROUNDS}
    firsts = [Path(str(job.model)).stem for job in jobs]
    assert firsts == ["own", "other"] * (PROCESSES // 2), "each is first in every other process"


def test_processes_that_differ_decide_nothing(pair: Pair) -> None:
    """By what the process does to them: the mean of the first two says that the file is faster."""
    jobs: list[Job] = []
    found = timed(pair, device_of(lambda process, _: (1.0, 0.9, 1.15, 0.8)[process % 4], jobs))
    assert len(jobs) > 2
    assert not (found.is_decided and found.high < 1)


def test_rounds_that_differ_decide_nothing(pair: Pair) -> None:
    jobs: list[Job] = []
    timed(pair, device_of(lambda _, turn: 1.6 if turn % 2 else 0.5, jobs))
    assert len(jobs) > 1


def test_no_process_begins_when_the_time_is_up(pair: Pair) -> None:
    jobs: list[Job] = []
    now = iter([0.0, MOST_S / 2, MOST_S, MOST_S])
    found = timed(pair, device_of(lambda *_: 1 + SLACK, jobs), clock=lambda: next(now))
    assert len(jobs) == 2
    assert not found.is_decided


@pytest.mark.parametrize(
    ("ratio", "low", "high", "smaller", "as_large"),
    [
        (0.8, 0.76, 0.84, True, True),
        (1.0, 0.97, 1.03, True, False),
        (1.019, 1.001, 1.04, True, False),
        (1.03, 0.99, 1.07, False, False),
        (1.5, 1.4, 1.6, False, False),
    ],
    ids=["faster", "perhaps slower", "perhaps too slow", "seems too slow", "slower"],
)
def test_where_it_cannot_be_told_only_a_smaller_file_stays(
    ratio: float, low: float, high: float, *, smaller: bool, as_large: bool
) -> None:
    speed = Speed(ratio, 1.0, ratio, low, high, "measured")
    assert (speed.keeps_pace(is_smaller=True), speed.keeps_pace(is_smaller=False)) == (smaller, as_large)


@pytest.fixture
def trial(ready: Prepared, tmp_path: Path) -> FileTrial:
    path = tmp_path / "plan.onnx"
    path.write_bytes(b"a plan")
    scheme = DENSE_INT8["onnx"][0]
    layers = tuple(linear_plan(layer.name, 4, 4, None, scheme=scheme) for layer in ready.evaluator.layers)
    return FileTrial("onnx", FileScheme.of(scheme), path, layers, (), Drop("accuracy", 95.0, 95.0, 0, 0, 0.0, 256))


def test_only_what_was_decided_is_kept(
    ready: Prepared, trial: FileTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = working_in(tmp_path, ready.evaluator, options=options(Path("m.onnx"), "host", data=None))
    dense, files, scheme = tmp_path / "dense.onnx", ready.files["onnx"], DENSE_INT8["onnx"][0]
    dense.write_bytes(b"dense")
    undecided, decided = (Speed(1.0, 1.0, 1.0, 0.9, high, "measured") for high in (1.1, 1.01))
    looks: Iterator[Speed] = iter([undecided, decided])
    monkeypatch.setattr("edgepack.pipeline.speed.SPEED", replace(SPEED, run=lambda _: next(looks)))
    for expected in (undecided, decided, decided):
        assert speed_against(here, files, trial, dense, scheme, ready.estimates) == expected
    dense.write_bytes(b"a plan")
    assert speed_against(here, files, trial, dense, scheme, ready.estimates) is None, "the same file"


def test_elsewhere_the_layers_are_estimated_as_they_were_written(
    ready: Prepared, trial: FileTrial, tmp_path: Path
) -> None:
    dense, files = tmp_path / "dense.onnx", ready.files["onnx"]
    dense.write_bytes(b"dense")
    dynamic, static = DENSE_INT8["onnx"][:2]

    def speed(scheme: Any, rank: int | None = None) -> Speed:
        layers = tuple(linear_plan(layer.layer, 4, 4, rank, scheme=scheme) for layer in trial.layers)
        found = speed_against(ready.evaluator, files, replace(trial, layers=layers), dense, dynamic, ready.estimates)
        assert found is not None
        return found

    same, other, thin = speed(dynamic), speed(static), speed(dynamic, 8)
    assert (same.ratio, same.low, same.high, same.by) == (1.0, 1.0, 1.0, "by the emulated cost table")
    times = [ready.estimates.dense_latency_s(scheme) or 0.0 for scheme in (dynamic, static)]
    call_s = ready.estimates.call_s("onnx")
    assert other.ratio == pytest.approx((times[1] + call_s) / (times[0] + call_s))
    assert thin.ratio < 1
