"""The range coder with its stored histogram: exact, close to the entropy, and deaf to noise."""

from __future__ import annotations

import numpy as np
import pytest
from containers import gaussian_codes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepack.transport import entropy
from edgepack.transport.codecs import CODECS, differences, planes, sums
from edgepack.transport.histogram import Histogram, fitted, from_bytes

symbols = hnp.arrays(np.uint8, st.integers(1, 300), elements=st.integers(0, 255))
few = hnp.arrays(np.uint8, st.integers(1, 300), elements=st.sampled_from([0, 3, 127, 128, 255]))


@given(symbols | few)
def test_symbols_come_back(data: np.ndarray) -> None:
    coded = entropy.encode(data)
    np.testing.assert_array_equal(np.concatenate(list(entropy.decode(coded, len(data)))), data)
    assert entropy.encode(data) == coded


@given(symbols | few)
def test_a_model_comes_back_and_gives_every_symbol_a_chance(data: np.ndarray) -> None:
    model = fitted(np.bincount(data, minlength=256))
    again, end = from_bytes(model.to_bytes() + b"xyz")
    assert end == len(model.to_bytes())
    np.testing.assert_array_equal(again.frequencies, model.frequencies)
    assert len(model.frequencies) == model.high - model.low + 1
    flipped = data ^ np.uint8(model.flip)
    assert model.low <= flipped.min()
    assert flipped.max() <= model.high
    assert model.frequencies.min() >= 1


@given(symbols | few, st.sampled_from(sorted(CODECS)), st.integers(1, 20))
def test_codecs_are_lossless(data: np.ndarray, codec: str, parameter: int) -> None:
    coded = CODECS[codec].encode(data, parameter)
    assert CODECS[codec].decode(coded, len(data), parameter) == data.tobytes()


@given(symbols, st.integers(1, 20))
def test_differences_and_sums_are_inverse(data: np.ndarray, row: int) -> None:
    np.testing.assert_array_equal(sums(differences(data, row), row), data)


def test_differences_start_anew_in_every_row() -> None:
    np.testing.assert_array_equal(differences(np.array([5, 7, 4, 9, 9, 250], np.uint8), 3), [5, 2, 253, 9, 0, 241])


def test_planes_keep_what_is_left_over() -> None:
    np.testing.assert_array_equal(planes(np.arange(9, dtype=np.uint8), 4), [0, 4, 1, 5, 2, 6, 3, 7, 8])


def entropy_bytes(data: np.ndarray) -> float:
    share = np.bincount(data, minlength=256) / len(data)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() * len(data) / 8)


@pytest.mark.parametrize("shape", [(24, 784), (512, 24), (10, 512), (256, 1024)])
@pytest.mark.parametrize("zero_point", [0, 128])
def test_weights_cost_their_entropy_and_little_more(shape: tuple[int, int], zero_point: int) -> None:
    data = gaussian_codes(*shape).view(np.uint8).reshape(-1) ^ np.uint8(zero_point)
    coded = len(entropy.encode(data))
    assert coded <= 1.004 * entropy_bytes(data) + 40, "the stored model is a few tens of bytes"
    assert coded == pytest.approx(entropy.cost_bytes(data), abs=8)


def test_sparse_weights_cost_their_entropy() -> None:
    rng = np.random.default_rng(5)
    data = np.where(rng.random(50_000) < 0.05, rng.integers(1, 16, 50_000), 0).astype(np.uint8)
    assert len(entropy.encode(data)) <= 1.01 * entropy_bytes(data)


def test_more_symbols_than_fit_into_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "CHUNK", 100)
    data = gaussian_codes(7, 99).view(np.uint8).reshape(-1)
    chunks = list(entropy.decode(entropy.encode(data), len(data)))
    assert [len(chunk) for chunk in chunks] == [100] * 6 + [93]
    np.testing.assert_array_equal(np.concatenate(chunks), data)


@given(st.binary(max_size=400), st.integers(0, 2000))
def test_noise_is_refused_or_decoded_to_something_of_the_right_length(data: bytes, count: int) -> None:
    try:
        found = list(entropy.decode(data, count))
    except ValueError:
        return
    assert sum(map(len, found)) == count


def test_interpolated_frequencies() -> None:
    model = Histogram(0, 10, 14, 2, np.array([1, 9, 4, 6], np.uint8))
    # Ends 1 and 9, between them 4, 5, 6, times the step, squared, and one.
    np.testing.assert_array_equal(model.frequencies, [5, 65, 101, 145, 325])
