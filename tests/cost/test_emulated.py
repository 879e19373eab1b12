"""Cost tables: what stands between their points, which target they answer for, and what a stranger may not put in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, NBITS8
from edgepack.backends.registry import FORMATS
from edgepack.backends.schemes import CONVOLVED, TABULATED, scheme_named
from edgepack.backends.tflite import schemes as tflite
from edgepack.cost.count import FEW_LINES
from edgepack.cost.emulated import (
    LEVELS,
    CallCost,
    ConvCosts,
    ConvGrid,
    CostTable,
    Deviation,
    Grid,
    HeldOut,
    SchemeCosts,
    load_table,
    save_table,
    table_for,
    table_identity,
    table_name,
)
from edgepack.cost.interpolate import interpolate, interpolate_all
from edgepack.cost.model import EmulatedCosts
from edgepack.emulator import counts
from edgepack.emulator.counts import Counts
from edgepack.emulator.estimate import TimeBound, time_bound
from edgepack.errors import InputError
from edgepack.model.point import Point, conv_point, linear_point
from edgepack.model.scheme import Scheme
from edgepack.targets.file import get_target
from tests.linear_plans import point_like

GRID = Grid((16, 128, 512, 2048), (8, 32, 128, 512), (1, 4, 16))
CONV_GRID = ConvGrid((16, 64, 256), (3, 5), (7, 14))
RPI4 = get_target("rpi4")
COUNTED = (FP32, INT8_DYNAMIC, INT8_STATIC)
UNEVEN = {
    (core, scheme): errors
    for core in ("cortex-a55", "cortex-a76")
    for scheme, errors in ((NBITS4, (0.4, 0.55)), (tflite.INT4_DYNAMIC, (0.06, 0.8)))
}
"""Interpolation errors, median and 90th percentile, of kernels that take whole blocks of inputs alone: where some
are left another kernel takes twice as long."""
SHIPPED = ("rpi4", "rpi3b+", "rpi-zero2w", "rpi5", "rk3566")


def instructions(point: Point) -> int:
    """Of kernels as they are: nested loops with a prologue for each."""
    per_weight = {FP32: 5, INT8_DYNAMIC: 3}.get(point.scheme, 4)
    edges = point.in_features + 2 * point.out_features + 3 * (point.rank or 0)
    patches = 5 * point.ops[0].inputs if prod(point.kernel) > 1 else 0
    return 1000 + point.batch * (per_weight * point.weights + 7 * edges + patches)


def streamed_lines(table: CostTable, point: Point) -> float:
    """Of the lines that a layer reads once, in order, those that L2 has no room for: none of a small one's, all of a
    large one's."""
    size, ways, line = table.cache_geometry("L2")
    beside = table.calls["onnx"].misses
    values = point.batch * (point.in_features + point.out_features + (point.rank or 0))
    lines = (point.weights * point.scheme.bits / 8 + 4 * values) / line
    over = (lines + beside["L1i"] + beside["L1d"]) * line / size - 1
    return float(np.clip((over * ways + 0.5) / 2, 0, 1) * lines)


def made(grid: Grid = GRID, **changes: Any) -> CostTable:
    """A table of an imagined runtime that reads all of its weights once per inference."""
    core, isa, caches = table_identity(RPI4)
    call = CallCost(20000, {"L1i": 700, "L1d": 400, "L2": 0})
    error = HeldOut(Deviation(15, 0.02, 0.08), Deviation(9, 0.1, 0.4), {"L1d": Deviation(48, 0.04, 0.13), "L2": None})
    table = CostTable(
        *(core, isa, caches, "QEMU 0", (), {"onnx": "onnxruntime 0"}, grid),
        calls={"onnx": call},
        costs={"onnx": {}},
        held_out={"onnx": dict.fromkeys([scheme.name for scheme in COUNTED], error)},
    )
    linear, convolved = (
        {scheme.name: costs_of(table, list(one.points(scheme))) for scheme in COUNTED} for one in (grid, CONV_GRID)
    )
    convolutions = ConvCosts(CONV_GRID, {"onnx": convolved}, {"onnx": {"fp32": error}})
    return replace(table, **{"costs": {"onnx": linear}, "convolutions": convolutions, **changes})


