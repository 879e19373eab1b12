"""Measured latencies: what stands between the points, what is kept of a device, and what a stranger may not put in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC
from edgepack.backends.schemes import SCHEMES
from edgepack.cost.measured import (
    GRID_ERROR,
    STANDARD_CONV_GRID,
    STANDARD_GRID,
    Entry,
    Fingerprint,
    MeasuredTable,
    fingerprint,
    grid_corners,
    grid_points,
    known_measured,
    load_measured,
    measured_folder,
    measured_path,
    merged,
    save_measured,
    tables_of,
)
from edgepack.errors import InputError
from edgepack.model.point import Point, conv_point, linear_point
from edgepack.plan.candidates import break_even_rank
from edgepack.targets.file import get_target
from edgepack.workspace import default_root
from tests.linear_plans import point_like

MARK = Fingerprint("aarch64", ("4x cortex-a72 1500 MHz",), ("neon",), ("L1d=32768:2",), {"onnx": "onnxruntime 1.31"})
LAYER = linear_point(FP32, 300, 700, None, 1)


def seconds(point: Point) -> float:
    """Linear in each side, in the rank and in the batch."""
    return 1e-9 * (500 + point.batch * (point.weights + 3 * point.out_features))


def entry(point: Point, rounds: int = 15) -> Entry:
    return Entry(seconds(point), seconds(point) / 10, rounds)


def made(points: list[Point], **changes: Any) -> MeasuredTable:
    table = MeasuredTable(MARK, "rpi4", 1, "2026-03-01T10:00:00+00:00", {p: entry(p) for p in points})
    return replace(table, calls={"onnx": Entry(4e-6, 1e-7, 15)}, **changes)


RANKS = [point_like(LAYER, way=rank) for rank in (8, 16, 64, 200)]
TABLE = made([LAYER, *RANKS])
GRID = made(list(grid_points(STANDARD_GRID, FP32)))
CONVOLVED = made(list(STANDARD_CONV_GRID.points(FP32)))


def test_a_measured_point_is_answered_exactly() -> None:
    for point in (LAYER, *RANKS):
        (estimate,) = TABLE.estimates([point])
        assert estimate is not None
        assert (estimate.latency_s, estimate.extrapolated) == (seconds(point), False)
        assert estimate.source == "measured on 4x cortex-a72 1500 MHz"
        assert estimate.error_share == pytest.approx(1.25 / 1.35 * 0.1 / 15**0.5)
    assert TABLE.call_s("onnx") == 4e-6
    assert TABLE.call_s("tflite") == 0.0


@given(
    st.integers(8, 400), st.integers(8, 400), st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1), (7, 7), (5,)]),
    st.integers(49, 9000),
)  # fmt: skip
def test_convolutions_are_linear_between_the_points_of_their_grid_and_beyond(
    rows: int, columns: int, kernel: tuple[int, ...], places: int
) -> None:
    point = conv_point(FP32, rows, columns, kernel, places)
    price, lacking = CONVOLVED.estimates([point, replace(point, scheme=INT8_DYNAMIC)])
    assert lacking is None
    assert GRID.estimates([point]) == [None]
    assert price is not None
    assert price.latency_s == pytest.approx(seconds(point), rel=1e-9)
    taken = prod(kernel)
    inside = max(rows, columns) <= 128 and 49 <= places <= 3136 and (taken == 1 or 9 <= taken <= 25)
    assert price.extrapolated == (not inside)
    assert (price.error_share < GRID_ERROR) == (point in CONVOLVED.entries)


def test_convolutions_are_kept_beside_linear_layers(tmp_path: Path) -> None:
    points = [*STANDARD_CONV_GRID.points(FP32), conv_point(FP32, 24, 3, (5,), 100)]
    refused = {conv_point(FP32, 24, 3, (3, 1), 100): "no kernel"}
    table = save_measured(made([LAYER, *points], refused=refused), tmp_path)
    assert load_measured(measured_path("rpi4", MARK, 1, tmp_path)) == table == made([LAYER, *points], refused=refused)
    thin = conv_point(FP32, 3, 1, (3, 3), 49)
    (price,), (tile,) = table.estimates([thin]), table.estimates([conv_point(FP32, 8, 8, (3, 3), 49)])
    assert tile is not None
    assert price == replace(tile, error_share=GRID_ERROR), "a tile costs the same half empty as full"


@given(st.integers(8, 200))
def test_between_two_ranks_of_the_same_layer_it_is_linear(rank: int) -> None:
    point = point_like(LAYER, way=rank)
    (estimate,) = TABLE.estimates([point])
    assert estimate is not None
    assert estimate.latency_s == pytest.approx(seconds(point))


def test_what_was_not_measured_is_not_guessed() -> None:
    shapes = [point_like(LAYER, out_features=301), point_like(LAYER, batch=2), point_like(LAYER, scheme=INT8_DYNAMIC)]
    assert TABLE.estimates([*shapes, point_like(LAYER, way=201)]) == [None] * 4
    below, first = TABLE.estimates([point_like(LAYER, way=3), RANKS[0]])
    assert below is not None
    assert first is not None
    assert (below.latency_s, below.extrapolated) == (first.latency_s, True)  # a tile costs the same half empty
    refused = replace(TABLE, refused={point_like(LAYER, way=32): "no kernel"})
    assert refused.estimates([point_like(LAYER, way=32)]) == [None]


@st.composite
def inside(draw: st.DrawFn) -> Point:
    rows, columns = draw(st.integers(32, 2048)), draw(st.integers(32, 2048))
    most = min(break_even_rank(rows, columns), STANDARD_GRID.ranks[-1])
    rank = draw(st.none() | st.integers(8, most)) if most >= 8 else None
    return linear_point(FP32, rows, columns, rank, draw(st.integers(1, 32)))


@given(inside())
def test_the_standard_grid_answers_for_every_layer_that_it_encloses(point: Point) -> None:
    (estimate,) = GRID.estimates([point])
    assert estimate is not None
    assert estimate.latency_s == pytest.approx(seconds(point), rel=1e-6)
    # Between the ranks of a measured shape the error is small; between shapes it is that of the grid.
    assert (estimate.error_share < GRID_ERROR) == (point_like(point, way=None) in GRID.entries)


@given(inside())
def test_the_corners_enclose_the_point(point: Point) -> None:
    corners = grid_corners(STANDARD_GRID, point)
    assert sum(weight for weight, _ in corners) == pytest.approx(1)
    for side in ("out_features", "in_features", "batch"):
        assert sum(w * getattr(c, side) for w, c in corners) == pytest.approx(getattr(point, side))


def test_beyond_the_grid_and_in_a_gap_of_it_there_is_nothing() -> None:
    outside = [linear_point(FP32, *sides, None, batch) for *sides, batch in ((31, 99, 1), (99, 2049, 1), (99, 99, 33))]
    assert GRID.estimates(outside) == [None] * 3
    gap = {p: e for p, e in GRID.entries.items() if (p.out_features, p.in_features) != (512, 512)}
    assert replace(GRID, entries=gap).estimates([linear_point(FP32, 300, 300, None, 1)]) == [None]


def test_a_fingerprint_is_of_the_cpu_and_its_runtimes_alone() -> None:
    rpi4 = get_target("rpi4")
    mark = fingerprint(rpi4, {"onnx": "onnxruntime 1"})
    assert mark.cores == ("4x cortex-a72 1500 MHz",)
    assert mark.caches == ("L1d=32768:2 L1i=49152:3 L2=1048576:16",)
    assert mark.digest == fingerprint(replace(rpi4, ram_bytes=1, description="other"), {"onnx": "onnxruntime 1"}).digest
    faster = fingerprint(get_target("rpi4-1800mhz"), {"onnx": "onnxruntime 1"})
    assert len({mark.digest, faster.digest, fingerprint(rpi4, {"onnx": "onnxruntime 2"}).digest}) == 3


def test_tables_of_one_device_are_merged_and_more_rounds_win() -> None:
    quick = made([LAYER], entries={LAYER: Entry(1.0, 0.1, 5)}, refused={RANKS[0]: "no kernel", RANKS[1]: "no kernel"})
    both = merged(quick, made([RANKS[0]], entries={LAYER: Entry(2.0, 0.1, 15), RANKS[0]: entry(RANKS[0])}))
    assert both.entries[LAYER].seconds == 2.0
    assert both.refused == {RANKS[1]: "no kernel"}
    assert merged(both, quick).entries[LAYER].seconds == 2.0
    assert merged(both, replace(both, entries={LAYER: Entry(3.0, 0.1, 15)})).entries[LAYER].seconds == 3.0
    assert merged(None, quick) == quick


def test_what_is_saved_adds_up_in_the_file_of_the_device(tmp_path: Path) -> None:
    assert known_measured("rpi4", MARK, 1, tmp_path) is None
    save_measured(made([LAYER]), tmp_path)
    both = save_measured(made(RANKS, refused={point_like(LAYER, way=32): "no kernel"}), tmp_path)
    assert both.entries.keys() == {LAYER, *RANKS}
    assert known_measured("rpi4", MARK, 1, tmp_path) == both
    assert known_measured("rpi4", MARK, 2, tmp_path) is None
    assert known_measured("rpi4", replace(MARK, isa=("dotprod", "neon")), 1, tmp_path) is None
    assert [path.name for path in measured_folder("rpi4", tmp_path).iterdir()] == [f"{MARK.digest}.threads1.json"]
    assert measured_folder("rpi4") == default_root() / "measured" / "rpi4"


def test_tables_of_a_target_come_latest_first_and_damaged_ones_not_at_all(tmp_path: Path) -> None:
    later = replace(
        made([LAYER]), measured_at="2026-04-01T10:00:00+00:00", fingerprint=replace(MARK, caches=("L1d=1:1",))
    )
    save_measured(made([LAYER]), tmp_path)
    save_measured(later, tmp_path)
    (measured_folder("rpi4", tmp_path) / "damaged.threads1.json").write_text("{")
    assert tables_of("rpi4", 1, tmp_path) == [later, made([LAYER])]
    assert tables_of("rpi4", 4, tmp_path) == []
    path = measured_path("rpi4", MARK, 1, tmp_path)
    path.write_text("[]")
    assert known_measured("rpi4", MARK, 1, tmp_path) is None
    assert save_measured(made(RANKS), tmp_path) == made(RANKS)


def _at(*keys: str | int) -> Callable[[dict[str, Any], Any], None]:
    def put(content: dict[str, Any], value: Any) -> None:
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return put


@pytest.mark.parametrize(
    ("put", "value", "message"),
    [
        (_at("schema_version"), 9, "schema version 9"),
        (_at("schema_version"), 1, "schema version 1, expected 2"),
        (_at("target"), "rpi\x1b[31m", "not printable"),
        (_at("fingerprint", "cores"), ["x" * 300], "not printable"),
        (_at("fingerprint", "caches"), ["\n"], "caches that are not printable"),
        (_at("threads"), 0, "0 threads"),
        (_at("measured_at"), "yesterday", "no date"),
        (_at("calls"), {}, "entries and calls"),
        (_at("calls", "onnx", "seconds"), "NaN", "a latency that cannot be"),
        (_at("entries", 0, 0), "tf", "not a table of measured latencies"),
        (_at("entries", 0, 1), "int8-static", "a layer that cannot be"),
        (_at("entries", 0, 2), "thin", "a layer that cannot be"),
        (_at("entries", 0, 2), "low-rank", "a layer that cannot be"),
        (_at("entries", 0, 2), "constexpr", "a layer that cannot be"),
        (_at("entries", 1, 2), "dense", "a layer that cannot be"),
        (_at("entries", 1, 2), "low-rank-correction", "a layer that cannot be"),
        (_at("entries", 0, 2), None, "not a table of measured latencies"),
        (_at("entries", 0, 3), 0, "a layer that cannot be"),
        (_at("entries", 1, 5), 0, "a layer that cannot be"),
        (_at("entries", 0, 6), 10**9, "a layer that cannot be"),
        (_at("entries", 0, 7), 0.0, "a latency that cannot be"),
        (_at("entries", 0, 7), "inf", "a latency that cannot be"),
        (_at("entries", 0, 8), -1.0, "a latency that cannot be"),
        (_at("entries", 0, 9), 0, "a latency that cannot be"),
        (_at("entries", 0), [1, 2], "not a table of measured latencies"),
        (_at("refused", 0, 7), "", "a name or reason"),
        (_at("convolutions", 0, 1), "int8-static", "a convolution that cannot be"),
        (_at("convolutions", 0, 2), 0, "a convolution that cannot be"),
        (_at("convolutions", 0, 4), [], "a convolution that cannot be"),
        (_at("convolutions", 0, 4), [3, 10**9], "a convolution that cannot be"),
        (_at("convolutions", 0, 6), 0.0, "a latency that cannot be"),
    ],
)
def test_a_damaged_or_hostile_table_is_refused(
    put: Callable[[dict[str, Any], Any], None], value: Any, message: str, tmp_path: Path
) -> None:
    points = [LAYER, *RANKS, conv_point(FP32, 24, 3, (3, 3), 100)]
    save_measured(made(points, refused={point_like(LAYER, way=32): "no kernel"}), tmp_path)
    path = measured_path("rpi4", MARK, 1, tmp_path)
    content = json.loads(path.read_text())
    put(content, value)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_measured(path)


def test_the_grid_leaves_out_only_corners_of_cells_in_which_no_rank_pays() -> None:
    for schemes in SCHEMES.values():
        points = list(grid_points(STANDARD_GRID, schemes[0]))
        assert len(points) < STANDARD_GRID.size
        assert linear_point(schemes[0], 2048, 2048, 512, 1) in points
        assert linear_point(schemes[0], 32, 32, 512, 1) not in points
