"""Cost tables filled by the real emulator: interrupted, gone on with, and compared with the shipped one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack.backends.onnx.schemes import FP32
from edgepack.backends.schemes import CONVOLVED, TABULATED, scheme_named
from edgepack.cost import count as counting
from edgepack.cost.count import (
    STANDARD_CONV_GRID,
    STANDARD_GRID,
    Counter,
    fill_table,
    held_out_convolutions,
    held_out_points,
)
from edgepack.cost.emulated import ConvGrid, Grid, load_table, own_folder, table_for, table_name
from edgepack.cost.interpolate import interpolate
from edgepack.devices.device import Job
from edgepack.devices.emulated import EmulatedDevice
from edgepack.emulator.counts import Counts
from edgepack.model.point import Point
from edgepack.plan.candidates import break_even_rank
from edgepack.targets.file import get_target
from edgepack.targets.target import Target
from edgepack.workspace import Cache, Workspace

GRID = Grid(sides=(128, 512), ranks=(32,), batches=(1,))
CONV_GRID = ConvGrid(channels=(16, 64), kernels=(3,), sides=(7,))
NOISE_INSTRUCTIONS = 600
"""What the counts of one small file differ by from process to process, mostly Python's own work around the call."""


@pytest.mark.system
def test_a_table_is_filled_interrupted_gone_on_with_and_agrees_with_the_shipped_one(
    emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = get_target("rpi4")
    shipped = table_for(target)
    counted: list[int] = []
    count = EmulatedDevice.count

    def counting_files(self: EmulatedDevice, job: Job) -> Any:
        counted.append(len(job.more_models))
        return count(self, job)

    def stops(stage: str, done: int = 0, total: int = 0) -> None:
        if stage == "count onnx layers" and done >= 16:
            raise KeyboardInterrupt

    monkeypatch.setattr(EmulatedDevice, "count", counting_files)
    monkeypatch.setattr(counting, "GROUP_FILES", 16)
    points = GRID.size * sum(map(len, TABULATED.values())) + CONV_GRID.size * sum(map(len, CONVOLVED.values()))
    with pytest.raises(KeyboardInterrupt):
        fill_table(target, GRID, stops, convolutions=CONV_GRID, held_out=0, cache=Cache(tmp_path))
    assert counted == [0, 0, 16]  # an empty file for each format, and the first group
    assert not (own_folder() / table_name(target)).exists()
    before = sum(counted)
    monkeypatch.setattr(counting, "GROUP_FILES", 120)
    try:
        table = fill_table(target, GRID, convolutions=CONV_GRID, held_out=0, cache=Cache(tmp_path))
        assert points - 16 <= sum(counted) - before <= points - 16 + 8  # what is counted twice did not settle
        before = sum(counted)
        assert fill_table(target, GRID, convolutions=CONV_GRID, held_out=0, cache=Cache(tmp_path)) == table
        assert sum(counted) == before
        assert load_table(own_folder() / table_name(target)) == table
        assert table_for(target) == table
    finally:
        (own_folder() / table_name(target)).unlink(missing_ok=True)
    assert shipped is not None
    assert (table.core, table.isa, table.caches) == (shipped.core, shipped.isa, shipped.caches)
    assert table.runtimes == shipped.runtimes
    for fmt, schemes in table.costs.items():
        assert set(schemes) == {scheme.name for scheme in TABULATED[fmt]}
        for name, costs in schemes.items():
            if name not in shipped.costs[fmt]:
                continue
            for index, point in enumerate(GRID.points(scheme_named(fmt, name))):
                known = interpolate(shipped, point)
                assert known is not None
                assert costs.instructions[index] == pytest.approx(known.instructions, rel=0.02, abs=NOISE_INSTRUCTIONS)
    assert table.convolutions is not None
    for fmt, schemes in table.convolutions.costs.items():
        assert set(schemes) == {scheme.name for scheme in CONVOLVED[fmt]}
        for name, costs in schemes.items():
            for index, point in enumerate(CONV_GRID.points(scheme_named(fmt, name))):
                known = interpolate(shipped, point)
                assert known is not None
                assert costs.instructions[index] == pytest.approx(known.instructions, rel=0.02, abs=NOISE_INSTRUCTIONS)


@pytest.mark.system
def test_counts_of_other_caches_are_other_entries(emulator: Path, tmp_path: Path) -> None:
    target = get_target("rpi4")
    cluster = target.main_cluster
    assert cluster.L2 is not None
    other = replace(target, clusters=(replace(cluster, L2=replace(cluster.L2, size_bytes=512 << 10)),))
    faster = replace(target, clusters=(replace(cluster, frequency_mhz=1800),))
    (point,) = [p for p in GRID.points(FP32) if (p.out_features, p.in_features, p.rank) == (128, 128, None)]
    cache = Cache(tmp_path)

    def counts_on(chosen: Target) -> dict[Point, Counts]:
        with closing(Counter(chosen, Workspace(cache, tmp_path))) as counter:
            return counter.count([point])

    known = counts_on(target)

    def entries() -> int:
        return sum(1 for _ in (tmp_path / "counts").rglob("*.json"))

    first = entries()
    assert counts_on(faster) == known  # a clock changes no counts
    assert entries() == first
    assert counts_on(other).keys() == known.keys()
    assert entries() == 2 * first


def test_held_out_layers_lie_inside_of_the_grid_and_between_its_points() -> None:
    points = held_out_points(STANDARD_GRID, "onnx")
    shapes = {(p.out_features, p.in_features, p.rank, p.batch) for p in points}
    assert len(shapes) == 24
    assert len(points) == 24 * len(TABULATED["onnx"])
    assert points == held_out_points(STANDARD_GRID, "onnx")
    assert any(rank is None for _, _, rank, _ in shapes)
    assert {batch for _, _, _, batch in shapes} - set(STANDARD_GRID.batches)
    for rows, columns, rank, batch in shapes:
        assert 32 <= rows <= 2048
        assert 32 <= columns <= 2048
        assert rows not in STANDARD_GRID.sides or columns not in STANDARD_GRID.sides
        assert 1 <= batch <= 16
        assert rank is None or 8 <= rank <= break_even_rank(rows, columns)


def test_held_out_convolutions_are_bounded_and_lie_between_the_points_of_the_grid() -> None:
    points = held_out_convolutions(STANDARD_CONV_GRID, "tflite")
    shapes = {(p.out_features, p.in_features, p.kernel, p.batch) for p in points}
    assert len(points) == 24 * len(CONVOLVED["tflite"])
    assert points == held_out_convolutions(STANDARD_CONV_GRID, "tflite")
    assert {kernel for *_, kernel, _ in shapes} >= {(1, 1), (3, 3), (3, 1)}
    assert {places for *_, places in shapes} - {side * side for side in STANDARD_CONV_GRID.sides}
    assert all(side % 8 == 0 and 8 <= side <= 256 for rows, columns, *_ in shapes for side in (rows, columns))
    assert all(op.macs <= counting.HELD_OUT_MACS for point in points for op in point.ops)


def test_the_two_rounds_that_agree_are_taken() -> None:
    def round_of(instructions: float) -> Counts:
        misses: Mapping[str, float] = {"L1i": 0.0, "L1d": instructions / 100, "L2": 0.0}
        return Counts(instructions, 0.0, 0.0, misses)

    for rounds in ([100.0, 33000.0, 104.0], [33000.0, 104.0, 100.0], [-33000.0, 100.0, 104.0], [100.0, 104.0]):
        assert [one.instructions for one in counting._closest([round_of(r) for r in rounds])] == [100.0, 104.0]
    assert counting._settled(round_of(100.0), round_of(104.0))
    assert counting._settled(round_of(1e6), round_of(1.009e6))
    assert not counting._settled(round_of(1e6), round_of(1.02e6))
    assert not counting._settled(round_of(100.0), round_of(700.0))