def costs_of(table: CostTable, points: list[Point]) -> SchemeCosts:
    once = tuple(point.weights // 64 for point in points)
    knee = tuple(round(streamed_lines(table, point)) for point in points)
    return SchemeCosts(tuple(map(instructions, points)), {"L1i": (120,) * len(points), "L1d": once, "L2": knee})


TABLE = made()


def test_levels_are_those_of_the_emulator() -> None:
    assert LEVELS == counts.LEVELS


@pytest.mark.parametrize("scheme", COUNTED, ids=str)
@pytest.mark.parametrize(
    ("counted", "grid"), [(TABLE, GRID), (TABLE.convolutions, CONV_GRID)], ids=["products", "convolutions"]
)
def test_a_point_of_a_grid_is_answered_exactly(counted: Any, grid: Grid | ConvGrid, scheme: Scheme) -> None:
    costs = counted.costs["onnx"][scheme.name]
    for index, point in enumerate(grid.points(scheme)):
        found = interpolate(TABLE, point)
        assert found is not None
        assert found.instructions == pytest.approx(costs.instructions[index], abs=1e-6)
        assert not found.extrapolated
        for level in TABLE.levels:
            assert found.misses[level] == pytest.approx(costs.misses[level][index], abs=1e-6)


@given(
    st.integers(8, 512), st.integers(1, 512), st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1), (7, 7), (5,)]),
    st.integers(10, 3136), st.sampled_from(COUNTED),
)  # fmt: skip
def test_nested_loops_of_a_convolution_are_interpolated_to_the_last_instruction(
    rows: int, columns: int, kernel: tuple[int, ...], places: int, scheme: Scheme
) -> None:
    point = conv_point(scheme, rows, columns, kernel, places)
    found = interpolate(TABLE, point)
    assert found is not None
    assert found.instructions == pytest.approx(instructions(point), rel=1e-9)
    inside = min(rows, columns) >= 16 and max(rows, columns) <= 256 and 49 <= places <= 196
    assert found.extrapolated == (not (inside and (prod(kernel) == 1 or 9 <= prod(kernel) <= 25)))


def test_convolutions_are_no_linear_layers_and_a_table_without_them_says_so() -> None:
    one = conv_point(FP32, 64, 64, (3, 3), 100)
    source, without = EmulatedCosts(TABLE, RPI4), EmulatedCosts(replace(TABLE, convolutions=None), RPI4)
    linear = linear_point(FP32, 64, 64, None, 4)
    convolved, also, beside = source.estimates([one, linear, conv_point(NBITS8, 64, 64, (3, 3), 100)])
    assert convolved is not None
    assert also is not None
    assert convolved.latency_s > 9 * also.latency_s
    assert convolved.error_share == 0.1, "places between those of the grid"
    assert beside is None
    assert without.estimates([one, linear]) == [None, also]


@st.composite
def layers(draw: st.DrawFn, low: int = 1, high: int = 8192) -> Point:
    rows, columns = draw(st.integers(low, high)), draw(st.integers(low, high))
    rank = draw(st.none() | st.integers(min(8, low), 512))
    return linear_point(draw(st.sampled_from(COUNTED)), rows, columns, rank, draw(st.integers(1, 16)))


@given(layers(16, 2048))
def test_nested_loops_are_interpolated_to_the_last_instruction(point: Point) -> None:
    found = interpolate(TABLE, point)
    assert found is not None
    assert found.instructions == pytest.approx(instructions(point), rel=1e-9)
    assert found.misses["L1i"] == pytest.approx(120)
    assert found.misses["L1d"] == pytest.approx(point.weights / 64, rel=1e-6, abs=1)
    assert found.misses["L2"] == pytest.approx(streamed_lines(TABLE, point), rel=1e-6, abs=1)


