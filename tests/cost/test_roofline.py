"""The data sheet as a source: it answers for every target and scheme, and stays near what was counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, NBITS4, NBITS8
from edgepack.backends.registry import FORMATS
from edgepack.backends.schemes import SCHEMES, layer_schemes
from edgepack.backends.tflite import schemes as tflite
from edgepack.cost.emulated import table_for
from edgepack.cost.model import EmulatedCosts
from edgepack.cost.roofline import ERROR_SHARE, NAME, NOMINAL_NAME, roofline
from edgepack.model.point import linear_point
from edgepack.model.scheme import Scheme
from edgepack.targets.file import get_target, load_targets
from tests.linear_plans import point_like

RPI5 = roofline(get_target("rpi5"))
HOST = roofline(get_target("host"))
LOW = {("rk3566", "nbits8"): 0.1, ("rk3566", "nbits4"): 0.3, ("rk3566", "int4-dynamic-range"): 0.4}
"""ONNX Runtime has n-bit kernels for the dot products of wide cores alone, and LiteRT unpacks slower on narrow ones:
the data sheet of a Cortex-A55 promises more."""
EMULATED = ("rpi4", "rpi3b+", "rpi-zero2w", "rpi5", "rk3566")


def test_every_target_has_an_answer_for_every_scheme() -> None:
    targets = load_targets()
    assert len(targets) > 10
    for target in targets.values():
        source = roofline(target)
        for fmt in FORMATS:
            assert 1e-8 < source.call_s(fmt) < 1e-3
            for scheme in SCHEMES[fmt]:
                points = [
                    linear_point(scheme, *shape) for shape in ((512, 512, None, 1), (512, 512, 64, 1), (8, 8, None, 1))
                ]
                for estimate in source.estimates(points):
                    assert estimate is not None
                    assert 1e-8 < estimate.latency_s < 1.0
                    assert estimate.source == source.name


def test_the_name_says_where_constants_are_only_nominal() -> None:
    rpi4 = get_target("rpi4")
    assert roofline(rpi4).name == NAME
    assert roofline(get_target("host")).name == NOMINAL_NAME
    for absent in ("read", "frequency_mhz", "ipc"):
        bare = replace(rpi4, clusters=(replace(rpi4.main_cluster, **{absent: None}),))
        assert roofline(bare).name == NOMINAL_NAME
        assert roofline(bare).estimates([linear_point(FP32, 64, 64, None, 1)])[0] is not None


@given(
    st.sampled_from([scheme for fmt in FORMATS for scheme in SCHEMES[fmt]]),
    st.integers(1, 4096),
    st.integers(1, 4096),
    st.none() | st.integers(1, 512),
    st.integers(1, 64),
)
def test_a_larger_layer_costs_no_less(scheme: Scheme, rows: int, columns: int, rank: int | None, batch: int) -> None:
    point = linear_point(scheme, rows, columns, rank, batch)
    larger = [
        point_like(point, out_features=2 * rows),
        point_like(point, in_features=columns + 1),
        point_like(point, batch=65),
    ]
    larger += [point_like(point, way=rank + 8)] if rank is not None else []
    for source in (RPI5, HOST):
        assert all(source.latency_s(one) >= source.latency_s(point) for one in larger)


def test_without_dot_product_n_bit_schemes_of_onnx_are_many_times_slower() -> None:
    """Counted on a Cortex-A72: 16.3 M instructions for 1024x1024 in 8 bits, 0.4 M for dynamic int8."""

    def times(target: str, scheme: Scheme) -> float:
        source = roofline(get_target(target))
        dense = linear_point(INT8_DYNAMIC, 1024, 1024, None, 1)
        return source.latency_s(point_like(dense, scheme=scheme)) / source.latency_s(dense)

    for scheme in (NBITS8, NBITS4):
        assert times("rpi4", scheme) > 5
        assert times("rpi5", scheme) < 3


def test_int8_is_faster_than_float_and_a_small_rank_than_both() -> None:
    for target in load_targets().values():
        if target.arch in ("aarch64", "x86_64"):
            source = roofline(target)
            dense = linear_point(tflite.FP32, 1024, 1024, None, 1)
            latencies = [
                dense,
                point_like(dense, scheme=tflite.INT8_DYNAMIC),
                point_like(dense, scheme=tflite.INT8_DYNAMIC, way=64),
            ]
            fp32, int8, pair = (source.latency_s(point) for point in latencies)
            assert fp32 > int8 > pair


def test_weights_that_outgrow_the_caches_wait_for_memory() -> None:
    source = roofline(get_target("rpi4"))
    inside, outside = (linear_point(tflite.FP32, 1024, side, None, 1) for side in (128, 4096))
    bytes_s = [p.weights * p.scheme.bits / 8 / source.latency_s(p) for p in (inside, outside)]
    assert bytes_s[0] > bytes_s[1]
    assert bytes_s[1] == pytest.approx(4.05e9, rel=0.1)


def test_threads_share_the_work_but_not_the_memory() -> None:
    one, four = roofline(get_target("rpi4")), roofline(get_target("rpi4"), 4)
    compute, memory = (linear_point(FP32, side, side, None, batch) for side, batch in ((256, 16), (4096, 1)))
    assert one.latency_s(compute) / four.latency_s(compute) == pytest.approx(4)
    assert one.latency_s(memory) / four.latency_s(memory) < 1.2
    assert roofline(get_target("rpi4"), 64) == four


def test_it_usually_deviates_from_counts_by_no_more_than_it_says() -> None:
    deviations = []
    for name in EMULATED:
        target = get_target(name)
        table = table_for(target)
        assert table is not None
        for fmt, schemes in table.costs.items():
            for scheme in schemes:
                points = [
                    p
                    for p in table.grid.points(layer_schemes(fmt)[scheme])
                    if p.rank is None or p.rank * (p.out_features + p.in_features) < p.out_features * p.in_features
                ]
                counted = EmulatedCosts(table, target).estimates(points)
                guessed = roofline(target).estimates(points)
                own = [g.latency_s / c.latency_s for g, c in zip(guessed, counted, strict=True) if g and c]
                assert len(own) == len(points)
                assert LOW.get((name, scheme), 0.5) < np.median(own) < 2
                deviations += own
    assert np.median(np.abs(np.array(deviations) - 1)) < ERROR_SHARE
