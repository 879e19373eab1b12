"""The order of trust: measured, emulated, data sheet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.registry import FORMATS
from edgepack.backends.schemes import DENSE_INT8, SCHEMES
from edgepack.cost.measure import device_fingerprint
from edgepack.cost.measured import Entry, MeasuredTable, fingerprint, save_measured
from edgepack.cost.model import EmulatedCosts
from edgepack.cost.roofline import Roofline
from edgepack.cost.select import cost_source, dense_int8, host_fingerprint
from edgepack.devices.local import LocalDevice
from edgepack.model.point import Point, linear_point
from edgepack.plan.candidates import rank_choices
from edgepack.targets.file import get_target
from edgepack.targets.target import Target

SHAPES = [(128, 784, 1), (10, 128, 1), (128, 784, 1)]
NEEDED = dense_int8("onnx", SHAPES)


def table(
    target: Target, points: list[Point], date: str = "2026-03-01T10:00:00+00:00", threads: int = 1
) -> MeasuredTable:
    mark = host_fingerprint() if target.name == "host" else fingerprint(target, {"onnx": f"onnxruntime {date}"})
    entries = {point: Entry(1e-6, 1e-8, 15) for point in points}
    return MeasuredTable(mark, target.name, 1, date, entries, {"onnx": Entry(1e-6, 1e-8, 15)})


def test_dense_int8_of_every_shape_is_asked_for_once() -> None:
    assert [linear_point(INT8_DYNAMIC, 128, 784, None, 1), linear_point(INT8_DYNAMIC, 10, 128, None, 1)] == NEEDED


def test_what_was_measured_is_trusted_first(tmp_path: Path) -> None:
    rpi4 = get_target("rpi4")
    assert isinstance(cost_source(rpi4, "onnx", NEEDED, root=tmp_path), EmulatedCosts)
    save_measured(table(rpi4, NEEDED[:1]), tmp_path)
    assert isinstance(cost_source(rpi4, "onnx", NEEDED, root=tmp_path), EmulatedCosts)  # it lacks a layer
    save_measured(table(rpi4, NEEDED), tmp_path)
    assert cost_source(rpi4, "onnx", NEEDED, root=tmp_path) == table(rpi4, NEEDED)
    later = table(rpi4, NEEDED, "2026-04-01T10:00:00+00:00")
    save_measured(later, tmp_path)
    assert cost_source(rpi4, "onnx", NEEDED, root=tmp_path) == later
    assert isinstance(cost_source(rpi4, "tflite", dense_int8("tflite", SHAPES), root=tmp_path), EmulatedCosts)
    assert isinstance(cost_source(rpi4, "onnx", NEEDED, threads=4, root=tmp_path), Roofline)  # counts know one thread
    redefined = replace(rpi4, isa=("neon", "dotprod"))
    assert isinstance(cost_source(redefined, "onnx", NEEDED, root=tmp_path), Roofline)


def test_without_seconds_the_counts_give_way_to_the_data_sheet(tmp_path: Path) -> None:
    rpi4 = get_target("rpi4")
    bare = replace(rpi4, clusters=(replace(rpi4.main_cluster, frequency_mhz=None),))
    assert isinstance(cost_source(bare, "onnx", NEEDED, root=tmp_path), Roofline)
    for name in ("beaglebone-black", "visionfive2", "pixel6a", "n100"):
        assert isinstance(cost_source(get_target(name), "onnx", NEEDED, root=tmp_path), Roofline)


def test_of_this_machine_only_what_was_measured_on_it_counts(tmp_path: Path) -> None:
    host = get_target("host")
    assert isinstance(cost_source(host, "onnx", NEEDED, root=tmp_path), Roofline)
    other = replace(table(host, NEEDED), fingerprint=replace(host_fingerprint(), cores=("2x other 1 MHz",)))
    save_measured(other, tmp_path)
    assert isinstance(cost_source(host, "onnx", NEEDED, root=tmp_path), Roofline)
    save_measured(table(host, NEEDED), tmp_path)
    assert cost_source(host, "onnx", NEEDED, root=tmp_path) == table(host, NEEDED)


def test_this_machine_has_one_fingerprint_by_either_way() -> None:
    assert device_fingerprint(LocalDevice().probe(imports=False)) == host_fingerprint()


@pytest.mark.parametrize("name", ["rpi4", "host"])
def test_a_large_model_is_priced_as_a_whole(name: str, tmp_path: Path) -> None:
    """200 layers of 60 candidates."""
    points = []
    for index in range(200):
        for rank in (None, *rank_choices(400 + index, 500)):
            for scheme in (FP32, INT8_DYNAMIC, INT8_STATIC):
                points.append(linear_point(scheme, 400 + index, 500, rank, 1))
    assert len(points) > 12000
    source = cost_source(get_target(name), "onnx", points[:1], root=tmp_path)
    assert None not in source.estimates(points)


def test_the_dense_int8_scheme_is_one_of_the_schemes() -> None:
    for fmt in FORMATS:
        (point,) = dense_int8(fmt, SHAPES[:1])
        assert point.format == fmt
        assert point.scheme in SCHEMES[fmt]
        assert point.scheme == DENSE_INT8[fmt][0]
        assert (point.scheme.bits, point.scheme.is_static) == (8, False)
