"""Replacement as they are written: on the grids of their scheme, and better there than rounded one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.onnx import schemes as onnx
from edgepack.backends.tflite import schemes as tflite
from edgepack.factorize import two_sided, whitened
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.replacement import low_rank as pair_of
from edgepack.model.scheme import Scheme
from edgepack.model.structure import low_rank
from edgepack.model.types import Array, InputSpread, Moments, Spectrum
from edgepack.pipeline.rounding import Rounder
from edgepack.quantize.error_breakdown import dense_share
from edgepack.quantize.gptq import round_to_nearest
from edgepack.quantize.grids import dequantize_blocks, grid_of, has_one_scale, quantize_blocks, quantize_matrix
from edgepack.quantize.rotation import balanced
from edgepack.workspace import Cache, Workspace

OUT, IN, RANK = 48, 96, 16
SCHEMES = [
    onnx.INT8_DYNAMIC,
    onnx.INT8_STATIC,
    onnx.NBITS8,
    onnx.NBITS4,
    tflite.INT8_STATIC,
    tflite.INT4_DYNAMIC,
]


@pytest.fixture(scope="module")
def seen() -> tuple[View, Moments, Spectrum]:
    """A layer, its inputs' moments and its spectrum."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2000, IN)) @ (rng.standard_normal((IN, IN)) * np.geomspace(1, 0.05, IN)) + 0.3
    weight = rng.standard_normal((OUT, IN)).astype(np.float32)
    moments = Moments(len(x), x.mean(axis=0), x.T @ x / len(x), float(x.min()), float(x.max()), float(np.ptp(x)))
    layer = View("layer", weight, np.ones(OUT, np.float32), moments)
    spectrum = whitened.spectrum(layer)
    inputs = InputSpread(moments.variance, moments.low, moments.high, moments.row_range)
    return layer, moments, Spectrum(spectrum.basis, spectrum.energies, spectrum.mean, inputs)


class Known:
    """Moments that are there already; counts how often it is asked."""

    key = "key"

    def __init__(self, moments: Moments | None) -> None:
        self.moments, self.asked = moments, 0

    def of(self, name: str) -> Moments | None:
        self.asked += 1
        return self.moments


def rounder(folder: Path, known: Known, qmax: int = 127) -> Rounder:
    return Rounder(known, "whitened", qmax, {}, Workspace(Cache(folder), folder))


def error(layer: View, pair: Replacement, covariance: Array) -> float:
    delta = layer.weight.astype(np.float64) - pair.A.astype(np.float64) @ pair.B.astype(np.float64)
    return float(((delta @ covariance) * delta).sum())


def nearest(weight: Array, scheme: Scheme) -> Array:
    """What a file of the scheme holds of a weight."""
    if scheme.granularity == "block":
        codes, scales = quantize_blocks(weight, scheme.bits)
        return dequantize_blocks(codes, scales, weight.shape[1])
    codes, scales = quantize_matrix(weight, qmax=7 if scheme.bits == 4 else 127)
    return np.asarray(codes * scales.reshape(-1, 1), np.float32)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_quantizer_leaves_them_as_they_are(
    scheme: Scheme, seen: tuple[View, Moments, Spectrum], tmp_path: Path
) -> None:
    layer, moments, spectrum = seen
    pair = rounder(tmp_path, Known(moments)).factors(layer, spectrum, low_rank(RANK), scheme)
    for weight in (pair.A, pair.B):
        np.testing.assert_array_equal(nearest(weight, scheme), weight)


@pytest.mark.parametrize("scheme", [onnx.INT8_DYNAMIC, onnx.INT8_STATIC, tflite.INT8_STATIC], ids=str)
def test_one_scale_is_enough_for_a_factor(scheme: Scheme, seen: tuple[View, Moments, Spectrum], tmp_path: Path) -> None:
    layer, moments, spectrum = seen
    pair = rounder(tmp_path, Known(moments)).factors(layer, spectrum, low_rank(RANK), scheme)
    for factor in (pair.A, pair.B):
        assert has_one_scale(factor, qmax=127)
    exact = whitened.factors(layer, spectrum, RANK)
    covariance = shrunk_covariance(moments)
    assert error(layer, pair, covariance) < 1.01 * error(layer, exact, covariance)