@given(layers())
def test_nothing_is_negative_and_beyond_the_grid_is_said(point: Point) -> None:
    found = interpolate(TABLE, point)
    assert found is not None
    assert found.instructions >= 0
    assert all(count >= 0 for count in found.misses.values())
    inside = 16 <= min(point.out_features, point.in_features) <= max(point.out_features, point.in_features) <= 2048
    assert found.extrapolated == (not (inside and (point.rank is None or point.rank >= 8)))


@given(layers(16, 2000), st.sampled_from(["out_features", "in_features", "batch"]))
def test_a_larger_layer_costs_no_less(point: Point, side: str) -> None:
    larger = point_like(point, **{side: min(getattr(point, side) + 40, 16 if side == "batch" else 2048)})
    less, more = interpolate(TABLE, point), interpolate(TABLE, larger)
    assert less is not None
    assert more is not None
    assert less.instructions <= more.instructions
    # The counts in a table are whole, so a line may be lost to rounding.
    assert all(less.misses[level] <= more.misses[level] + 2 for level in TABLE.levels)


def test_the_knee_stands_where_the_cache_ends() -> None:
    """1 MiB of L2: weights of 0.7 MB stay in it, weights of 1.3 MB all come from memory at every inference."""
    fits, too_large = (linear_point(INT8_DYNAMIC, side, 1024, None, 1) for side in (680, 1280))
    inside, outside = interpolate(TABLE, fits), interpolate(TABLE, too_large)
    assert inside is not None
    assert outside is not None
    assert inside.misses["L2"] == pytest.approx(0, abs=1)
    assert outside.misses["L2"] == pytest.approx((1280 * 1024 + 4 * (1280 + 1024)) / 64, abs=1)


def test_what_the_table_lacks_is_not_guessed() -> None:
    assert interpolate(TABLE, linear_point(tflite.FP32, 64, 64, None, 1)) is None
    assert interpolate(TABLE, linear_point(NBITS8, 64, 64, None, 1)) is None
    source = EmulatedCosts(TABLE, RPI4)
    good, unknown = linear_point(FP32, 64, 64, None, 1), linear_point(NBITS8, 64, 64, None, 1)
    first, second, third = source.estimates([good, unknown, good])
    assert second is None
    assert first is not None
    assert first == third
    assert source.call_s("tflite") == 0.0


@given(st.lists(layers(), max_size=12))
def test_layers_are_interpolated_together_as_each_is_alone(points: list[Point]) -> None:
    for scheme in COUNTED:
        own = [point for point in points if point.scheme == scheme]
        assert interpolate_all(TABLE, own) == [interpolate(TABLE, point) for point in own]


def test_a_price_is_the_middle_of_the_bounds_and_carries_its_error() -> None:
    source = EmulatedCosts(TABLE, RPI4)
    one = linear_point(FP32, 300, 1000, None, 1)
    known = interpolate(TABLE, one)
    assert known is not None
    bound = time_bound(Counts(known.instructions, 0.0, 0.0, {**known.misses}), RPI4)
    assert isinstance(bound, TimeBound)
    estimate, between, far = source.estimates([one, point_like(one, batch=2), linear_point(FP32, 4096, 4096, None, 1)])
    assert estimate is not None
    assert estimate.latency_s == pytest.approx((bound.low_s + bound.high_s) / 2)
    assert (estimate.source, estimate.error_share, estimate.extrapolated) == (source.name, 0.02, False)
    assert between is not None
    assert between.error_share == 0.1
    assert far is not None
    assert far.extrapolated
    assert 0 < source.call_s("onnx") < estimate.latency_s


def test_without_constants_of_the_target_there_are_no_seconds() -> None:
    bare = replace(RPI4, clusters=(replace(RPI4.main_cluster, ipc=None),))
    assert EmulatedCosts(TABLE, bare).estimates([linear_point(FP32, 512, 512, None, 1)]) == [None]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_table(TABLE, tmp_path / "t.json")
    assert load_table(tmp_path / "t.json") == TABLE


