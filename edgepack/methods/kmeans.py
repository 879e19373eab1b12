"""Product quantization: a weight matrix as pieces of its rows, each one of at most 256 pieces that are stored.

Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search" (IEEE TPAMI 33, 2011); of weights: Gong,
Liu, Yang and Bourdev, "Compressing Deep Convolutional Networks using Vector Quantization" (2014), section 3.3. Pieces
are 1 × b; the columns stand in bands, each with a codebook of its own; a code has one byte.

Codebooks come from k-means (Lloyd, IEEE Transactions on Information Theory 28, 1982), seeded by k-means++ (Arthur and
Vassilvitskii, SODA 2007) of scikit-learn, pieces weighed by the variances of their inputs. With data, codes and
codebooks are then fitted in turn to the layer's *output*: each code in its place, given all the others of its row
(coordinate descent on tr((W − M) C (W − M)ᵀ), as in additive quantization), and codebooks by least squares.
"""

from __future__ import annotations

import warnings
from types import ModuleType

import numpy as np

from edgepack.errors import UsageError, install_hint
from edgepack.factorize.leastsquares import input_variances, metric, with_corrected_bias
from edgepack.methods.budget import LEAST_COLUMNS, LEAST_ELEMENTS, allowed_bytes, bytes_in_8_bits
from edgepack.methods.dictionary import refitted
from edgepack.model.constexpr import Writer
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array

MOST_CENTROIDS = 256
MOST_BANDS = 256
ROUNDS = 3
"""Of fitting codes and codebooks in turn, with data."""
_ITERATIONS = 24
_FIRST_ITERATIONS = 6
"""Of Lloyd's, without data and with: there, later ones change the loss in the end by less than a percent."""
_STEPS = 4
"""Of conjugate gradients: few numbers share a row, so that they are nearly independent."""
_SEEDED_BY = 4
"""Pieces per centroid that k-means++ looks at, once for all bands."""
_COLUMNS = 64
"""Columns whose codes are chosen before the errors of all others are brought up to date."""