def test_outputs_that_differ_keep_scales_of_their_own(seen: tuple[View, Moments, Spectrum], tmp_path: Path) -> None:
    """A large output must not take the levels of all others, as large as their share of the loss may be."""
    layer, moments, _ = seen
    weight = layer.weight.copy()
    weight[0] *= 1000
    layer = replace(layer, weight=weight)
    gradient = np.diag(np.where(np.arange(OUT) == 0, 1e-6, 1.0))
    ready = replace(rounder(tmp_path, Known(moments)), gradients={layer.name: gradient}, method="two-sided")
    inputs = InputSpread(moments.variance, moments.low, moments.high, moments.row_range)
    spectrum = replace(two_sided.spectrum(layer, gradient), inputs=inputs)
    pair = ready.factors(layer, spectrum, low_rank(RANK), onnx.INT8_DYNAMIC)
    assert not has_one_scale(pair.A, qmax=127)
    assert has_one_scale(pair.B, qmax=127)


@pytest.mark.parametrize("scheme", [onnx.INT8_DYNAMIC, tflite.INT4_DYNAMIC, onnx.NBITS4], ids=str)
def test_together_they_lose_less_than_one_by_one(
    scheme: Scheme, seen: tuple[View, Moments, Spectrum], tmp_path: Path
) -> None:
    layer, moments, spectrum = seen
    covariance = shrunk_covariance(moments)
    exact = whitened.factors(layer, spectrum, RANK)
    plain = balanced(exact, spectrum, seed=0)
    plain = pair_of(nearest(plain.A, scheme), nearest(plain.B, scheme), None)
    pair = rounder(tmp_path, Known(moments)).factors(layer, spectrum, low_rank(RANK), scheme)
    truncation = error(layer, exact, covariance)
    assert error(layer, pair, covariance) - truncation < 0.7 * (error(layer, plain, covariance) - truncation)


def test_the_mean_answer_is_that_of_the_dense_layer(seen: tuple[View, Moments, Spectrum], tmp_path: Path) -> None:
    layer, moments, spectrum = seen
    pair = rounder(tmp_path, Known(moments)).factors(layer, spectrum, low_rank(RANK), tflite.INT4_DYNAMIC)
    assert pair.bias is not None
    assert layer.bias is not None
    expected = layer.weight @ moments.mean + layer.bias
    np.testing.assert_allclose(pair.A @ (pair.B @ moments.mean) + pair.bias, expected, rtol=1e-4, atol=1e-4)


def test_they_are_made_once(seen: tuple[View, Moments, Spectrum], tmp_path: Path) -> None:
    layer, moments, spectrum = seen
    covariances = Known(moments)
    first = rounder(tmp_path, covariances).factors(layer, spectrum, low_rank(RANK), onnx.INT8_DYNAMIC)
    again = rounder(tmp_path, covariances).factors(layer, spectrum, low_rank(RANK), onnx.INT8_DYNAMIC)
    assert covariances.asked == 1
    np.testing.assert_array_equal(first.A, again.A)
    rounder(tmp_path, covariances, 63).factors(layer, spectrum, low_rank(RANK), onnx.INT8_DYNAMIC)
    assert covariances.asked == 2