def test_a_table_answers_by_what_the_target_is_and_not_by_its_name(tmp_path: Path) -> None:
    save_table(TABLE, tmp_path / table_name(RPI4))
    assert table_for(RPI4, [tmp_path]) == TABLE
    assert table_for(get_target("rpi4-1800mhz"), [tmp_path]) == TABLE
    assert table_for(get_target("jetson-nano"), [tmp_path]) is None
    cluster = RPI4.main_cluster
    assert cluster.L2 is not None
    halved = replace(RPI4, clusters=(replace(cluster, L2=replace(cluster.L2, size_bytes=512 << 10)),))
    fewer_ways = replace(RPI4, clusters=(replace(cluster, L2=replace(cluster.L2, ways=8)),))
    other_isa = replace(RPI4, isa=("neon", "dotprod"))
    for other in (halved, fewer_ways, other_isa):
        assert table_for(other, [tmp_path]) is None
        assert table_for(other) is None
    assert table_for(get_target("orangepi-zero2"), [tmp_path]) is None  # ways of its caches are not known


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tables_answer_for_both_formats(name: str) -> None:
    table = table_for(get_target(name))
    assert table is not None
    for fmt in FORMATS:
        known = {scheme.name for scheme in TABULATED[fmt]}
        assert set(table.costs[fmt]) == known
        for name_of_scheme in table.costs[fmt]:
            held = table.held_out[fmt][name_of_scheme]
            scheme = scheme_named(fmt, name_of_scheme)
            assert held.between_batches is not None
            assert held.instructions.points + held.between_batches.points == 24
            median, p90 = UNEVEN.get((table.core, scheme), (0.05, None))
            assert held.instructions.median < median
            # LiteRT's kernels for floats and 4 bits depend on the remainder of the sides: what lies between is told
            # worst there.
            assert held.instructions.p90 < (p90 or (0.6 if scheme in (tflite.FP32, tflite.INT4_DYNAMIC) else 0.2))
            dense = interpolate(table, linear_point(scheme, 1024, 1024, None, 1))
            pair = interpolate(table, linear_point(scheme, 1024, 1024, 128, 1))
            assert dense is not None
            assert pair is not None
            assert pair.instructions < 0.6 * dense.instructions
            assert pair.misses[table.levels[-1]] <= dense.misses[table.levels[-1]] + FEW_LINES


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tables_answer_for_convolutions(name: str) -> None:
    table = table_for(get_target(name))
    assert table is not None
    assert table.convolutions is not None
    for fmt in FORMATS:
        for scheme in CONVOLVED[fmt]:
            held = table.convolutions.held_out[fmt][scheme.name]
            assert held.instructions.median < 0.1
            whole, thin = (interpolate(table, conv_point(scheme, rows, 64, (3, 3), 196)) for rows in (256, 16))
            assert whole is not None
            assert thin is not None
            assert thin.instructions < 0.5 * whole.instructions


@pytest.mark.parametrize(("without", "with_dot"), [("rpi4", "rpi5"), ("rpi3b+", "rk3566")])
@pytest.mark.parametrize("scheme", [INT8_DYNAMIC, tflite.INT8_DYNAMIC])
def test_dot_products_take_fewer_instructions(without: str, with_dot: str, scheme: Scheme) -> None:
    plain, dot = (
        interpolate(table, linear_point(scheme, 1024, 1024, None, 16))
        for table in map(table_for, map(get_target, (without, with_dot)))
        if table is not None
    )
    assert plain is not None
    assert dot is not None
    assert dot.instructions < 0.6 * plain.instructions


