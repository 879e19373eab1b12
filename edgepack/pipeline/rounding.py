"""Factors as they are written: in the basis that their integer grids suit best, and rounded onto them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from edgepack.factorize.two_sided import damped
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.methods.registry import factorizer
from edgepack.model.kinds.stages import behind_first, put_in_front
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, dense, low_rank, low_rank_correction
from edgepack.model.scheme import INT8_BITS, Activations, Scheme
from edgepack.model.serialize import packed_part, unpacked_part
from edgepack.model.structure import Structure
from edgepack.model.types import Array, Moments, Spectrum
from edgepack.pipeline.activations import GivenMoments, InputMoments
from edgepack.pipeline.losses import factors_at
from edgepack.pipeline.stages import StageFit
from edgepack.quantize.alternate import alternate
from edgepack.quantize.bias import corrected_bias, corrected_pair
from edgepack.quantize.gptq import gptq, round_to_nearest
from edgepack.quantize.grids import WeightGrid, grid_of
from edgepack.quantize.low_rank_correction import fit_rounded_correction
from edgepack.quantize.rotation import LatentRotation, search_latent_rotations, turned
from edgepack.workspace import Keyed, Step, Workspace, arrays_store, digest

T = TypeVar("T")

ROUNDS = ((1024, 6), (2048, 2), (1 << 62, 0))
"""By the width of a layer: one round takes seconds at 2048 inputs, ten at 4096. Without rounds each factor is rounded
once, by GPTQ."""

WIDE = 2048
"""Inputs of a dense layer, beyond which a draft leaves its 8-bit weights to be rounded to nearest."""

CORRECTION_ROUNDS = ((1024, 3), (1 << 62, 1))
"""Likewise where factors correct a dense matrix: every round rounds the whole matrix twice."""


@dataclass(frozen=True)
class Part:
    """One view of a layer, and what a plan makes of it.

    Attributes:
        structure: of its matrix: as it is, low-rank factors, or both.
        scheme: that it is written in.
    """

    view: View
    spectrum: Spectrum
    structure: Structure
    scheme: Scheme


@dataclass(frozen=True)
class Rounder:
    """Makes what is written for a layer in a scheme; what lies on integer grids is kept in the cache.

    Attributes:
        covariances: of the layers' inputs; a layer without one is rounded to nearest by whoever writes it.
        method: the factorizer.
        qmax: largest code of per-channel int8 in ONNX; TFLite always has 127.
        gradients: G by layer name, for a method that factors by it: roundings are weighed by it as well.
        workspace: with the seed of the rotations.
    """

    covariances: InputMoments
    method: str
    qmax: int
    gradients: Mapping[str, Array]
    workspace: Workspace
    _last: dict[str, Replacement] = field(default_factory=dict, repr=False, compare=False)

    @property
    def seed(self) -> int:
        """Of the rotations."""
        return self.workspace.seed

    def stages(self, layer: View, spectrum: Spectrum) -> StageFit:
        """How a kernel is taken apart by the method, on what is known of its input."""
        moments = self.covariances.of(layer.name) if factorizer(self.method).needs_moments else None
        return StageFit(layer, spectrum, moments, self.method, self.gradients.get(layer.name), self.seed)

    def factors(self, layer: View, spectrum: Spectrum, structure: Structure, scheme: Scheme) -> Replacement:
        """A pair whose weights lie on the grids of the scheme, so that every quantizer leaves them as they are."""
        rank = structure.ranks[0]
        if structure.is_correction:
            return self._correction(layer, spectrum, rank, scheme)
        if not structure.of_a_matrix:
            return self._staged(layer, spectrum, structure, scheme)
        if spectrum.mean is None:  # nothing is known of the layer's input
            return self.plain(layer, spectrum, rank)
        A, B = self._grid(scheme, rank), self._grid(scheme, layer.in_features)
        if A is None or B is None:
            return self.plain(layer, spectrum, rank)
        latent = scheme.activations
        oblique = None if spectrum.dual is None else (spectrum.basis, spectrum.dual)
        # Layers that have one B are not written as one matrix: each channel of A keeps its own scale.
        scales = 0 if A.block or structure.is_shared else scheme.bytes_per_channel
        key = [self.covariances.key, self.method, layer.name, rank, self.seed, latent, A, B, scales, oblique]
        return self._kept(ROUNDED, Keyed(key, lambda: self._pair(layer, spectrum, rank, (A, B), latent, scales)))

    def trained(self, part: Replacement, scheme: Scheme) -> Replacement:
        """Trained factors on the grids of the scheme that they were trained for, rounded as training did."""

        def rounded(weight: Array) -> Array:
            grid = self._grid(scheme, weight.shape[1])
            return weight if grid is None else round_to_nearest(weight, grid).weight

        return replace(part, tensors={role: rounded(weight) for role, weight in part.tensors.items()})

    def dense(self, layer: View, scheme: Scheme) -> Replacement | None:
        """The layer's own weight on the grid of a scheme; None where there is none, or nothing is known of the input.

        A layer without a bias, or with zeros, gets none: it is rounded on the second moment of its input instead.
        """
        moments = self.covariances.of(layer.name)
        grid = None if moments is None else self._grid(scheme, layer.in_features)
        if moments is None or grid is None or not moments.variance.sum() > 0:
            return None
        return self._kept(
            ROUNDED_DENSE, Keyed([self.covariances.key, layer.name, grid], lambda: _Dense(layer, moments, grid))
        )

    def draft(self, layer: View, spectrum: Spectrum, structure: Structure, scheme: Scheme) -> Replacement:
        """A pair in the basis that quantizes well without a search, rounded to nearest, its bias corrected for that; as
        in the end where a dense matrix in 4 bits stands beside the pair."""
        if structure.is_correction or not structure.of_a_matrix:
            return self.factors(layer, spectrum, structure, scheme)
        pair = self.plain(layer, spectrum, structure.ranks[0])
        moments = self.covariances.of(layer.name)
        A, B = self._grid(scheme, pair.rank), self._grid(scheme, layer.in_features)
        if moments is None or A is None or B is None:
            return pair
        rounded = low_rank(round_to_nearest(pair.A, A).weight, round_to_nearest(pair.B, B).weight, None)
        return corrected_pair(pair, rounded, moments.mean)

    def dense_draft(self, layer: View, scheme: Scheme) -> Replacement | None:
        """As `dense`, once for all plans; None for weights in 8 bits that are so wide that it would take long."""
        if scheme.bits >= INT8_BITS and layer.in_features > WIDE:
            return None
        return self.dense(layer, scheme)

    def plain(self, layer: View, spectrum: Spectrum, rank: int) -> Replacement:
        """A pair in the basis that quantizes well without a search, for whoever writes it to round."""
        return factors_at(layer, spectrum, rank, self.method, self.seed)

    def _grid(self, scheme: Scheme, in_features: int) -> WeightGrid | None:
        return grid_of(scheme, in_features, qmax=self.qmax)

    def _pair(
        self,
        layer: View,
        spectrum: Spectrum,
        rank: int,
        grids: tuple[WeightGrid, WeightGrid],
        latent: Activations,
        bytes_per_channel: int,
    ) -> _Pair:
        known = self.gradients.get(layer.name)
        return _Pair(
            layer=layer,
            spectrum=spectrum,
            factors=factorizer(self.method).factors(layer, spectrum, rank),
            grids=grids,
            latent=latent,
            bytes_per_channel=bytes_per_channel,
            gradient=None if known is None else damped(layer, known),
            moments=self.covariances.of(layer.name),
            seed=self.seed,
        )

    def _correction(self, layer: View, spectrum: Spectrum, rank: int, scheme: Scheme) -> Replacement:
        """A pair and the dense matrix beside it, all on their grids."""
        moments = self.covariances.of(layer.name)
        if moments is None:
            return _corrected(layer, self.plain(layer, spectrum, rank))
        key = [scheme, self.covariances.key, self.method, layer.name, rank, self.seed]
        task = Keyed(key, lambda: Correction(layer, moments, scheme, rank, self.seed))
        return self._kept(ROUNDED_CORRECTION, task)

    def _staged(self, layer: View, spectrum: Spectrum, structure: Structure, scheme: Scheme) -> Replacement:
        """Convolutions in a row, each fitted to what those before it give as they are rounded."""
        settings = [self.method, layer.name, layer.kernel, structure, scheme, self.seed, self.qmax]
        key = digest(self.covariances.key, settings, spectrum.dual)
        task = _Staged(self, layer, spectrum, structure, scheme, key)
        return self._kept(ROUNDED_STAGES, Keyed(key, lambda: task))

    def _kept(self, step: Step[T, Replacement], task: Keyed[T]) -> Replacement:
        key = self.workspace.key(step, task)
        if key not in self._last:
            self._last[key] = self.workspace.cached(step, task)
        return self._last[key]


def _rounds(layer: View, rounds: Sequence[tuple[int, int]]) -> int:
    return next(count for size, count in rounds if layer.in_features <= size)


@dataclass(frozen=True)
class _Pair:
    """A pair to be rounded.

    Attributes:
        factors: as the factorizer gave them.
        grids: of A and of B.
        bytes_per_channel: of the scales in the file; 0 where there are no others to choose from.
        gradient: G, damped; None where outputs count alike.
        moments: of the layer's input; None where the pair is only to be turned.
        seed: of the rotations.
    """

    layer: View
    spectrum: Spectrum
    factors: Replacement
    grids: tuple[WeightGrid, WeightGrid]
    latent: Activations
    bytes_per_channel: int
    gradient: Array | None
    moments: Moments | None
    seed: int


def _rounded_pair(task: _Pair) -> Replacement:
    layer, spectrum, gradient = task.layer, task.spectrum, task.gradient
    grids, latent_rotation = _grids(task)
    pair = turned(task.factors, spectrum, latent_rotation, seed=task.seed)
    if task.moments is None:
        return pair
    covariance = shrunk_covariance(task.moments)
    rounds = _rounds(layer, ROUNDS)
    rounded = alternate(layer.weight, pair, covariance, grids, gradient=gradient, rounds=rounds)
    return corrected_pair(pair, rounded.factors(None), task.moments.mean)


def _grids(task: _Pair) -> tuple[tuple[WeightGrid, WeightGrid], LatentRotation]:
    """The grids of A and of B, and the basis for them: one scale for a whole factor where that is worth it.

    The rows of B are components of the latent, which a rotation makes alike: one scale is as good as many. Those of A
    are the layer's outputs, which differ: there the predicted loss of the pair, with what its rank cuts off, may rise
    by no larger a share than its bytes fall.
    """

    def search(*choices: tuple[WeightGrid, WeightGrid]) -> list[LatentRotation]:
        return search_latent_rotations(
            task.factors, task.spectrum, choices, seed=task.seed, latent=task.latent, gradient=task.gradient
        )

    if not task.bytes_per_channel:
        return task.grids, search(task.grids)[0]
    A, B = task.grids
    fine, coarse = (A, replace(B, shared=True)), (replace(A, shared=True), replace(B, shared=True))
    latent_rotations = search(fine, coarse)
    rows, rank = task.factors.A.shape
    scales = rows * task.bytes_per_channel
    saved = scales / (scales + rank * (rows + task.layer.in_features) * A.bits / 8)
    lost = float(task.spectrum.energies[rank:].sum()) + latent_rotations[0].noise
    if latent_rotations[1].noise - latent_rotations[0].noise <= saved * lost:
        return coarse, latent_rotations[1]
    return fine, latent_rotations[0]


@dataclass(frozen=True)
class _Dense:
    """A layer's own weight to be rounded."""

    layer: View
    moments: Moments
    grid: WeightGrid


