"""Structures that take a convolution's kernel apart: fitted to the data, and what each loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from edgepack.backends.schemes import scheme_of_key
from edgepack.factorize.first_stage import Behind, Patches, behind, first_stage, patches_of, strips, tucker_first_stage
from edgepack.factorize.two_sided import damped
from edgepack.methods.registry import factorizer, needs_gradients, spectrum_of, usable
from edgepack.model.kinds.stages import TUCKER_2, behind_first, put_in_front, taken_first
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, dense
from edgepack.model.scheme import Activations, Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import Array, Curvature, InputSpread, Moments, Spectrum
from edgepack.pipeline.analysis import Analysis
from edgepack.pipeline.losses import Losses, factors_at
from edgepack.plan.stage_loss import Convolution, Staged, staged_losses
from edgepack.quantize.gptq import gptq, innovation
from edgepack.quantize.grids import WeightGrid
from edgepack.workspace import Keyed, Step, Workspace, record_store


@dataclass(frozen=True)
class StageFit:
    """A convolution, and how it is taken apart.

    Attributes:
        layer: with its kernel, without its moments.
        spectrum: of its matrix.
        moments: of its patches, where they are known.
        method: the factorizer.
        gradient: G, where the method factors by it and it is known.
        seed: of rotations.
    """

    layer: View
    spectrum: Spectrum
    moments: Moments | None
    method: str
    gradient: Array | None
    seed: int

    @cached_property
    def patches(self) -> Patches:
        """What is known of its input."""
        return patches_of(self.moments, self.layer.in_features)

    def first(self, structure: Structure) -> Array:
        """B (r, in · places that it takes) float32 of a structure."""
        layer, axes = self.layer, taken_first(structure)
        if structure.name == TUCKER_2:
            inner, outer = structure.ranks
            start = self.spectrum.projection

            def refine(rest: View, moments: Moments) -> Array:
                return self._decomposed(rest, moments).projection

            return tucker_first_stage(layer, (inner, outer), self.patches, start, refine, seed=self.seed)
        weight = layer.weight
        if self.gradient is not None:
            weight = np.linalg.cholesky(damped(layer, self.gradient)).T @ weight
        return first_stage(weight, layer.kernel, axes, structure.ranks[0], self.patches, seed=self.seed)

    def rounded(self, structure: Structure, first: Array, grid: WeightGrid) -> Array:
        """B on a grid, its errors where they cost least in what it gives."""
        return gptq(first, strips(self.patches.covariance, self.layer.kernel, taken_first(structure)), grid).weight

    def behind(self, structure: Structure, first: Array) -> Behind:
        """What stands behind the first stage of a structure as it is stored."""
        return behind(self.layer, self.patches, first, taken_first(structure))

    def fitted(self, structure: Structure) -> Replacement:
        """All stages of a structure, in float32."""
        first, inner = self.first(structure), behind_first(structure)
        rest = self.behind(structure, first)
        return put_in_front(structure, first, self.last(rest, inner, self.decomposed(rest, inner)))

    def last(self, rest: Behind, inner: Structure, spectrum: Spectrum) -> Replacement:
        """What becomes of what stands behind a first stage, in float32."""
        if not inner.ranks:
            return dense(rest.view.weight, rest.view.bias)
        return factors_at(rest.view, spectrum, inner.ranks[0], self.method, self.seed)

    def decomposed(self, rest: Behind, inner: Structure) -> Spectrum:
        """Of what stands behind a first stage; without a basis where it stays one matrix."""
        moments = rest.moments
        variance = moments.variance
        spread = InputSpread(variance, moments.low, moments.high, moments.row_range, innovation(moments.covariance))
        if inner.ranks:
            return replace(self._decomposed(rest.view, moments), inputs=spread)
        return Spectrum(np.zeros((len(rest.view.weight), 0), np.float32), np.zeros(0), moments.mean, spread)

    def _decomposed(self, rest: View, moments: Moments) -> Spectrum:
        method = usable(self.method, self.gradient)
        return spectrum_of(method, replace(rest, moments=moments), self.gradient)

    @property
    def spans(self) -> dict[Activations, float]:
        """What an int8 grid of the input covers, by how it is quantized."""
        seen = self.spectrum.inputs
        return {"float": 0.0, "static": 0.0, "dynamic": 0.0} if seen is None else seen.spans


def predict_staged_losses(
    analysis: Analysis, wanted: Mapping[str, Sequence[Structure]], schemes: tuple[Scheme, ...], workspace: Workspace
) -> Losses:
    """Losses of structures that no matrix by itself can have.

    Args:
        analysis: of the model.
        wanted: by view name; views without one are passed over.
        schemes: in which they are wanted.
        workspace: with the cache.
    """
    sensitivity, settings = analysis.sensitivity, [analysis.method, workspace.seed, analysis.qmax]
    views = [view for view in analysis.views if wanted[view.name]]

    def entry(view: View) -> Keyed[_Asked]:
        def make() -> _Asked:
            known = None if analysis.gradients is None else analysis.gradients.get(view.name)
            gradient = known if needs_gradients(analysis.method) else None
            moments = analysis.covariances.of(view.name) if factorizer(analysis.method).needs_moments else None
            fit = StageFit(view, analysis.spectra[view.name], moments, analysis.method, gradient, workspace.seed)
            curvature = sensitivity.curvatures.get(view.name)
            return _Asked(fit, curvature, tuple(wanted[view.name]), schemes, analysis.qmax)

        key = [analysis.key, view.name, view.kernel, wanted[view.name], schemes, settings, sensitivity.by]
        return Keyed(key, make)

    found = workspace.map(STAGED_LOSSES, [entry(view) for view in views], "take kernels apart")
    return {view.name: own for view, own in zip(views, found, strict=True)}


@dataclass(frozen=True)
class _Asked:
    """A convolution whose structures' losses are to be predicted."""

    fit: StageFit
    curvature: Curvature | None
    structures: tuple[Structure, ...]
    schemes: tuple[Scheme, ...]
    qmax: int


