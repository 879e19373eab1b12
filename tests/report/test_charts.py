"""Charts as values: what is on the Pareto front, where intervals end, what stands for a layer, how they are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.pack.manifest import PackedFile, parse_manifest
from edgepack.pipeline.inspect import LayerReport, ModelReport
from edgepack.report.latencies import SHARES, latency_charts
from edgepack.report.layer_charts import count_bars, layer_bars, miss_charts, spectrum_charts
from edgepack.report.render.svg import LARGEST, Scale, bars_svg, chart_svg, largest
from edgepack.report.report import Axis, Bars, Chart, Mark, Series
from edgepack.report.tradeoffs import pareto_front, plan_charts, tradeoff_charts
from tests.report import test_emulated as emulated
from tests.report.pages import compared, manifest, result

POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=20)


@given(POINTS, st.sampled_from(["accuracy", "mae"]))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]], metric: str) -> None:
    def better(a: float, b: float) -> bool:
        return a > b if metric == "accuracy" else a < b

    front = {(mark.x, mark.y) for mark in pareto_front([Mark(x, y) for x, y in points], metric)}
    wanted = {
        (x, y) for x, y in points
        if not any((a <= x and better(b, y)) or (a < x and (b == y or better(b, y))) for a, b in points)
    }  # fmt: skip
    assert front == wanted


def test_the_score_against_latency_and_size(tmp_path: Path) -> None:
    found = compared(tmp_path)
    latency, size = tradeoff_charts(found.rows, (), [source.facts for source in found.sources])
    assert [series.name for series in size.series] == [
        "packed", "dense int8", "dense fp32", "Pareto front", "tried plans",
    ]  # fmt: skip
    packed = latency.series[0].marks[0]
    assert (packed.y, packed.y_range) == (97.6, (pytest.approx(97.4), 97.6)), "0.2 is how much less it may be"
    assert packed.x_range is not None
    assert packed.x_range[0] <= packed.x <= packed.x_range[1]
    assert [mark.y for mark in size.series[-1].marks] == pytest.approx([97.0 + step / 10 for step in range(6)])
    assert not tuple(tradeoff_charts([], (), [])), "nothing is drawn of nothing"


def test_raw_latencies_rise_from_the_fastest() -> None:
    (chart,) = latency_charts(result("mlp"))
    assert [series.name for series in chart.series] == ["packed", "dense int8", "dense fp32"]
    for series in chart.series:
        assert [mark.y for mark in series.marks] == list(SHARES)
        assert [mark.x for mark in series.marks] == sorted(mark.x for mark in series.marks)
    assert chart.series[0].marks[0].x == 5e-6


def packed() -> tuple[Any, PackedFile]:
    found = parse_manifest(manifest("mlp"), Path("p"))
    return found, found.packed("onnx")


def test_layers_before_and_after() -> None:
    _, entry = packed()
    bars = {chart.title.partition(": ")[2]: chart for chart in layer_bars(entry, "model.onnx")}
    sizes = dict(bars["bytes of each layer"].series)
    assert sizes["dense fp32"][0] == 4 * 512 * 784
    assert (sizes["best dense"][0], sizes["written"][0]) == (402_000, 31_000)
    assert dict(bars["predicted latency of each layer"].series)["best dense"] == (19e-6, 19e-6)
    assert dict(bars["ranks"].series) == {"chosen": (24.0, None), "break-even": (309.0, 309.0)}


def test_misses_rise_with_the_rank() -> None:
    found, entry = packed()
    (chart,) = miss_charts(found, entry, "model.onnx")
    names = [rule.name for rule in chart.rules]
    assert names[:2] == ["rank 24, chosen", "309, break-even"]
    assert "L1d, 32K, is full" in names
    for series in chart.series:
        values = [mark.y for mark in series.marks]
        assert values == sorted(values)


def test_the_plans_of_a_build_and_what_it_wrote() -> None:
    found, _ = packed()
    size, latency = plan_charts(found)
    assert [(series.name, len(series.marks)) for series in size.series[:2]] == [("written", 1), ("tried plans", 6)]
    assert latency.x.key == "latency_s"


def test_counts_of_layers_side_by_side() -> None:
    instructions, misses = count_bars(emulated.rows())
    assert instructions.title == "mlp for board, onnx: instructions of each layer"
    by_name = {name: dict(zip(instructions.names, values, strict=True)) for name, values in instructions.series}
    assert by_name["packed"]["0.weight"] == 80_000
    assert by_name["dense int8"]["0.weight"] == 391_000
    assert by_name["dense int8"]["between 0.weight and 2.weight"] is None
    assert misses.axis.unit == "misses"


def test_singular_values_with_the_ranks_that_matter() -> None:
    layer = LayerReport("fc", "Gemm", 8, 8, 1, 1, 256, 1.0, 1.0, 3, 1, "weight", 2, 5)
    values = {"fc": ((1, 1.0), (2, 0.5), (8, 0.0))}
    (chart,) = spectrum_charts(ModelReport("m", 256, 256, "svd", False, (layer,), singular_values=values))
    assert [mark.x for mark in chart.series[0].marks] == [1, 2]
    assert [rule.x for rule in chart.rules] == [2, 5, 3, 1]


@given(st.floats(1e-9, 1e9), st.floats(1.0, 1e6), st.booleans(), st.sampled_from([2, 10]))
def test_ticks_lie_within_their_axis(low: float, times: float, log: bool, base: int) -> None:
    scale = Scale(low, low * times * 1.01, 0.0, 100.0, log)
    ticks = scale.ticks(base)
    assert 1 <= len(ticks) <= 7
    assert all(-1e-6 <= scale.at(tick) <= 100 + 1e-6 for tick in ticks)


def test_names_in_drawings_are_text() -> None:
    chart = Chart("<t>", Axis("x", "count", "<x>"), Axis("y", "count"), (Series("<s>", (Mark(1, 0, "<m>"),), "point"),))
    bars = Bars("<t>", Axis("x", "count"), ("<n>",), (("<s>", (1.0,)),))
    for drawing in (chart_svg(chart), bars_svg(bars)):
        assert "<t>" not in drawing
        assert "<x>" not in drawing
        assert "<n>" not in drawing
        assert "<m>" not in drawing
    assert chart_svg(Chart("t", Axis("x", "count"), Axis("y", "count"), ())) == ""


def test_of_many_things_the_largest_are_drawn() -> None:
    names = tuple(map(str, range(100)))
    bars = Bars("t", Axis("x", "count"), names, (("s", tuple(float(n % 50) for n in range(100))),))
    kept = largest(bars)
    assert len(kept.names) == LARGEST
    assert {int(name) % 50 for name in kept.names} == set(range(50 - LARGEST // 2, 50))
    assert list(kept.names) == sorted(kept.names, key=int)