def test_the_shipped_table_of_the_pi_4_holds_the_counts_of_its_layer() -> None:
    """1024×1024, batch 1, against counts of the layer itself: the table has no point there."""
    table = table_for(RPI4)
    assert table is not None
    for scheme, rank, counted in (
        (FP32, None, 453066),
        (INT8_DYNAMIC, None, 396700),
        (INT8_STATIC, 128, 145247),
        (FP32, 128, 121904),
        (tflite.FP32, None, 478271),
        (tflite.INT8_DYNAMIC, None, 358648),
        (tflite.INT8_DYNAMIC, 128, 95621),
        (tflite.INT8_STATIC, 128, 88865),
    ):
        found = interpolate(table, linear_point(scheme, 1024, 1024, rank, 1))
        assert found is not None
        assert found.instructions == pytest.approx(counted, rel=0.1)


def _at(*keys: str | int) -> Callable[[dict[str, Any], Any], None]:
    def put(content: dict[str, Any], value: Any) -> None:
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return put


COSTS_OF_FP32 = ("costs", "onnx", "fp32")


@pytest.mark.parametrize(
    ("put", "value", "message"),
    [
        (_at("schema_version"), 2, "schema version 2"),
        (_at("core"), "cortex\x1b[31m", "not printable"),
        (_at("emulator"), "", "empty"),
        (_at("caches"), ["l1d=1:1:1"], "1 caches"),
        (_at("caches", 1), "l1d=0:2:64", "is no l1d cache"),
        (_at("caches", 2), "l3=1048576:16:64", "is no l2 cache"),
        (_at("grid", "sides"), [16, 16, 512, 2048], "grid.sides"),
        (_at("grid", "sides"), [-16, 128, 512, 2048], "grid.sides"),
        (_at("grid", "ranks"), [], "grid.ranks"),
        (_at("grid", "batches"), list(range(1, 200)), "grid.batches"),
        (_at("grid", "batches"), [1, 4], "expected 160 counts"),
        (_at(*COSTS_OF_FP32, "instructions", 0), -1, "counts of 0 to"),
        (_at(*COSTS_OF_FP32, "instructions", 0), 10**14, "counts of 0 to"),
        (_at(*COSTS_OF_FP32, "instructions", 0), 1.5, "not a cost table"),
        (_at(*COSTS_OF_FP32, "instructions", 0), "NaN", "not a cost table"),
        (_at(*COSTS_OF_FP32, "instructions"), [1, 2, 3], "expected 240 counts"),
        (_at(*COSTS_OF_FP32, "misses"), {"L1d": []}, "misses of"),
        (_at(*COSTS_OF_FP32, "misses", "L9"), [1], "not a cost table"),
        (_at("costs", "onnx", "int8-static"), {"instructions": [], "misses": {}}, "the schemes are"),
        (_at("costs", "tf"), {}, "not a cost table"),
        (_at("costs", "tflite"), {}, "not of the same formats"),
        (_at("calls", "onnx", "misses", "L2"), -3, "counts of the call"),
        (_at("convolutions", "grid", "channels"), [16, 8], "grid.channels"),
        (_at("convolutions", "grid", "sides"), [7], "expected 27 counts"),
        (_at("convolutions", "costs", "onnx", "fp32", "instructions", 0), -1, "counts of 0 to"),
        (_at("convolutions", "costs", "tflite"), {}, "costs of"),
        (_at("convolutions", "held_out", "onnx", "fp32", "instructions", "points"), 0, "interpolation error"),
        (_at("held_out", "onnx", "fp32", "instructions", "p90"), -0.1, "interpolation error"),
        (_at("held_out", "onnx", "fp32", "instructions", "p90"), "inf", "interpolation error"),
        (_at("held_out", "onnx", "fp32", "instructions", "points"), 0, "interpolation error"),
        (_at("grid"), None, "not a cost table"),
    ],
)
def test_a_damaged_or_hostile_table_is_refused(
    put: Callable[[dict[str, Any], Any], None], value: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    save_table(TABLE, path)
    content = json.loads(path.read_text())
    put(content, value)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_table(path)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (5 << 20)])
def test_what_is_no_table_is_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(raw)
    with pytest.raises(InputError):
        load_table(path)
    with pytest.raises(InputError, match="cannot read"):
        load_table(tmp_path / "absent.json")
