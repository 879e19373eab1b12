"""Latency estimates of a model's layers: where each stands, and what every way to write it costs on a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.backends.onnx import schemes as onnx
from edgepack.backends.schemes import TABULATED, scheme_named
from edgepack.backends.tflite import schemes as tflite
from edgepack.cost.measure import QUICK, measure_points
from edgepack.cost.measured import MeasuredTable, measured_folder
from edgepack.cost.model import LatencyEstimate
from edgepack.cost.roofline import roofline
from edgepack.data import Samples
from edgepack.errors import ModelError
from edgepack.model.kinds import kind_of
from edgepack.model.kinds.conv import ConvGeometry, conv_layer
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.model import Model
from edgepack.model.point import Point, is_convolution
from edgepack.model.scheme import Format, Scheme
from edgepack.model.structure import DENSE, Op, Structure, low_rank
from edgepack.natives.onnx import OnnxNative
from edgepack.pipeline import latency_estimates as estimating
from edgepack.pipeline.latency_estimates import LatencyEstimates, Uses, layer_uses, make_estimates
from edgepack.plan.candidates import rank_choices
from edgepack.sources import open_model
from edgepack.targets.file import get_target
from edgepack.workspace import Cache, Workspace
from tests.linear_plans import structure_at
from tests.pipeline.two_layers import ROWS, SIDE, write_model

RPI4 = get_target("rpi4")


def opened(folder: Path, *, shared: bool = False, rows: int | str = ROWS) -> Model:
    return open_model(str(write_model(folder / "two.onnx", shared=shared, rows=rows)), folder)


def workspace_in(folder: Path) -> Workspace:
    return Workspace(Cache(folder / "cache"), folder)


class Counted:
    """A source that counts what it is asked, and knows no static scheme."""

    name = "counted"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def estimates(self, points: list[Point]) -> list[LatencyEstimate | None]:
        self.asked.append(len(points))
        return [
            None
            if p.scheme.is_static or is_convolution(p)
            else LatencyEstimate(1e-6 * (p.rank or 1000) * p.batch, self.name, 0.1)
            for p in points
        ]

    def call_s(self, fmt: Format) -> float:
        return 3e-6


def test_rows_are_those_of_one_place(tmp_path: Path) -> None:
    model = opened(tmp_path, shared=True)
    (layer,) = model.layers
    assert layer_uses(model, None, 0) == {layer.name: Uses(2, ROWS)}
    both = opened(tmp_path)
    assert layer_uses(both, None, 0) == {layer.name: Uses(1, ROWS) for layer in both.layers}


def test_rows_of_a_dynamic_axis_are_those_of_the_samples(tmp_path: Path) -> None:
    model = opened(tmp_path, rows="n")
    samples = Samples({"x": np.zeros((4, 7, SIDE), np.float32)})
    assert set(layer_uses(model, samples, 0).values()) == {Uses(1, 7)}


def test_a_model_that_does_not_run_is_an_error_only_with_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(tmp_path)

    def fails(*args: object, **options: object) -> None:
        raise ModelError("it does not run")

    monkeypatch.setattr(OnnxNative, "observe", fails)
    assert set(layer_uses(model, None, 0).values()) == {Uses(1, 1)}
    with pytest.raises(ModelError, match="it does not run"):
        layer_uses(model, Samples({"x": np.zeros((4, ROWS, SIDE), np.float32)}), 0)


def test_a_price_is_of_all_places_together_and_the_source_is_asked_once_a_scheme() -> None:
    source = Counted()
    sides = {"a": (64, 96), "b": (128, 128), "idle": (9, 9)}
    layers = {name: linear_layer(name, np.zeros(own, np.float32), None) for name, own in sides.items()}
    estimates = LatencyEstimates(
        {"onnx": source}, roofline(get_target("rpi4")), {"a": Uses(2, 3), "b": Uses(1, 1)}, layers
    )
    for rank in (None, *rank_choices(64, 96)):
        estimate = estimates.estimate("a", structure_at(rank), onnx.FP32)
        assert estimate is not None
        assert estimate.latency_s == pytest.approx(2 * 3e-6 * (rank or 1000))
        assert (estimate.source, estimate.error_share) == ("counted", 0.1)
    assert estimates.estimate("b", low_rank(16), onnx.FP32) == LatencyEstimate(pytest.approx(16e-6), "counted", 0.1)
    assert source.asked == [2 + len(rank_choices(64, 96)) + len(rank_choices(128, 128))]
    assert estimates.estimate("b", low_rank(13), onnx.FP32) == LatencyEstimate(pytest.approx(13e-6), "counted", 0.1)
    assert source.asked[1:] == [1]
    assert estimates.estimate("a", low_rank(8), onnx.INT8_STATIC) is None
    assert estimates.estimate("idle", low_rank(8), onnx.INT8_STATIC) == LatencyEstimate(0.0, "counted", 0.0)
    assert estimates.dense_latency_s(onnx.FP32) == pytest.approx(2 * 3e-3 + 1e-3)
    assert estimates.dense_latency_s(onnx.INT8_STATIC) is None
    assert (estimates.call_s("onnx"), estimates.source_name("onnx")) == (3e-6, "counted")


class OnlyItsSides(Counted):
    """A source with figures of layers of 32 outputs and 288 inputs alone, at a nanosecond per weight and vector."""

    def estimates(self, points: list[Point]) -> list[LatencyEstimate | None]:
        own = ((p.out_features, p.in_features) == (32, 288) for p in points)
        return [
            LatencyEstimate(1e-9 * sum(op.macs for op in p.ops), self.name, 0.1) if known else None
            for p, known in zip(points, own, strict=True)
        ]


def test_kernels_taken_apart_cost_what_their_products_cost() -> None:
    geometry = ConvGeometry("Conv", (3, 3), (2, 1), (1, 1), (1, 1, 1, 1))
    layers = {"c": conv_layer("c", np.zeros((32, 32, 3, 3), np.float32), None, geometry)}
    sheet, uses = roofline(RPI4), {"c": Uses(2, 50)}
    structure = Structure("tucker-2", (16, 24))
    ops = kind_of(layers["c"]).ops(layers["c"], structure, 50)
    assert [op.vectors for op in ops] == [100, 50, 50]
    laid_out = LatencyEstimates({"onnx": Counted()}, sheet, uses, layers)._copying_s("onnx", ops)
    found = LatencyEstimates({"onnx": Counted()}, sheet, uses, layers).estimate("c", structure, onnx.FP32)
    assert found == LatencyEstimate(pytest.approx(2 * (1e-3 * (100 + 50 + 50) + laid_out)), "counted", 0.1)
    estimated = LatencyEstimates({"onnx": OnlyItsSides()}, sheet, uses, layers).estimate("c", structure, onnx.FP32)
    assert estimated is not None
    assert estimated.latency_s == pytest.approx(2 * (1e-9 * sum(op.macs for op in ops) + laid_out))
    assert (estimated.source, estimated.extrapolated) == ("counted, estimated from multiplications", True)
    assert estimated.error_share > 0.1
    small = Structure("tucker-2", (1, 1))
    least = LatencyEstimates({"onnx": OnlyItsSides()}, sheet, uses, layers).estimate("c", small, onnx.FP32)
    assert least is not None
    assert least.latency_s > 2e-9 * 8 * (32 + 288) * 50, "never less than the thinnest factors that are known"


class Convolved(Counted):
    """A source with figures of convolutions in float32 alone, at a nanosecond per multiplication; any other layer takes
    far more."""

    def estimates(self, points: list[Point]) -> list[LatencyEstimate | None]:
        return [
            (LatencyEstimate(1e-9 * p.ops[0].macs, self.name, 0.1) if p.scheme == onnx.FP32 else None)
            if is_convolution(p)
            else LatencyEstimate(1.0, self.name, 0.1)
            for p in points
        ]

    def knows(self, scheme: Scheme) -> bool:
        return scheme != onnx.WEIGHTS8


def test_what_stands_in_the_place_of_a_convolution_is_priced_as_convolutions() -> None:
    geometry = ConvGeometry("Conv", (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    layers = {
        "c": conv_layer("c", np.zeros((32, 16, 3, 3), np.float32), None, geometry),
        "p": linear_layer("p", np.zeros((48, 32), np.float32), None, "Conv"),
        "g": linear_layer("g", np.zeros((48, 32), np.float32), None, "Gemm"),
    }
    estimates = LatencyEstimates({"onnx": Convolved()}, roofline(RPI4), {name: Uses(1, 50) for name in layers}, layers)
    for name, structure in (
        ("c", DENSE), ("c", low_rank(8)), ("c", Structure("spatial-svd", (8,))), ("c", Structure("tucker-2", (8, 8))),
        ("p", DENSE), ("p", low_rank(8)),
    ):  # fmt: skip
        macs = sum(op.macs for op in kind_of(layers[name]).ops(layers[name], structure, 50))
        for scheme in (onnx.FP32, onnx.WEIGHTS8):
            found = estimates.estimate(name, structure, scheme)
            assert found is not None
            assert found.latency_s == pytest.approx(1e-9 * macs)
        assert estimates.estimate(name, structure, onnx.INT8_DYNAMIC) is not None
    gemm, flat = estimates.estimate("g", DENSE, onnx.FP32), estimates.estimate("c", DENSE, onnx.INT8_DYNAMIC)
    assert gemm is not None
    assert flat is not None
    assert gemm.latency_s == 1.0, "a linear layer of its own"
    assert flat.latency_s == pytest.approx(
        1 + estimates._copying_s("onnx", kind_of(layers["c"]).ops(layers["c"], DENSE, 50))
    )
    other = Op("weight", "conv", 24, 8, 50, (5, 5))
    alone = Op("weight", "conv", 1, 1, 50 * 8, (3, 3))
    assert estimates.convolutions_s("onnx", [other]) == pytest.approx(1e-9 * other.macs)
    assert estimates.convolutions_s("onnx", [alone]) > 1.0, "every channel by itself"


def test_a_target_elsewhere_is_priced_by_its_counts_in_every_scheme(tmp_path: Path) -> None:
    model = opened(tmp_path)
    estimates = make_estimates(RPI4, model, None, ("onnx", "tflite"), workspace_in(tmp_path))
    assert estimates.source_name("onnx") == estimates.source_name("tflite") == "emulated cost table"
    name = model.layers[0].name
    dense, pair = estimates.estimate(name, DENSE, onnx.FP32), estimates.estimate(name, low_rank(8), onnx.FP32)
    assert dense is not None
    assert pair is not None
    assert 0 < pair.latency_s < dense.latency_s
    for scheme in (*onnx.SCHEMES, *tflite.SCHEMES):
        assert estimates.estimate(name, DENSE, scheme) is not None
    like = estimates.estimate(name, DENSE, scheme_named("onnx", "int8-weights"))
    assert like is not None
    assert (like.latency_s, like.extrapolated, dense.extrapolated) == (dense.latency_s, True, False)
    assert estimates.call_s("onnx") > 0


def test_this_machine_is_measured_at_the_layers_of_the_model_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, workspace, asked = opened(tmp_path), workspace_in(tmp_path), measured_quickly(monkeypatch)
    host = get_target("host")
    formats: tuple[Format, ...] = ("onnx",)
    estimates = make_estimates(host, model, None, formats, workspace)
    assert estimates.source_name("onnx").startswith("measured on ")
    name = model.layers[0].name
    for scheme in onnx.SCHEMES:
        for rank in (None, *rank_choices(SIDE, SIDE)):
            assert estimates.estimate(name, structure_at(rank), scheme) is not None
    (kept,) = measured_folder("host", workspace.cache.root).iterdir()
    before = kept.read_bytes()
    again = make_estimates(host, model, None, formats, workspace)
    assert kept.read_bytes() == before
    assert again.estimate(name, low_rank(8), onnx.FP32) == estimates.estimate(name, low_rank(8), onnx.FP32)
    assert [fresh for _, fresh in asked] == [False, False]


def test_this_machine_is_measured_at_the_ranks_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = opened(tmp_path), measured_quickly(monkeypatch)
    name = model.layers[0].name
    ways = {name: (low_rank(24),)}
    estimates = make_estimates(get_target("host"), model, None, ("onnx",), workspace_in(tmp_path), structures=ways)
    ((points, _),) = asked
    assert {point.rank for point in points} == {None, 24}
    assert len(points) == 2 * len(TABULATED["onnx"])
    for scheme in TABULATED["onnx"]:
        estimate = estimates.estimate(name, low_rank(24), scheme)
        assert estimate is not None
        assert not estimate.extrapolated
        assert estimates.estimate(name, DENSE, scheme) is not None


def measured_quickly(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[Point], bool]]:
    """Few rounds suffice; gives the points of each measurement, and whether it was to be a fresh one."""
    asked: list[tuple[Sequence[Point], bool]] = []

    def quickly(device: Any, target: Any, points: Sequence[Point], **options: Any) -> MeasuredTable:
        asked.append((points, options["cache"].fresh))
        return measure_points(device, target, points, **options, turns=QUICK)

    monkeypatch.setattr(estimating, "measure_points", quickly)
    return asked
