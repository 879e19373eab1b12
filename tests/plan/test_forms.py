"""The form of a file and its exceptions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.formats import CODED
from edgepack.plan.forms import MIXED, base_form, exceptions, file_form
from edgepack.types import LayerPlan

FORMS = ("fp32", "int8-dynamic", "nbits4")


def layer(name: str, form: str | None, out: int = 4, inn: int = 6, rank: int | None = None) -> LayerPlan:
    return LayerPlan(name, out, inn, rank, 2, 0.0, "", form=form)


def test_the_form_of_most_weights_is_the_files() -> None:
    many_small = [layer("a", "fp32"), layer("b", "fp32"), layer("c", "int8-dynamic", 100, 100)]
    assert base_form(many_small) == "int8-dynamic"
    assert base_form([*many_small, layer("coded", CODED, 1000, 1000)]) == "int8-dynamic"
    assert base_form([layer("coded", CODED, 1000, 1000)]) == "fp32"
    assert base_form([layer("coded", CODED, 1000, 1000)], "int8-dynamic-range") == "int8-dynamic-range"
    assert base_form([layer("a", "fp32", 8, 8), layer("b", "int8-dynamic", 100, 100, rank=1)]) == "int8-dynamic"
    assert base_form([layer("a", "fp32", 20, 20), layer("b", "int8-dynamic", 100, 100, rank=1)]) == "fp32"


def test_equals_go_by_name_in_any_order() -> None:
    pair = [layer("a", "nbits4"), layer("b", "int8-dynamic")]
    assert base_form(pair) == base_form(pair[::-1]) == "int8-dynamic"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("fp32", {"b": "int8-dynamic"}),
        ("int8-dynamic", {"a": "fp32"}),
        ("int8-dynamic+weights", {"a": "fp32"}),
        ("nbits4", {"a": "fp32", "b": "int8-dynamic"}),
    ],
)
def test_exceptions_are_what_differs_and_has_a_form(form: str, expected: dict[str, str]) -> None:
    assert exceptions([layer("a", "fp32"), layer("b", "int8-dynamic"), layer("c", None)], form) == expected


@pytest.mark.parametrize(
    ("forms", "form", "expected"),
    [
        (("fp32", "fp32"), "fp32", "fp32"),
        (("fp32", None), "fp32+weights", "fp32+weights"),
        (("fp32", "nbits4"), "fp32", MIXED),
        (("int8-dynamic", "fp32"), "int8-dynamic+weights", f"{MIXED}+weights"),
        ((None, None), "int8-dynamic", "int8-dynamic"),
    ],
)
def test_what_people_read(forms: tuple[str | None, ...], form: str, expected: str) -> None:
    assert file_form([layer(str(i), own) for i, own in enumerate(forms)], form) == expected


@given(st.lists(st.tuples(st.sampled_from(FORMS), st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=6))
def test_the_form_and_its_exceptions_give_every_layer_its_own(drawn: list[tuple[str, int, int]]) -> None:
    layers = [layer(str(i), form, out, inn) for i, (form, out, inn) in enumerate(drawn)]
    form = base_form(layers)
    others = exceptions(layers, form)
    assert [others.get(one.layer, form) for one in layers] == [one.form for one in layers]
    assert form not in others.values()
    assert len(others) < len(layers)
    assert (file_form(layers, form) == MIXED) == (len({one.form for one in layers}) > 1)
