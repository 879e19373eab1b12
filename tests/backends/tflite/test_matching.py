from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.backends.tflite.matching import Fold, Found, Wanted, fold, match, scaling, shifts_by_size
from edgepack.backends.tflite.read import TfliteLinear
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.layer import Layer
from edgepack.model.replacement import low_rank
from edgepack.model.types import Array


def operator(number: int, weight: Array, bias: Array | None = None) -> TfliteLinear:
    empty = np.zeros(0, np.float32)
    return TfliteLinear("FULLY_CONNECTED", f"op{number}", 0, number, weight, 32, empty, None, bias)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def names(found: dict[str, tuple[Found, ...]]) -> dict[str, list[str]]:
    return {name: [place.op.output for place in places] for name, places in found.items()}


scales = st.floats(0.05, 20).flatmap(lambda x: st.sampled_from([x, -x]))


@settings(max_examples=60)
@given(
    out=st.integers(2, 12),
    size=st.integers(2, 12),
    kind=st.sampled_from(["one", "rows", "columns", "both"]),
    one=scales,
    seed=st.integers(0, 2**32 - 1),
)
def test_scales_are_found_again(out: int, size: int, kind: str, one: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(out, size)).astype(np.float32)
    rows = one * np.exp(rng.normal(size=out)) if kind in ("rows", "both") else np.full(out, one)
    rows *= rng.choice([-1, 1], out) if kind == "both" else 1
    columns = np.exp(rng.normal(size=size)) if kind in ("columns", "both") else np.ones(size)
    have = (rows[:, None] * weight * columns).astype(np.float32)
    found = scaling(have, weight)
    if kind == "both" and min(out, size) < 3:
        return  # any matrix would fit
    assert found is not None
    np.testing.assert_allclose(found[0][:, None] * weight * found[1], have, atol=2e-4 * np.linalg.norm(have))
    if kind in ("one", "rows"):
        assert (found[1] == 1.0).all()
        np.testing.assert_allclose(found[0], rows, rtol=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_other_weights_are_no_scaled_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert scaling(rng.normal(size=(7, 5)), rng.normal(size=(7, 5))) is None
    assert scaling(np.zeros((7, 5)), rng.normal(size=(7, 5))) is None
    assert scaling(rng.normal(size=(7, 5)), np.zeros((7, 5))) is None


def test_equal_comes_before_scaled_and_scaled_before_order() -> None:
    a, b, c, d = (normal(seed, 6, 5) for seed in range(4))
    ops = [operator(0, 2 * a), operator(1, b), operator(2, a), operator(3, d), operator(4, normal(9, 4, 5))]
    found = match(ops, [Wanted("b", b), Wanted("a", a, uses=2), Wanted("c", c), Wanted("lost", normal(10, 3, 3))])
    assert names(found) == {"b": ["op1"], "a": ["op2", "op0"], "c": ["op3"]}
    assert [place.sure for place in (*found["a"], *found["c"])] == [True, True, False]
    np.testing.assert_allclose(found["a"][1].rows, 2.0)


def test_order_decides_only_where_the_numbers_agree() -> None:
    ops = [operator(number, normal(number, 6, 5)) for number in range(3)]
    two = [Wanted("x", normal(10, 6, 5)), Wanted("y", normal(11, 6, 5))]
    assert match(ops, two) == {}
    assert names(match(ops[:2], two)) == {"x": ["op0"], "y": ["op1"]}


def test_clones_share_out_in_order() -> None:
    weight = normal(0, 6, 5)
    ops = [operator(number, weight) for number in range(4)]
    found = match(ops, [Wanted("first", weight, uses=2), Wanted("second", weight)])
    assert names(found) == {"first": ["op0", "op1"], "second": ["op2", "op3"]}


def test_more_places_than_uses_all_belong_to_the_layer() -> None:
    weight = normal(0, 6, 5)
    ops = [operator(0, weight), operator(1, 3 * weight)]
    assert names(match(ops, [Wanted("layer", weight)])) == {"layer": ["op0", "op1"]}


GAIN, SHIFTS = 0.125, [normal(20, 8), normal(21, 8), normal(22, 7)]


def folded(layer: Layer, shift: Array, rows: Array, columns: Array) -> Fold | None:
    """Of what a converter makes of the layer behind `columns * x + shift` and before `rows * y`."""
    assert layer.bias is not None
    bias = (rows * (layer.bias + layer.weight @ shift)).astype(np.float32)
    have = (rows[:, None] * layer.weight * columns).astype(np.float32)
    (found,) = match([operator(0, have, bias)], [Wanted("layer", layer.weight)])["layer"]
    return fold(found, layer, shifts_by_size(SHIFTS))


CASES = {
    "plain": (np.zeros(8), np.ones(6), np.ones(8)),
    "gain": (np.zeros(8), np.full(6, GAIN), np.ones(8)),
    "rows": (np.zeros(8), np.linspace(0.5, 2, 6), np.ones(8)),
    "norm": (SHIFTS[1], np.ones(6), np.linspace(0.5, 2, 8)),
    "norm and gain": (SHIFTS[0], np.full(6, GAIN), np.linspace(0.5, 2, 8)),
    "shift alone": (SHIFTS[0], np.ones(6), np.ones(8)),
    "scale alone": (np.zeros(8), np.full(6, GAIN), np.linspace(0.5, 2, 8)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_folded_bias_follows_the_factors(name: str) -> None:
    shift, rows, columns = CASES[name]
    layer = linear_layer("layer", normal(0, 6, 8), normal(1, 6))
    made = folded(layer, shift, rows, columns)
    assert made is not None
    pair = low_rank(normal(2, 6, 3), normal(3, 3, 8), normal(4, 6))
    assert made.takes(layer, pair)
    got = made.bias(layer, pair)
    assert got is not None
    np.testing.assert_allclose(got, rows * (pair.bias + pair.A @ (pair.B @ shift)), rtol=1e-4, atol=1e-4)


def test_a_bias_that_nothing_explains_is_left_to_the_converter() -> None:
    layer = linear_layer("layer", normal(0, 6, 8), normal(1, 6))
    assert folded(layer, normal(30, 8), np.ones(6), np.ones(8)) is None
    assert folded(layer, SHIFTS[0], np.linspace(0.5, 2, 6), np.ones(8)) is None
    (found,) = match([operator(0, normal(5, 6, 8), normal(1, 6))], [Wanted("layer", layer.weight)])["layer"]
    assert fold(found, layer, {}) is None
