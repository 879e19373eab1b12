"""The scheme of a file and its exceptions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.formats import CODED
from edgepack.plan.file_scheme import MIXED, base_scheme, exceptions, file_label
from edgepack.types import LayerPlan

FORMS = ("fp32", "int8-dynamic", "nbits4")


def layer(name: str, scheme: str | None, out: int = 4, inn: int = 6, rank: int | None = None) -> LayerPlan:
    return LayerPlan(name, out, inn, rank, 2, 0.0, "", scheme=scheme)


def test_the_scheme_of_most_weights_is_the_files() -> None:
    many_small = [layer("a", "fp32"), layer("b", "fp32"), layer("c", "int8-dynamic", 100, 100)]
    assert base_scheme(many_small) == "int8-dynamic"
    assert base_scheme([*many_small, layer("coded", CODED, 1000, 1000)]) == "int8-dynamic"
    assert base_scheme([layer("coded", CODED, 1000, 1000)]) == "fp32"
    assert base_scheme([layer("coded", CODED, 1000, 1000)], "int8-dynamic-range") == "int8-dynamic-range"
    assert base_scheme([layer("a", "fp32", 8, 8), layer("b", "int8-dynamic", 100, 100, rank=1)]) == "int8-dynamic"
    assert base_scheme([layer("a", "fp32", 20, 20), layer("b", "int8-dynamic", 100, 100, rank=1)]) == "fp32"


def test_equals_go_by_name_in_any_order() -> None:
    pair = [layer("a", "nbits4"), layer("b", "int8-dynamic")]
    assert base_scheme(pair) == base_scheme(pair[::-1]) == "int8-dynamic"


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("fp32", {"b": "int8-dynamic"}),
        ("int8-dynamic", {"a": "fp32"}),
        ("int8-dynamic+weights", {"a": "fp32"}),
        ("nbits4", {"a": "fp32", "b": "int8-dynamic"}),
    ],
)
def test_exceptions_are_what_differs_and_has_a_scheme(scheme: str, expected: dict[str, str]) -> None:
    assert exceptions([layer("a", "fp32"), layer("b", "int8-dynamic"), layer("c", None)], scheme) == expected


@pytest.mark.parametrize(
    ("schemes", "scheme", "expected"),
    [
        (("fp32", "fp32"), "fp32", "fp32"),
        (("fp32", None), "fp32+weights", "fp32+weights"),
        (("fp32", "nbits4"), "fp32", MIXED),
        (("int8-dynamic", "fp32"), "int8-dynamic+weights", f"{MIXED}+weights"),
        ((None, None), "int8-dynamic", "int8-dynamic"),
    ],
)
def test_what_people_read(schemes: tuple[str | None, ...], scheme: str, expected: str) -> None:
    assert file_label([layer(str(i), own) for i, own in enumerate(schemes)], scheme) == expected


@given(st.lists(st.tuples(st.sampled_from(FORMS), st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=6))
def test_the_scheme_and_its_exceptions_give_every_layer_its_own(drawn: list[tuple[str, int, int]]) -> None:
    layers = [layer(str(i), scheme, out, inn) for i, (scheme, out, inn) in enumerate(drawn)]
    scheme = base_scheme(layers)
    others = exceptions(layers, scheme)
    assert [others.get(one.layer, scheme) for one in layers] == [one.scheme for one in layers]
    assert scheme not in others.values()
    assert len(others) < len(layers)
    assert (file_label(layers, scheme) == MIXED) == (len({one.scheme for one in layers}) > 1)
