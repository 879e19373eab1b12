"""HashedNets: a weight matrix whose entries are few numbers, shared by a hash of their place.

Chen, Wilson, Tyree, Weinberger and Chen, "Compressing Neural Networks with the Hashing Trick" (ICML 2015), equations 3
and 7: V_ij = ξ(i, j) w[h(i, j)], where h and ξ are hashes of the entry's place and nothing is stored but w. Here both
come of one xxh32 of i · in + j, modulo twice the number of buckets: h is its half, ξ = ±1 its parity. A second hash for
the sign would double what a runtime holds while it decodes.

The paper trains w. For a weight that is given, w is linear least squares: where the inputs' covariance is diagonal, the
mean of ξ V of each bucket, weighted by the inputs' variances; else a few conjugate gradients from there on. Little of a
weight survives it (of a random one, a share of about buckets / entries): it is a model to train, from `initial`.
"""

from __future__ import annotations

import numpy as np

from edgepack.errors import UsageError
from edgepack.factorize.leastsquares import input_variances, metric, with_corrected_bias
from edgepack.methods.budget import allowed_bytes, most_floats
from edgepack.methods.dictionary import bucket_means, refitted
from edgepack.model.constexpr import Writer, xxh32
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array

_SIGNS = np.array([-1, 1], np.float32)


def hashednet(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
    """As many shared numbers as fit into `share` of a byte per weight, fitted to the layer.

    Args:
        layer: with moments, fitted to what the layer gives on the data; without, to the weight.
        share: of the weight's bytes in 8 bits, between 0 and 1.
        seed: of the hashes.
        gradient: without effect.

    Raises:
        UsageError: the share is not between 0 and 1.
    """
    buckets = most_floats(allowed_bytes(layer, share) - _SIGNS.nbytes)
    if buckets < 1:
        return f"{share:g} of its bytes do not hold one shared number"
    return hashed(layer, buckets, seed=seed)


def hashed(layer: View, buckets: int, *, seed: int = 0) -> Replacement:
    """The layer with `buckets` shared numbers."""
    shape = layer.out_features, layer.in_features
    index, signs = _hashes(shape, buckets, seed)
    shared = bucket_means(layer.weight, index, buckets, input_variances(layer), signs)
    covariance = metric(layer)
    if covariance is not None:
        shared = refitted(layer.weight, index, shared, covariance, signs)
    return with_corrected_bias(layer, _coded(shape, shared, seed, layer.bias))


def initial(out_features: int, in_features: int, buckets: int, *, seed: int = 0) -> Replacement:
    """A layer to train: w ~ N(0, 2 / in), which keeps the scale of activations through rectifiers, and a bias of zeros.

    The scale is that of He, Zhang, Ren and Sun, "Delving Deep into Rectifiers" (ICCV 2015), equation 10: the entries
    share numbers, but the random signs leave them uncorrelated.

    Raises:
        UsageError: no buckets, or more than entries.
    """
    if not 1 <= buckets <= out_features * in_features:
        raise UsageError(f"{buckets} shared numbers for {out_features} × {in_features} entries")
    shared = np.random.default_rng(seed).standard_normal(buckets) * np.sqrt(2 / in_features)
    return _coded((out_features, in_features), shared, seed, np.zeros(out_features, np.float32))


def _hashes(shape: tuple[int, int], buckets: int, seed: int) -> tuple[Array, Array]:
    """Which number stands where, and its sign, both of `shape`."""
    places = np.arange(shape[0] * shape[1], dtype=np.uint32)
    found = xxh32(places, seed & 0xFFFFFFFF) % np.uint32(2 * buckets)
    return (found // 2).astype(np.int32).reshape(shape), _SIGNS[found % 2].reshape(shape)


def _coded(shape: tuple[int, int], shared: Array, seed: int, bias: Array | None) -> Replacement:
    w = Writer()
    places = w.step("range", count=shape[0] * shape[1])
    hashes = w.step("bucket", places, seed=seed & 0xFFFFFFFF, buckets=2 * len(shared))
    index = w.step("div", hashes, by=2)
    numbers = w.step("gather", w.constant("shared", shared.astype(np.float32)), index, axis=0)
    signs = w.step("gather", w.constant("signs", _SIGNS), w.step("mod", hashes, by=2), axis=0)
    return w.decoded(w.step("reshape", w.step("mul", numbers, signs), shape=shape), bias)
