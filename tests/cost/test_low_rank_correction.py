"""What a dense matrix with a pair beside it costs: as it was measured, else as much as both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, NBITS4, NBITS8, WEIGHTS8
from edgepack.cost.model import LatencyEstimate
from edgepack.cost.roofline import roofline
from edgepack.cost.select import estimates_of
from edgepack.model.kinds.matrix import linear_ops
from edgepack.model.point import Point, linear_point_in
from edgepack.model.scheme import FileScheme, Format, Scheme, scheme_of
from edgepack.model.structure import DENSE, Structure, low_rank, low_rank_correction
from edgepack.model.types import Candidate, LayerPlan
from edgepack.plan.candidates import CORRECTION_SHARE, base_scheme, correction_ranks, exceptions, file_label
from edgepack.plan.explain import kind, name, others, reason
from edgepack.targets.file import get_target
from tests.linear_plans import linear_candidate, linear_plan, point_like

CORRECTED = low_rank_correction(8)
POINT = linear_point_in(NBITS4, CORRECTED, (96, 160), 4)
MATRIX, PAIR = point_like(POINT, way=None), point_like(POINT, scheme=NBITS8, way=8)
SHEET = roofline(get_target("rpi4"))


class Table:
    """A source that has what it was given."""

    name = "table"

    def __init__(self, known: Mapping[Point, LatencyEstimate]) -> None:
        self.known, self.asked = known, 0

    def estimates(self, points: Sequence[Point]) -> list[LatencyEstimate | None]:
        self.asked += 1
        return [self.known.get(point) for point in points]

    def knows(self, scheme: Scheme) -> bool:
        return any(point.scheme == scheme for point in self.known)

    def call_s(self, fmt: Format) -> float:
        return 0.0


def test_measured_as_one_is_better_than_put_together() -> None:
    parts = {MATRIX: LatencyEstimate(3e-6, "table", 0.1), PAIR: LatencyEstimate(1e-6, "table", 0.2, extrapolated=True)}
    assert estimates_of(Table(parts), [POINT], SHEET) == [
        LatencyEstimate(pytest.approx(4e-6), "table", 0.2, extrapolated=True)
    ]
    own = LatencyEstimate(3.5e-6, "table", 0.05)
    table = Table({**parts, POINT: own})
    assert estimates_of(table, [PAIR, POINT], SHEET) == [parts[PAIR], own]
    assert table.asked == 1


@pytest.mark.parametrize("missing", [MATRIX, PAIR])
def test_without_one_half_there_is_no_price(missing: Point) -> None:
    parts = {point: LatencyEstimate(1e-6, "table", 0.0) for point in (MATRIX, PAIR) if point != missing}
    assert estimates_of(Table(parts), [POINT, MATRIX], SHEET) == [None, parts.get(MATRIX)]


TOY = replace(NBITS4, name="toy", bits=2, qmax=1, correction=None, estimated_like=FP32)


def test_a_scheme_that_a_source_does_not_know_is_priced_by_the_one_that_it_names() -> None:
    toy, alone, like = (replace(PAIR, scheme=one) for one in (TOY, replace(TOY, estimated_like=None), FP32))
    table = Table({like: LatencyEstimate(4e-6, "table", 0.1)})
    (own, estimated, nothing) = estimates_of(table, [like, toy, alone], SHEET)
    assert own == table.known[like]
    assert nothing is None
    times = SHEET.latency_s(toy) / SHEET.latency_s(like)
    assert times != 1
    assert estimated == LatencyEstimate(
        pytest.approx(4e-6 * times), "table, estimated from fp32", 0.3, extrapolated=True
    )
    assert estimates_of(Table({}), [toy], SHEET) == [None]


def test_what_cannot_be_run_is_not_estimated() -> None:
    toy, like = (replace(PAIR, scheme=one) for one in (TOY, FP32))
    other = replace(MATRIX, scheme=TOY)
    table = Table({like: LatencyEstimate(4e-6, "table", 0.1), other: LatencyEstimate(1e-6, "table", 0.1)})
    assert estimates_of(table, [toy], SHEET) == [None]


def test_an_estimated_half_is_named() -> None:
    point = replace(POINT, scheme=replace(TOY, correction=NBITS8))
    like = replace(MATRIX, scheme=FP32)
    (both,) = estimates_of(
        Table({like: LatencyEstimate(4e-6, "table", 0.1), PAIR: LatencyEstimate(1e-6, "table", 0.2)}), [point], SHEET
    )
    assert both is not None
    assert both.source == "table, estimated from fp32 and table"
    assert both.extrapolated


def test_the_roofline_puts_it_together() -> None:
    sheet = roofline(get_target("rpi4"))
    assert sheet.estimates([POINT]) == [None]
    (whole, dense, pair) = estimates_of(sheet, [POINT, MATRIX, PAIR], sheet)
    assert whole is not None
    assert dense is not None
    assert pair is not None
    assert whole.latency_s == pytest.approx(dense.latency_s + pair.latency_s)


def test_matrices_and_weights() -> None:
    assert matrices(NBITS4, CORRECTED) == ((NBITS8, 8, 160), (NBITS8, 96, 8), (NBITS4, 96, 160))
    assert matrices(NBITS8, low_rank(8)) == ((NBITS8, 8, 160), (NBITS8, 96, 8))
    assert matrices(NBITS4, low_rank(8)) == ((NBITS4, 8, 160), (NBITS4, 96, 8))
    assert matrices(FP32, DENSE) == ((FP32, 96, 160),)
    assert POINT.weights == plan().weight_parameters == 96 * 160 + 8 * (96 + 160)
    assert plan(None, 8).weight_parameters == 8 * (96 + 160)
    assert plan(None, None).weight_parameters == 96 * 160


def matrices(scheme: Scheme, structure: Structure) -> tuple[tuple[Scheme, int, int], ...]:
    """Scheme, outputs and inputs of every product of a layer of 96 outputs and 160 inputs."""
    return tuple((scheme_of(op, scheme), op.rows, op.columns) for op in linear_ops(96, 160, structure, 1))


@pytest.mark.parametrize(
    ("sides", "ranks"), [((384, 384), (8, 16, 32)), ((128, 128), (8, 16)), ((64, 64), (8,)), ((10, 512), ())]
)
def test_ranks_take_at_most_half_of_what_four_bits_save(sides: tuple[int, int], ranks: tuple[int, ...]) -> None:
    assert correction_ranks(*sides) == ranks
    assert all(rank * sum(sides) <= CORRECTION_SHARE * sides[0] * sides[1] for rank in ranks)


def plan(scheme: Scheme | None = NBITS4, way: int | Structure | None = CORRECTED, layer: str = "a") -> LayerPlan:
    return linear_plan(layer, 96, 160, way, 59, 0.0, "", scheme=scheme)


def test_no_file_is_named_after_it() -> None:
    """Its dense matrix has the scheme of the file; that its factors have another one shows in the label."""
    alone = (plan(),)
    assert base_scheme(alone, FP32) == NBITS4
    assert exceptions(alone, FileScheme.of(NBITS4)) == {}
    assert exceptions(alone, FileScheme.of(INT8_DYNAMIC)) == {"a": NBITS4}
    assert file_label(alone, FileScheme(NBITS4, WEIGHTS8)) == "mixed+int8-weights"
    assert base_scheme((plan(), plan(INT8_DYNAMIC, None, "b"), plan(INT8_DYNAMIC, None, "c")), FP32) == INT8_DYNAMIC


def candidate(scheme: Scheme, way: int | Structure | None, loss: float, size: int, latency: float) -> Candidate:
    return linear_candidate(scheme, way, loss, size, size, latency)


BOTH, INT8 = candidate(NBITS4, CORRECTED, 0.002, 120, 3e-6), candidate(INT8_DYNAMIC, None, 1e-4, 200, 2e-6)
INT4, THIN = candidate(NBITS4, None, 0.02, 100, 2.5e-6), candidate(NBITS8, 16, 0.5, 60, 1e-6)
MORE = candidate(NBITS4, low_rank_correction(16), 0.001, 140, 3.2e-6)


def test_it_is_a_kind_of_its_own_and_has_its_reason() -> None:
    every = [BOTH, INT8, INT4, THIN, MORE]
    assert [kind(one) for one in every] == [
        "low-rank correction",
        "dense int8",
        "dense int4",
        "low rank",
        "low-rank correction",
    ]
    assert name(BOTH) == "dense nbits4 + rank 8 nbits8"
    assert others(every, BOTH, 0.0) == (INT4, INT8, THIN)
    assert reason(every, MORE, 0.0) == (
        "dense nbits4 + rank 16 nbits8: 1.6× slower and 1.4× smaller than dense int8-dynamic; "
        "rank 8 would lose 2.0 times as much"
    )
    # What speaks against a pair is said of a pair in the layer's place.
    assert "rank 16 nbits8 would be" in reason(every, INT8, 0.01)
    assert "+" not in reason(every, INT8, 0.01)