def kmeans(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """Product quantization with the pieces and codebooks that promise most for `share` of a byte per weight.

    Args:
        layer: with moments, fitted to what its output loses; without, to the weight.
        share: of the weight's bytes in 8 bits, between 0 and 1.
        seed: of k-means++.
        gradient: without effect.

    Raises:
        UsageError: the share is not between 0 and 1, or scikit-learn is missing.
    """
    shape = sized(layer.out_features, layer.in_features, allowed_bytes(layer, share))
    if shape is None:
        return f"{share:g} of its bytes do not hold a code per row and two pieces of {layer.in_features} weights"
    block, centroids, bands = shape
    return quantized(layer, block, centroids, seed, bands=bands)


def sized(out_features: int, in_features: int, allowed: int) -> tuple[int, int, int] | None:
    """Length of a piece, centroids per codebook and codebooks; None where nothing fits.

    At a rate of log₂ K / b bits per weight an ideal code of Gaussian weights loses K^(−2/b) of them; and of n pieces
    k K are their own centroids. So the loss is taken to be (1 − k K / n) K^(−2/b), and the least of what fits is
    chosen.
    """
    best, found = np.inf, None
    for block in range(1, in_features + 1):
        places = -(-in_features // block)
        pieces = out_features * places
        left = allowed - pieces
        centroids = min(MOST_CENTROIDS, pieces, _most_centroids(block, left))
        if centroids < 2:
            continue
        bands = 1
        if centroids == MOST_CENTROIDS:
            beside = places + 8  # which band a place is in, the size of a codebook, one scale
            bands = min(
                max((left - beside) // (bytes_in_8_bits(centroids, block) - 4 * (block < LEAST_COLUMNS)), 1), places
            )
            bands = min(bands, MOST_BANDS)
        loss = max(1 - bands * centroids / pieces, 0.0) * centroids ** (-2 / block)
        if loss < best:
            best, found = loss, (block, centroids, bands)
    return found


def quantized(layer: View, block: int, centroids: int, seed: int = 0, *, bands: int = 1) -> Replacement:
    """The layer in pieces of `block` weights, each one of `centroids`; rows are filled up to whole pieces.

    Args:
        layer: with or without moments.
        block: weights per piece, 1 … in.
        centroids: per codebook, 1 … 256.
        seed: of k-means++.
        bands: codebooks, at most 256: the places of a row are cut into so many runs.

    Raises:
        UsageError: sizes that make no sense, or scikit-learn is missing.
    """
    from threadpoolctl import threadpool_limits

    places = -(-layer.in_features // max(block, 1))
    if not (
        1 <= block <= layer.in_features and 1 <= centroids <= MOST_CENTROIDS and 1 <= bands <= min(places, MOST_BANDS)
    ):
        raise UsageError(f"{layer.name}: {bands} bands of {centroids} pieces of {block} weights")
    padded = np.zeros((layer.out_features, places * block))
    padded[:, : layer.in_features] = layer.weight
    importance = np.zeros(places * block)
    importance[: layer.in_features] = input_variances(layer)
    bases = (np.arange(places) * bands // places) * centroids  # the first row of each place's codebook
    with threadpool_limits(1):  # of BLAS and OpenMP: always the same bits, and nothing to wait for in small products
        covariance = metric(layer)
        iterations = _ITERATIONS if covariance is None else _FIRST_ITERATIONS
        pieces = padded.reshape(-1, places, block)
        codes, codebook = _clustered(pieces, importance, bases, centroids, seed, iterations)
        if covariance is not None:
            for _ in range(ROUNDS):
                codes = recoded(layer.weight, codes, codebook, bases, centroids, covariance)
                index = ((codes + bases)[:, :, None] * block + np.arange(block)).reshape(len(codes), -1)
                index = index[:, : layer.in_features]
                shared = refitted(layer.weight, index, codebook.reshape(-1), covariance, iterations=_STEPS)
                codebook = shared.reshape(-1, block)
    return with_corrected_bias(layer, _coded(layer, codes, codebook, bases, centroids))


def recoded(weight: Array, codes: Array, codebook: Array, bases: Array, centroids: int, covariance: Array) -> Array:
    """(out, places) whole numbers: codes that lose less of the output than those given, or as much.

    One sweep over the places; in each, every row takes the piece that is best beside what the rest of it misses.

    Args:
        weight: (out, in).
        codes: (out, places), each below `centroids`.
        codebook: (codebooks · centroids, block).
        bases: (places,): the row of the codebook that code 0 of each place stands for.
        centroids: per codebook.
        covariance: (in, in).
    """
    (rows, places), block, wide = codes.shape, codebook.shape[1], weight.shape[1]
    codes = codes.copy()
    book = codebook.astype(np.float32)
    bends = np.zeros((places * block, places * block), np.float32)  # no input reaches what rows are filled up with
    bends[:wide, :wide] = covariance
    pieces = book[codes + bases].reshape(rows, -1)
    error = -pieces
    error[:, :wide] += weight
    error = error @ bends
    per_run = max(_COLUMNS // block, 1)
    for first in range(0, places, per_run):
        last = min(first + per_run, places)
        run = slice(first * block, last * block)
        near, changed = error[:, run].copy(), np.zeros((rows, (last - first) * block), np.float32)
        for place in range(first, last):
            own = slice(place * block, (place + 1) * block)
            local = slice((place - first) * block, (place - first + 1) * block)
            book_here = book[bases[place] : bases[place] + centroids]
            bend = bends[own, own]
            # With d = new − old: dᵀ C d − 2 d · error, up to what does not depend on the new piece.
            pull = near[:, local] + pieces[:, own] @ bend
            scores = ((book_here @ bend) * book_here).sum(axis=1) - 2 * (pull @ book_here.T)
            best = scores.argmin(axis=1)
            moved = book_here[best] - pieces[:, own]
            codes[:, place] = best
            changed[:, local] = moved
            near -= moved @ bends[own, run]
        error -= changed @ bends[run]
    return codes


def _clustered(
    pieces: Array, importance: Array, bases: Array, centroids: int, seed: int, iterations: int
) -> tuple[Array, Array]:
    """Codes (out, places) and a codebook (codebooks · centroids, block) by weighted k-means, band by band.

    Args:
        pieces: (out, places, block).
        importance: (places · block,) ≥ 0.
        bases: (places,).
        centroids: per codebook.
        seed: of k-means++.
        iterations: of Lloyd's, at most.
    """
    cluster = _scikit_learn()
    rows, places, block = pieces.shape
    each = np.maximum(importance.reshape(places, block).sum(axis=1), np.finfo(np.float32).tiny)
    weights = np.tile(each / each.max(), rows)
    points = pieces.reshape(-1, block)
    some = np.random.default_rng(seed).permutation(len(points))[: max(_SEEDED_BY * centroids, 1024)]
    codes = np.zeros((rows, places), np.int64)
    codebook = np.zeros((int(bases[-1]) + centroids, block))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of distinct clusters")  # fewer pieces differ: some codes stand idle
        count = min(centroids, len(some))
        seeds, _ = cluster.kmeans_plusplus(points[some], count, sample_weight=weights[some], random_state=seed)
        for base in np.unique(bases):
            here = np.tile(bases == base, rows)
            first = seeds[: int(here.sum())]
            fit = cluster.KMeans(len(first), init=first, n_init=1, max_iter=iterations, random_state=seed)
            fit.fit(points[here], sample_weight=weights[here])
            codes.reshape(-1)[here] = fit.labels_
            codebook[base : base + len(first)] = fit.cluster_centers_
    return codes, codebook


def _scikit_learn() -> ModuleType:
    try:
        from sklearn import cluster
    except ImportError as err:
        raise UsageError("k-means needs scikit-learn", hint=install_hint("methods")) from err
    found: ModuleType = cluster
    return found


def _most_centroids(block: int, left: int) -> int:
    """How many pieces of a codebook fit into so many bytes."""
    many = left // (block + 4) if block >= LEAST_COLUMNS else (left - 4) // block
    return many if many * block >= LEAST_ELEMENTS else min(left // (4 * block), (LEAST_ELEMENTS - 1) // block)


def _coded(layer: View, codes: Array, codebook: Array, bases: Array, centroids: int) -> Replacement:
    (rows, places), block = codes.shape, codebook.shape[1]
    w = Writer()
    rows_of_book = w.step("cast", w.constant("codes", codes.astype(np.uint8)), to="int32")
    if len(codebook) > centroids:
        band = w.step("cast", w.constant("bands", (bases // centroids).astype(np.uint8)), to="int32")
        size = w.constant("centroids", np.array([centroids], np.int32))
        rows_of_book = w.step("add", rows_of_book, w.step("mul", band, size))
    pieces = w.step("gather", w.constant("codebook", codebook.astype(np.float32)), rows_of_book, axis=0)
    weight = w.step("reshape", pieces, shape=(rows, places * block))
    if places * block > layer.in_features:
        weight = w.step("gather", weight, w.step("range", count=layer.in_features), axis=1)
    return w.decoded(weight, layer.bias)
