"""Layers stored in code: what their operators mean, and what is known of their steps."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from edgepack.model.constexpr import (
    Writer,
    X,
    at_load,
    decoded_from,
    effective_weight,
    evaluate,
    is_decoded,
    listed,
    operand_sides,
    plain,
    stored_bytes,
    stored_numbers,
    unlisted,
    values,
    xxh32,
)
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def codebook() -> Replacement:
    w = Writer()
    codes = np.random.default_rng(1).integers(0, 16, 6 * 10).astype(np.uint8)
    index = w.step("cast", w.constant("codes", codes), to="int32")
    rows = w.step("gather", w.constant("book", normal(16, 4)), index, axis=0)
    return w.decoded(w.step("reshape", rows, shape=(12, 20)), normal(12))


def two_products() -> Replacement:
    w = Writer()
    small = w.step("matmul", w.step("reshape", X, shape=(-1, 5, 4)), w.constant("P", normal(4, 2)))
    w.step("matmul", w.step("reshape", small, shape=(-1, 10)), w.constant("A", normal(10, 12)))
    return w.direct(20, None)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_the_hash_is_xxh32(numbers: list[int], seed: int) -> None:
    wanted = [xxhash.xxh32_intdigest(number.to_bytes(4, "little"), seed) for number in numbers]
    np.testing.assert_array_equal(xxh32(np.array(numbers), seed), wanted)


def test_buckets_are_hashes_modulo_their_number() -> None:
    w = Writer()
    name = w.step("bucket", w.step("range", count=1000), seed=5, buckets=37)
    found = values(w.constants, w.steps)[name]
    assert found.dtype == np.int32
    wanted = [xxhash.xxh32_intdigest(i.to_bytes(4, "little"), 5) % 37 for i in range(1000)]
    np.testing.assert_array_equal(found, wanted)


@given(*(st.integers(1, most) for most in (4, 12, 5, 6)), st.integers(0, 5), st.integers(0, 5))
def test_conv1d_sums_over_windows(rows: int, length: int, filters: int, width: int, before: int, after: int) -> None:
    width = min(width, length + before + after)
    w = Writer()
    name = w.step("conv1d", w.step("pad", X, before=before, after=after), w.constant("f", normal(filters, width)))
    x = normal(rows, length, seed=2)
    found = values(w.constants, w.steps, x)[name]
    padded = np.pad(x, ((0, 0), (before, after)))
    wanted = [[np.correlate(row, f, "valid") for f in w.constants["f"]] for row in padded]
    np.testing.assert_allclose(found, np.moveaxis(np.array(wanted), 1, 2), rtol=1e-5, atol=1e-5)


def test_scatter_leaves_zeros_between() -> None:
    w = Writer()
    at = w.constant("at", np.array([4, 1], np.int32))
    name = w.step("scatter", at, w.constant("v", np.array([2, 3], np.float32)), size=6)
    np.testing.assert_array_equal(values(w.constants, w.steps)[name], [0, 3, 0, 0, 2, 0])


@pytest.mark.parametrize("made", [codebook, two_products])
def test_the_effective_weight_is_what_the_steps_come_to(made: Callable[[], Replacement]) -> None:
    part = made()
    x = normal(7, 20, seed=3)
    np.testing.assert_allclose(evaluate(part, x), x @ part.weight.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(effective_weight(part), part.weight)


def test_a_decoded_layer_is_one_product_with_its_own_matrix() -> None:
    part = codebook()
    assert is_decoded(part)
    assert len(at_load(part)) == len(part.program) - 1
    assert operand_sides(part) == ((12, 20),)
    assert stored_bytes(part) == 60 + 16 * 4 * 4
    assert stored_numbers(part) == 60 + 64


def test_a_direct_layer_is_not() -> None:
    part = two_products()
    assert not is_decoded(part)
    assert at_load(part) == frozenset()
    assert operand_sides(part) == ((2, 4), (10, 12))


def test_what_comes_of_a_constant() -> None:
    part = codebook()
    for name in ("codes", "book"):
        (found,) = decoded_from(part, name)
        np.testing.assert_array_equal(found, part.weight.T)
    (own,) = decoded_from(two_products(), "P")
    np.testing.assert_array_equal(own, normal(4, 2))


@pytest.mark.parametrize("made", [codebook, two_products])
def test_steps_survive_json(made: Callable[[], Replacement]) -> None:
    part = made()
    assert unlisted(json.loads(json.dumps(listed(part.program)))) == part.program


def test_another_weight_in_the_guise_of_code() -> None:
    part = plain(normal(3, 5), normal(3))
    np.testing.assert_array_equal(part.weight, normal(3, 5))
    assert is_decoded(part)


def test_mistakes_of_a_writer_are_told() -> None:
    w = Writer()
    w.constant("a", normal(2))
    with pytest.raises(ValueError, match="two constants called 'a'"):
        w.constant("a", normal(2))
    with pytest.raises(ValueError, match="two constants called 'x'"):
        w.constant(X, normal(2))
    with pytest.raises(ValueError, match="there is no operator 'magic'; there are cast, gather"):
        w.step("magic", "a")