def _rounded_dense(task: _Dense) -> Replacement:
    layer, moments = task.layer, task.moments
    covariance = shrunk_covariance(moments)
    if layer.bias is None or not layer.bias.any():
        return dense(
            gptq(layer.weight, covariance + np.outer(moments.mean, moments.mean), task.grid).weight, layer.bias
        )
    weight = gptq(layer.weight, covariance, task.grid).weight
    return dense(weight, corrected_bias(layer.bias, layer.weight, weight, moments.mean))


@dataclass(frozen=True)
class Correction:
    """A pair and the dense matrix that it corrects, to be rounded together.

    Attributes:
        layer: without its moments.
        moments: of its input.
        scheme: of the matrix.
        rank: of the pair.
        seed: of the pair's rotation.
    """

    layer: View
    moments: Moments
    scheme: Scheme
    rank: int
    seed: int


def rounded_correction(task: Correction) -> Replacement:
    """The pair and the matrix on the grids of a scheme, the bias corrected for what both together miss."""
    layer, scheme, rank = task.layer, task.scheme, task.rank
    thin = scheme.correction
    if thin is None:
        raise ValueError(f"{scheme} has no pair beside a matrix")
    sides = ((scheme, layer.in_features), (thin, rank), (thin, layer.in_features))
    base, A, B = (grid_of(one, columns) for one, columns in sides)
    if base is None or A is None or B is None:
        raise ValueError(f"{scheme} has matrices that are not rounded")
    covariance, rounds = shrunk_covariance(task.moments), _rounds(layer, CORRECTION_ROUNDS)
    found = fit_rounded_correction(layer.weight, covariance, (base, A, B), rank, seed=task.seed, rounds=rounds)
    whole = found.base.weight + found.A.weight.astype(np.float64) @ found.B.weight
    bias = corrected_bias(layer.bias, layer.weight, whole, task.moments.mean)
    return low_rank_correction(found.A.weight, found.B.weight, bias, found.base.weight)


