"""Factors refitted on what the compressed prefix really feeds them, depth by depth: `--refit`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from edgepack.backends.observation import joined
from edgepack.data import Samples
from edgepack.errors import UsageError
from edgepack.factorize import whitened
from edgepack.factorize.refit import Fit, PairedMoments, PairedRows, pooled, refit, refitted_view, refitted_weights
from edgepack.factorize.two_sided import damped
from edgepack.methods.registry import factorizer, spectrum_of
from edgepack.model.layer import View
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.serialize import packed_part
from edgepack.model.structure import Structure
from edgepack.model.types import Array, InputSpread, Moments, Spectrum
from edgepack.natives import native
from edgepack.pipeline.activations import THREADS, GivenMoments
from edgepack.pipeline.rounding import REPLACEMENT, Part, Rounder
from edgepack.pipeline.stages import StageFit
from edgepack.workers import one_thread
from edgepack.workspace import Keyed, Step, digest

PARTS = 4
FEWEST = 32
"""Samples: parts of fewer could not say which refit helps."""
WIDEST = 2048
"""Inputs of the widest layer that is refitted: every part has matrices of that size."""


@dataclass(frozen=True)
class Refitter:
    """Refits the factors of a plan; what comes out is kept in the cache, layer by layer.

    Every layer behind a factored one is fitted anew: from the inputs that it gets with all factors before it in place,
    on their grids, to the outputs that the original gives. Layers of one depth share two passes over the calibration
    data, one through each model.

    Attributes:
        rounder: of the factors that nothing was refitted in.
    """

    model: Model
    rounder: Rounder
    calibration: Samples

    def factors(self, parts: Iterable[Part]) -> dict[str, Replacement]:
        """By view name, factors of every part of a plan that has some, on the grids of its scheme.

        Only a view that is its whole layer can be told in the model: the others are fitted to what they always were
        fed, and stand as they were before the ones behind them.
        """
        wanted = {part.view.name: part for part in parts if part.structure.ranks}
        level = native(self.model.native).depths(self.model.content, wanted)
        # The first ones are fed what they always were; what cannot be told apart, or is too large, stays as well.
        done = {
            name: _kept(self.rounder, choice)
            for name, choice in wanted.items()
            if not self._fits(choice, level.get(name))
        }
        last = max(level.values(), default=0)
        for depth in range(1, last + 1):
            self.rounder.workspace.progress("refit", depth - 1, last)
            own = {name: wanted[name] for name in wanted if name not in done and level[name] == depth}
            done |= self._level(own, {name: done[name] for name in sorted(done) if level.get(name, depth) < depth})
        return {name: done[name] for name in wanted}

    def _fits(self, choice: Part, depth: int | None) -> bool:
        few = len(self.calibration) < FEWEST
        return (
            bool(depth)
            and not few
            and choice.spectrum.mean is not None
            and choice.view.in_features <= WIDEST
            and choice.structure.in_place
        )

    def _level(self, choices: Mapping[str, Part], before: Mapping[str, Replacement]) -> dict[str, Replacement]:
        rounder, workspace = self.rounder, self.rounder.workspace
        prefix = digest(PARTS, rounder.covariances.key, {name: packed_part(part) for name, part in before.items()})

        def entry(choice: Part) -> Keyed[_Refit]:
            how = [rounder.method, rounder.seed, rounder.qmax, choice.structure, choice.scheme]
            key = [prefix, choice.view.name, how, choice.spectrum.dual]
            return Keyed(key, lambda: _Refit(rounder, choice, seen().get(choice.view.name), prefix))

        entries = {name: entry(choice) for name, choice in choices.items()}
        missing = {name: choices[name] for name, one in entries.items() if workspace.known(REFITTED, one) is None}

        @cache
        def seen() -> dict[str, tuple[PairedMoments, ...]]:
            with one_thread():
                return self._observed(missing, before)

        return {name: workspace.cached(REFITTED, one) for name, one in entries.items()}

    def _observed(
        self, choices: Mapping[str, Part], before: Mapping[str, Replacement]
    ) -> dict[str, tuple[PairedMoments, ...]]:
        """By layer name, moments of every part; layers that a part never reached, or with other rows, are absent."""
        runtime, model = native(self.model.native), self.model.content
        dense = runtime.observe(model, choices, threads=THREADS)
        compressed, names_after = runtime.with_factors(model, before)
        after = {name: own[0] for name, own in names_after.items()}
        thin = runtime.observe(compressed, [after[name] for name in choices], threads=THREADS)
        names = [name for name in choices if name in dense.keys and after[name] in thin.keys]
        strayed: set[str] = set()
        roots = {name: _root(self.rounder, choices[name].view) for name in names}
        parts = []
        for part in range(PARTS):
            samples = self.calibration.take(np.arange(part, len(self.calibration), PARTS))
            sums = {name: PairedRows(name) for name in names}
            for original, squeezed in zip(dense.rows(samples), thin.rows(samples), strict=True):
                for name in names:
                    x, fed = original[joined(dense.keys[name])], squeezed[joined(thin.keys[after[name]])]
                    if len(x) != len(fed):  # how many rows there are depends on the values before it
                        strayed.add(name)
                    if name not in strayed:
                        sums[name].add(fed, _answers(choices[name].view, x, roots[name]))
            parts.append({name: one.moments() for name, one in sums.items() if one.count})
        whole = [name for name in names if name not in strayed and all(name in part for part in parts)]
        return {name: tuple(part[name] for part in parts) for name in whole}


@dataclass(frozen=True)
class _Refit:
    """A view to be refitted.

    Attributes:
        parts: moments of every part of the samples; None where they never reach it alike in both models.
        prefix: digest of all that stands before it.
    """

    rounder: Rounder
    choice: Part
    parts: Sequence[PairedMoments] | None
    prefix: str


def _refitted(task: _Refit) -> Replacement:
    with one_thread():
        return _kept(task.rounder, task.choice) if task.parts is None else _fitted(task, task.parts)


def _fitted(task: _Refit, parts: Sequence[PairedMoments]) -> Replacement:
    rounder, choice, layer = task.rounder, task.choice, task.choice.view
    root = _root(rounder, layer)
    plain = _plain(rounder, choice)
    bias = np.zeros(layer.out_features, np.float32) if plain.bias is None else plain.bias
    kept = replace(plain, tensors={**plain.tensors, "A": _weighed(plain.A, root)}, bias=_weighed(bias, root))
    outer = replace(layer, weight=_weighed(layer.weight, root), moments=None)
    found = refit(outer, kept, parts, _apart(outer, choice.structure, rounder.seed))
    if found.ridge is None:
        return _kept(rounder, choice)
    seen = pooled(parts)
    (weight,) = refitted_weights(outer, seen, [found.ridge])
    mean = seen.mean
    if root is not None:
        from scipy.linalg import solve_triangular

        weight, mean = (solve_triangular(root.T, one, lower=False) for one in (weight, mean))
    fitted = refitted_view(layer, weight, replace(seen, mean=mean))
    after = replace(rounder, covariances=GivenMoments(task.prefix, seen.inputs), _last={})
    spectrum = _spectrum(rounder, fitted, seen.inputs)
    return after.factors(replace(fitted, moments=None), spectrum, choice.structure, choice.scheme)


def _plain(rounder: Rounder, choice: Part) -> Replacement:
    """Factors that know nothing of the prefix, in float32."""
    layer, structure = choice.view, choice.structure
    if structure.of_a_matrix:
        return factorizer(rounder.method).factors(layer, choice.spectrum, structure.ranks[0])
    return rounder.stages(layer, choice.spectrum).fitted(structure)


def _apart(layer: View, structure: Structure, seed: int) -> Fit | None:
    """How a refitted kernel is taken apart where all outputs count alike; None for low-rank factors."""
    if structure.of_a_matrix:
        return None

    def fit(weight: Array, seen: PairedMoments) -> Replacement:
        view = refitted_view(layer, weight, seen)
        spectrum = whitened.spectrum(view, structure.ranks[-1])
        return StageFit(view, spectrum, seen.inputs, "whitened", None, seed).fitted(structure)

    return fit


def _kept(rounder: Rounder, choice: Part) -> Replacement:
    with one_thread():
        return rounder.factors(choice.view, choice.spectrum, choice.structure, choice.scheme)


def _spectrum(rounder: Rounder, fitted: View, seen: Moments) -> Spectrum:
    gradient = rounder.gradients.get(fitted.name)
    method = rounder.method if gradient is not None or not rounder.gradients else "whitened"
    inputs = InputSpread(seen.variance, seen.low, seen.high, seen.row_range)
    return replace(spectrum_of(method, fitted, gradient), inputs=inputs)


def _root(rounder: Rounder, layer: View) -> Array | None:
    """L with L Lᵀ = G: outputs are compared as the method weighs them."""
    moment = rounder.gradients.get(layer.name)
    return None if moment is None else np.linalg.cholesky(damped(layer, moment))


REFITTED: Step[_Refit, Replacement] = Step("refitted", 3, _refitted, REPLACEMENT)


def check_refit(method: str, samples: Samples | None) -> Samples:
    """The calibration samples that a refit looks at.

    Raises:
        UsageError: there are none, or the method does not look at them.
    """
    if samples is None:
        raise UsageError("--refit needs calibration data", hint="give --data F.npz, or leave --refit out")
    if not factorizer(method).needs_moments:
        raise UsageError(
            f"--refit fits factors to data, and --method {method} looks at none", hint="use --method whitened"
        )
    return samples


def _answers(layer: View, x: Array, root: Array | None) -> Array:
    """(N, out) float64: what the original layer answers, as it is weighed."""
    answers = x.astype(np.float64) @ layer.weight.T.astype(np.float64)
    if layer.bias is not None:
        answers += layer.bias
    return np.asarray(answers if root is None else answers @ root)


def _weighed(matrix: Array, root: Array | None) -> Array:
    return matrix if root is None else np.asarray(root.T @ matrix)
