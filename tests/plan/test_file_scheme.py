"""The scheme of a file and its exceptions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.backends.onnx.schemes import CONSTEXPR, FP32, INT8_DYNAMIC, NBITS4, TABLES4, WEIGHTS8
from edgepack.backends.tflite import schemes as tflite
from edgepack.model.scheme import MIXED, FileScheme, Scheme
from edgepack.model.types import LayerPlan
from edgepack.plan.candidates import base_scheme, exceptions, file_label
from tests.linear_plans import linear_plan

SCHEMES = (FP32, INT8_DYNAMIC, NBITS4)


def layer(name: str, scheme: Scheme | None, out: int = 4, inn: int = 6, rank: int | None = None) -> LayerPlan:
    return linear_plan(name, out, inn, rank, 2, 0.0, "", scheme=scheme)


def test_the_scheme_of_most_weights_is_the_files() -> None:
    many_small = [layer("a", FP32), layer("b", FP32), layer("c", INT8_DYNAMIC, 100, 100)]
    assert base_scheme(many_small, FP32) == INT8_DYNAMIC
    assert base_scheme([*many_small, layer("code", CONSTEXPR, 1000, 1000)], FP32) == INT8_DYNAMIC
    assert base_scheme([layer("code", CONSTEXPR, 1000, 1000)], FP32) == FP32
    assert base_scheme([layer("code", tflite.CONSTEXPR, 1000, 1000)], tflite.INT8_DYNAMIC) == tflite.INT8_DYNAMIC
    pair = layer("b", INT8_DYNAMIC, 100, 100, rank=1)
    assert base_scheme([layer("a", FP32, 8, 8), pair], FP32) == INT8_DYNAMIC
    assert base_scheme([layer("a", FP32, 20, 20), pair], INT8_DYNAMIC) == FP32


def test_equals_go_by_name_in_any_order() -> None:
    pair = [layer("a", NBITS4), layer("b", INT8_DYNAMIC)]
    assert base_scheme(pair, FP32) == base_scheme(pair[::-1], FP32) == INT8_DYNAMIC


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (FileScheme.of(FP32), {"b": INT8_DYNAMIC}),
        (FileScheme.of(INT8_DYNAMIC), {"a": FP32}),
        (FileScheme(INT8_DYNAMIC, WEIGHTS8), {"a": FP32}),
        (FileScheme.of(NBITS4), {"a": FP32, "b": INT8_DYNAMIC}),
    ],
)
def test_exceptions_are_what_differs_and_has_a_scheme(scheme: FileScheme, expected: dict[str, Scheme]) -> None:
    assert exceptions([layer("a", FP32), layer("b", INT8_DYNAMIC), layer("c", None)], scheme) == expected


@pytest.mark.parametrize(
    ("schemes", "scheme", "expected"),
    [
        ((FP32, FP32), FileScheme.of(FP32), "fp32"),
        ((FP32, None), FileScheme(FP32, WEIGHTS8), "fp32+int8-weights"),
        ((FP32, NBITS4), FileScheme.of(FP32), "mixed"),
        ((INT8_DYNAMIC, FP32), FileScheme(INT8_DYNAMIC, WEIGHTS8), "mixed+int8-weights"),
        ((INT8_DYNAMIC, FP32), FileScheme(INT8_DYNAMIC, WEIGHTS8, (("table", TABLES4),)), "mixed+tables4"),
        ((None, None), FileScheme.of(INT8_DYNAMIC), "int8-dynamic"),
        ((), FileScheme(NBITS4, WEIGHTS8), "nbits4+int8-weights"),
    ],
)
def test_what_people_read(schemes: tuple[Scheme | None, ...], scheme: FileScheme, expected: str) -> None:
    assert file_label([layer(str(i), own) for i, own in enumerate(schemes)], scheme) == expected


@given(st.lists(st.tuples(st.sampled_from(SCHEMES), st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=6))
def test_the_scheme_and_its_exceptions_give_every_layer_its_own(drawn: list[tuple[Scheme, int, int]]) -> None:
    layers = [layer(str(i), scheme, out, inn) for i, (scheme, out, inn) in enumerate(drawn)]
    scheme = base_scheme(layers, FP32)
    others = exceptions(layers, FileScheme.of(scheme))
    assert [others.get(one.layer, scheme) for one in layers] == [one.scheme for one in layers]
    assert scheme not in others.values()
    assert len(others) < len(layers)
    assert (file_label(layers, FileScheme.of(scheme)) == MIXED) == (len({one.scheme for one in layers}) > 1)