@dataclass(frozen=True)
class _Staged:
    """A convolution to be taken apart and rounded.

    Attributes:
        key: digest of all of it.
    """

    rounder: Rounder
    layer: View
    spectrum: Spectrum
    structure: Structure
    scheme: Scheme
    key: str


def _rounded_stages(task: _Staged) -> Replacement:
    rounder, layer, scheme, inner = task.rounder, task.layer, task.scheme, behind_first(task.structure)
    fit = rounder.stages(layer, task.spectrum)
    first = fit.first(task.structure)
    grid = grid_of(scheme, first.shape[1], qmax=rounder.qmax)
    first = first if grid is None else fit.rounded(task.structure, first, grid)
    rest = fit.behind(task.structure, first)
    own = replace(rounder, covariances=GivenMoments(task.key, rest.moments), _last={})
    if inner.ranks:
        last = own.factors(rest.view, fit.decomposed(rest, inner), inner, scheme)
    else:
        last = own.dense(rest.view, scheme) or dense(rest.view.weight, rest.view.bias)
    return put_in_front(task.structure, first, last)


def _corrected(layer: View, pair: Replacement) -> Replacement:
    """The pair with all that it leaves of the layer's weight beside it, for whoever writes it to round."""
    left = layer.weight - pair.A.astype(np.float64) @ pair.B
    return low_rank_correction(pair.A, pair.B, layer.bias, left.astype(np.float32))


REPLACEMENT = arrays_store(packed_part, unpacked_part)

ROUNDED: Step[_Pair, Replacement] = Step("rounded", 4, _rounded_pair, REPLACEMENT)
ROUNDED_DENSE: Step[_Dense, Replacement] = Step("rounded-dense", 1, _rounded_dense, REPLACEMENT)
ROUNDED_STAGES: Step[_Staged, Replacement] = Step("rounded-stages", 1, _rounded_stages, REPLACEMENT)
ROUNDED_CORRECTION: Step[Correction, Replacement] = Step("rounded-correction", 1, rounded_correction, REPLACEMENT)