def test_fp32_and_layers_never_seen_stay_as_the_factorizer_made_them(
    seen: tuple[View, Moments, Spectrum], tmp_path: Path
) -> None:
    layer, _, spectrum = seen
    covariances = Known(None)
    plain = balanced(whitened.factors(layer, spectrum, RANK), spectrum, seed=0)
    pair = rounder(tmp_path, covariances).factors(layer, spectrum, low_rank(RANK), onnx.FP32)
    np.testing.assert_array_equal(pair.A, plain.A)
    assert covariances.asked == 0


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_dense_layer_loses_less_than_rounded_to_nearest_and_stays_as_it_is(
    scheme: Scheme, seen: tuple[View, Moments, Spectrum], tmp_path: Path
) -> None:
    layer, moments, _ = seen
    made = rounder(tmp_path, Known(moments)).dense(layer, scheme)
    assert made is not None
    np.testing.assert_array_equal(nearest(made.weight, scheme), made.weight)
    shares = [
        dense_share(layer.weight, weight, moments.covariance) for weight in (made.weight, nearest(layer.weight, scheme))
    ]
    assert shares[0] < 0.5 * shares[1]
    mean = layer.weight @ moments.mean + layer.bias
    np.testing.assert_allclose(made.weight @ moments.mean + made.bias, mean, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bias", [None, np.zeros(OUT, np.float32)])
def test_a_layer_without_a_bias_gets_none_and_keeps_its_mean_nearly(
    bias: Array | None, seen: tuple[View, Moments, Spectrum], tmp_path: Path
) -> None:
    layer, moments, _ = seen
    unbiased = replace(layer, bias=bias)
    made = rounder(tmp_path, Known(moments)).dense(unbiased, onnx.NBITS4)
    assert made is not None
    assert made.bias is None if bias is None else not made.bias.any()
    second = moments.covariance + np.outer(moments.mean, moments.mean)
    plain = nearest(layer.weight, onnx.NBITS4)
    assert dense_share(layer.weight, made.weight, second) < 0.5 * dense_share(layer.weight, plain, second)


def test_a_dense_layer_is_rounded_once_and_not_at_all_where_there_is_nothing_to_round(
    seen: tuple[View, Moments, Spectrum], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, moments, _ = seen
    first = rounder(tmp_path, Known(moments)).dense(layer, onnx.NBITS4)
    monkeypatch.setattr("edgepack.pipeline.rounding.gptq", None)
    again = rounder(tmp_path, Known(moments))
    kept = again.dense(layer, onnx.NBITS4)
    assert first is not None
    assert kept is not None
    np.testing.assert_array_equal(kept.weight, first.weight)
    assert again.dense(layer, onnx.FP32) is None
    assert rounder(tmp_path, Known(None)).dense(layer, onnx.NBITS4) is None


@pytest.mark.parametrize("scheme", [onnx.INT8_DYNAMIC, onnx.NBITS4], ids=str)
def test_a_draft_lies_on_the_grids_and_keeps_the_mean_output(
    scheme: Scheme, seen: tuple[View, Moments, Spectrum], tmp_path: Path
) -> None:
    layer, moments, spectrum = seen
    drafts = rounder(tmp_path, Known(moments))
    exact = drafts.plain(layer, spectrum, RANK)
    made = drafts.draft(layer, spectrum, low_rank(RANK), scheme)
    for role in "AB":
        stored = made.tensors[role]
        np.testing.assert_allclose(nearest(stored, scheme), stored, atol=1e-6)
        assert not np.array_equal(stored, exact.tensors[role])
    assert made.bias is not None
    assert exact.bias is not None
    mean = moments.mean
    np.testing.assert_allclose(
        made.A @ (made.B @ mean) + made.bias, exact.A @ (exact.B @ mean) + exact.bias, rtol=1e-4, atol=1e-4
    )
    unknown = rounder(tmp_path, Known(None)).draft(layer, spectrum, low_rank(RANK), scheme)
    np.testing.assert_array_equal(unknown.A, exact.A)


def test_only_wide_layers_in_eight_bits_are_left_to_the_writer_in_a_draft(
    seen: tuple[View, Moments, Spectrum], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, moments, _ = seen
    drafts = rounder(tmp_path, Known(moments))
    last, draft = drafts.dense(layer, onnx.INT8_DYNAMIC), drafts.dense_draft(layer, onnx.INT8_DYNAMIC)
    assert last is not None
    assert draft is not None
    np.testing.assert_array_equal(draft.weight, last.weight)
    monkeypatch.setattr("edgepack.pipeline.rounding.WIDE", layer.in_features - 1)
    assert drafts.dense_draft(layer, onnx.INT8_DYNAMIC) is None
    assert drafts.dense_draft(layer, onnx.NBITS4) is not None


@pytest.mark.parametrize("scheme", [onnx.INT8_DYNAMIC, onnx.FP32, onnx.NBITS4], ids=str)
def test_a_trained_pair_is_rounded_to_nearest_as_training_did(
    scheme: Scheme, seen: tuple[View, Moments, Spectrum], tmp_path: Path
) -> None:
    layer, moments, spectrum = seen
    pair = whitened.factors(layer, spectrum, RANK)
    made = rounder(tmp_path, Known(moments)).trained(pair, scheme)
    for found, given in ((made.A, pair.A), (made.B, pair.B)):
        grid = grid_of(scheme, given.shape[1])
        np.testing.assert_array_equal(found, given if grid is None else round_to_nearest(given, grid).weight)
