"""Measuring layers on a device: bookkeeping on a fake one, and the whole way on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgepack.backends.onnx import schemes as onnx
from edgepack.backends.registry import FORMATS
from edgepack.backends.schemes import CONVOLVED, FP32, SCHEMES, TABULATED
from edgepack.backends.tflite import schemes as tflite
from edgepack.cost import measure
from edgepack.cost.measure import QUICK, STANDARD, measure_points, points_for, sparse_ranks, standard_points
from edgepack.cost.measured import (
    STANDARD_CONV_GRID,
    STANDARD_GRID,
    MeasuredTable,
    grid_points,
    known_measured,
    measured_folder,
)
from edgepack.devices.device import Job
from edgepack.devices.fake import FakeDevice
from edgepack.devices.local import LocalDevice
from edgepack.errors import StableDeviceError, TargetsError, TransientDeviceError
from edgepack.model.point import Point, linear_point
from edgepack.model.scheme import Format, Scheme
from edgepack.plan.candidates import break_even_rank, rank_choices
from edgepack.targets.file import get_target
from edgepack.targets.target import Target
from edgepack.workspace import Cache

SHAPES = [(48, 64, 1), (16, 48, 2)]
OLD_SCHEMES: Mapping[Format, Sequence[Scheme]] = {
    "onnx": (onnx.FP32, onnx.INT8_DYNAMIC),
    "tflite": (tflite.FP32, tflite.INT8_DYNAMIC),
}
STEADY = {"before_s": [1e-5], "after_s": [1e-5]}
DRIFTED = {"before_s": [1e-5], "after_s": [1.5e-5]}
CALL_S = 1e-6


@pytest.fixture(scope="module")
def probe() -> Mapping[str, Any]:
    return LocalDevice().probe()


@pytest.fixture
def target() -> Target:
    return get_target("host")


def latency_s(path: str) -> float:
    """Of a file on the fake device, by its name."""
    return 1e-6 * (2 + len(Path(path).name))


def answer(job: Job, clock: Mapping[str, Any] = STEADY) -> dict[str, Any]:
    """Turns of which two of five are disturbed, and these look ten times as long."""
    disturbed = [turn % 5 in (0, 3) for turn in range(job.rounds)]
    own = [CALL_S, *(CALL_S + latency_s(path) for path in job.more_models)]
    models = [
        {"calls": 9, "turns_s": [s * (10 if d else 1) for d in disturbed], "cpu_s": [s] * job.rounds} for s in own
    ]
    return {"models": models, "clock": clock}


def device_of(probe: Mapping[str, Any], reply: Callable[[Job], Mapping[str, Any]] = answer) -> FakeDevice:
    return FakeDevice(probe, reply)


POINTS = points_for(SHAPES, FORMATS, OLD_SCHEMES)


def measured(device: FakeDevice, target: Target, root: Path, *, fresh: bool = False, **options: Any) -> MeasuredTable:
    return measure_points(device, target, options.pop("points", POINTS), cache=Cache(root, fresh=fresh), **options)


def test_points_where_the_ranks_are_known() -> None:
    shapes = [(512, 784, 1), (10, 512, 4), (64, 64, 1)]
    points = points_for(shapes, FORMATS, ranks={(512, 784): (48, 200), (10, 512): ()})
    schemes = sum(len(TABULATED[fmt]) for fmt in FORMATS)
    assert len(points) == len(set(points)) == (3 + 1 + 1) * schemes
    assert {(p.out_features, p.rank) for p in points} == {(512, None), (512, 48), (512, 200), (10, None), (64, None)}


def test_points_of_a_model_are_dense_and_sparse_ranks_in_all_schemes() -> None:
    points = points_for([(512, 784, 1), (512, 784, 1), (10, 512, 4)], ("tflite",))
    assert {p.rank for p in points if p.out_features == 512} == {None, 8, 16, 32, 64, 128, 256, 304}
    assert {p.rank for p in points if p.out_features == 10} == {None, 8}
    assert {(p.format, p.scheme) for p in points} == {("tflite", scheme) for scheme in TABULATED["tflite"]}
    assert len(points) == len(set(points)) == (8 + 2) * len(TABULATED["tflite"])
    for rows, columns in ((512, 784), (10, 512), (4, 4), (100, 100)):
        ranks, choices = sparse_ranks(rows, columns), rank_choices(rows, columns)
        assert all(rank % 8 == 0 and rank <= break_even_rank(rows, columns) for rank in ranks)
        if choices:  # every rank that a plan may choose lies between two measured ones
            assert ranks[0] == choices[0]
            assert ranks[-1] >= choices[-1]


def test_the_call_of_the_runtime_is_taken_off_and_disturbed_turns_do_not_count(
    probe: Mapping[str, Any], target: Target, tmp_path: Path
) -> None:
    device = device_of(probe)
    table = measured(device, target, tmp_path)
    assert table.entries.keys() == set(POINTS)
    for job in device.jobs:
        assert (job.mode, job.rounds, job.seconds, job.threads) == ("turns", STANDARD.rounds, STANDARD.turn_s, 1)
        for path in job.more_models:
            (entry,) = {e for p, e in table.entries.items() if _file_of(p) == Path(path).name}
            assert entry.seconds == pytest.approx(latency_s(path))
            assert entry.spread_s == pytest.approx(0, abs=1e-12)
            assert entry.rounds == STANDARD.rounds
    assert table.call_s("onnx") == pytest.approx(CALL_S)


@pytest.mark.parametrize(
    ("shares", "kept"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1, 2, 3, 4, 5, 6]),
        ([1.0, 0.5, 0.6, 0.1, 1.02, 0.98], [1, 5, 6]),
        ([0.5, 0.1, 0.3, 0.2, 0.3, 0.4], [1, 6]),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_undisturbed_turns_are_taken_or_the_least_disturbed(shares: list[float], kept: list[int]) -> None:
    turns = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    model = {"turns_s": turns, "cpu_s": [share * turn for share, turn in zip(shares, turns, strict=True)]}
    assert list(measure._undisturbed(model)) == kept


def _file_of(point: Point) -> str:
    structure = "-".join(map(str, (point.structure.name, *point.structure.ranks)))
    return f"{point.out_features}x{point.in_features}.{structure}.batch{point.batch}.{point.scheme}.{point.format}"


def test_nothing_is_measured_twice_unless_it_is_asked_for(
    probe: Mapping[str, Any], target: Target, tmp_path: Path
) -> None:
    device = device_of(probe)
    table = measured(device, target, tmp_path, turns=QUICK)
    jobs = len(device.jobs)
    assert measured(device, target, tmp_path, turns=QUICK) == table
    assert len(device.jobs) == jobs
    measured(device, target, tmp_path)  # more rounds than are known
    assert len(device.jobs) == 2 * jobs
    measured(device, target, tmp_path, turns=QUICK)
    measured(device, target, tmp_path, points=POINTS[:3])
    assert len(device.jobs) == 2 * jobs
    measured(device, target, tmp_path, fresh=True)
    assert len(device.jobs) == 3 * jobs
    other = [linear_point(onnx.FP32, 24, 24, None, 1)]
    assert measured(device, target, tmp_path, points=other).entries.keys() == {*POINTS, *other}
    assert device.jobs[-1].more_models == (device.jobs[-1].more_models[0],)
    measured(device, target, tmp_path, threads=2)
    assert len(list(measured_folder("host", tmp_path).iterdir())) == 2


def test_ways_to_write_one_layer_share_a_process_and_groups_are_bounded(
    probe: Mapping[str, Any], target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "GROUP_FILES", 8)
    device = device_of(probe)
    measured(device, target, tmp_path)
    assert all(0 < len(job.more_models) <= 8 for job in device.jobs)
    assert all({Path(path).suffix for path in job.more_models} == {f".{job.format}"} for job in device.jobs)
    assert sum(len(job.more_models) for job in device.jobs) == len(POINTS)
    assert len({Path(path).name.split(".")[0] for path in device.jobs[0].more_models}) == 1
    scarce = device_of({**probe, "available_bytes": 8 * 64 * 48 * 4})
    measured(scarce, target, tmp_path, fresh=True)
    assert len(scarce.jobs) > len(device.jobs)


def test_an_interrupt_loses_no_group_that_was_measured(
    probe: Mapping[str, Any], target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "GROUP_FILES", 5)

    def stops(job: Job) -> Mapping[str, Any]:
        if len(device.jobs) == 3:
            raise KeyboardInterrupt
        return answer(job)

    device = device_of(probe, stops)
    with pytest.raises(KeyboardInterrupt):
        measured(device, target, tmp_path)
    again = device_of(probe)
    told: list[tuple[int, int]] = []

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        told.append((done, total))

    table = measured(again, target, tmp_path, progress=progress)
    assert sum(len(job.more_models) for job in again.jobs) == len(POINTS) - 10
    assert (told[0], told[-1]) == ((10, len(POINTS)), (len(POINTS), len(POINTS)))
    assert table.entries.keys() == set(POINTS)


def test_a_passing_failure_is_tried_once_more_and_never_kept(
    probe: Mapping[str, Any], target: Target, tmp_path: Path
) -> None:
    def fails_first(job: Job) -> Mapping[str, Any]:
        if len(device.jobs) == 1:
            raise TransientDeviceError("killed")
        return answer(job)

    device = device_of(probe, fails_first)
    assert measured(device, target, tmp_path).refused == {}

    def fails(job: Job) -> Mapping[str, Any]:
        raise TransientDeviceError("killed")

    with pytest.raises(TransientDeviceError):
        measured(device_of(probe, fails), target, tmp_path / "other")
    assert not measured_folder("host", tmp_path / "other").exists()


def test_a_group_during_which_the_clock_drifted_is_measured_once_more(
    probe: Mapping[str, Any], target: Target, tmp_path: Path
) -> None:
    def drifts(job: Job) -> Mapping[str, Any]:
        return answer(job, DRIFTED if len(device.jobs) % 2 else STEADY)

    device = device_of(probe, drifts)
    assert measured(device, target, tmp_path).entries.keys() == set(POINTS)
    assert len(device.jobs) == 4
    always = device_of(probe, lambda job: answer(job, DRIFTED))
    assert measured(always, target, tmp_path, fresh=True).entries.keys() == set(POINTS)
    assert len(always.jobs) == 4


def test_a_layer_that_the_runtime_refuses_is_found_and_remembered(
    probe: Mapping[str, Any], target: Target, tmp_path: Path
) -> None:
    bad = linear_point(onnx.INT8_DYNAMIC, 48, 64, 16, 1)

    def refuses(job: Job) -> Mapping[str, Any]:
        if any(Path(path).name == _file_of(bad) for path in job.more_models):
            raise StableDeviceError("the process died of SIGILL\n… and so on")
        return answer(job)

    device = device_of(probe, refuses)
    table = measured(device, target, tmp_path)
    assert table.refused == {bad: "the process died of SIGILL ? and so on"}
    assert table.entries.keys() == set(POINTS) - {bad}
    assert table.estimates([bad]) == [None]
    jobs = len(device.jobs)
    assert measured(device, target, tmp_path) == table
    assert len(device.jobs) == jobs


def test_a_device_that_runs_nothing_is_an_error_and_blames_no_layer(
    probe: Mapping[str, Any], target: Target, tmp_path: Path
) -> None:
    def broken(job: Job) -> Mapping[str, Any]:
        raise StableDeviceError("disk full")

    with pytest.raises(StableDeviceError, match="disk full"):
        measured(device_of(probe, broken), target, tmp_path)
    assert not measured_folder("host", tmp_path).exists()
    bare = {**probe, "runtimes": {}}
    with pytest.raises(StableDeviceError, match="runs no onnx: onnxruntime is not installed"):
        measured(device_of(bare), target, tmp_path)


def test_another_cpu_than_the_targets_is_refused(probe: Mapping[str, Any], tmp_path: Path) -> None:
    device = device_of(
        {**probe, "machine": "aarch64", "cpus": [{"cpu": 0, "core": "cortex-a53", "max_khz": 1, "governor": None}]}
    )
    with pytest.raises(TargetsError, match=r"fake is no rpi4: found aarch64 cortex-a53.* expected aarch64 cortex-a72"):
        measured(device, get_target("rpi4"), tmp_path)
    assert device.jobs == []
    pi = {
        **probe,
        "machine": "aarch64",
        "features": ["asimd"],
        "cpu_model": "",
        "cpus": [{"cpu": i, "core": "cortex-a72", "max_khz": 1500000, "governor": None} for i in range(4)],
        "allowed_cpus": [0, 1, 2, 3],
    }
    device = device_of(pi)
    table = measured(device, get_target("rpi4"), tmp_path)
    assert table.fingerprint.cores == ("4x cortex-a72 1500 MHz",)
    assert all(job.cpus == (3,) for job in device.jobs)
    with pytest.raises(TargetsError, match="without dotprod, fp16, lse"):
        measured(device_of(pi), get_target("rpi5"), tmp_path)


def test_layers_are_measured_on_this_machine(target: Target, tmp_path: Path) -> None:
    shapes = [(2048, 2048, 1), (64, 64, 1)]
    schemes: dict[Format, tuple[Scheme, Scheme]] = {fmt: (SCHEMES[fmt][0], SCHEMES[fmt][-1]) for fmt in FORMATS}
    points = [p for p in points_for(shapes, FORMATS, schemes) if p.rank in (None, 8)]
    table = measure_points(LocalDevice(), target, points, turns=QUICK, cache=Cache(tmp_path))
    assert table.refused == {}
    assert table.entries.keys() == set(points)
    assert known_measured("host", table.fingerprint, 1, tmp_path) == table
    for fmt in FORMATS:
        large, small, pair = (
            table.entries[linear_point(FP32[fmt], s, s, r, 1)].seconds for s, r in ((2048, None), (64, None), (2048, 8))
        )
        assert large > 10 * small
        assert large > 3 * pair
        assert table.calls[fmt].seconds < large


def test_the_standard_points_are_the_grid_in_all_schemes() -> None:
    points = standard_points(("onnx",))
    grid = {p for scheme in TABULATED["onnx"] for p in grid_points(STANDARD_GRID, scheme)}
    convolutions = {p for scheme in CONVOLVED["onnx"] for p in STANDARD_CONV_GRID.points(scheme)}
    assert set(points) == grid | convolutions
    assert len(points) == len(grid) + len(convolutions)