def _losses(task: _Asked) -> dict[tuple[Scheme, Structure], float]:
    fit = task.fit
    layer = Convolution(fit.layer, fit.patches, fit.spans, _metric(task))
    found: dict[tuple[Scheme, Structure], float] = {}
    for structure in task.structures:
        first = fit.first(structure)
        rest, inner = fit.behind(structure, first), behind_first(structure)
        staged = Staged(structure, first, rest, inner, fit.decomposed(rest, inner))
        factors = fit.last(rest, inner, staged.spectrum) if inner.ranks else None
        found |= staged_losses(layer, staged, task.schemes, factors, qmax=task.qmax)
    return found


def _metric(task: _Asked) -> Array:
    """(out, out) float64."""
    if task.curvature is not None:
        return task.curvature.moment
    weight, covariance = task.fit.layer.weight.astype(np.float64), task.fit.patches.covariance
    energy = float(np.einsum("ij,ij->", weight @ covariance, weight))
    return np.eye(len(weight)) * (1 / energy if energy > 0 else 0.0)


def _cost(task: _Asked) -> float:
    """Floating-point operations, roughly: products with the patches' covariance, and what is solved behind them."""
    n, m = task.fit.layer.in_features, task.fit.layer.out_features
    places = prod(task.fit.layer.kernel)
    ranks = [structure.ranks[0] for structure in task.structures]
    return sum(2.0 * n * n * rank + (rank * places) ** 3 + 2.0 * n * m * rank * places for rank in ranks)


def _memory(task: _Asked) -> float:
    """Bytes: C, what a first stage makes of it, and their copies."""
    return 8.0 * 4 * task.fit.layer.in_features**2


def _packed(losses: Mapping[tuple[Scheme, Structure], float]) -> list[tuple[str, str, tuple[int, ...], float]]:
    return [(scheme.key, way.name, way.ranks, loss) for (scheme, way), loss in losses.items()]


def _unpacked(record: Sequence[tuple[str, str, Sequence[int], float]]) -> dict[tuple[Scheme, Structure], float]:
    return {(scheme_of_key(key), Structure(name, tuple(ranks))): loss for key, name, ranks, loss in record}


STAGED_LOSSES: Step[_Asked, dict[tuple[Scheme, Structure], float]] = Step(
    "staged-losses", 1, _losses, record_store(_packed, _unpacked), cost=_cost, memory=_memory
)
