"""Factors refitted on what the compressed prefix really feeds them, depth by depth: `--refit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.data import Samples
from edgepack.errors import UsageError
from edgepack.executor import one_thread
from edgepack.factorize import factorizer, spectrum_of
from edgepack.factorize.paired import PairedMoments, PairedRows, pooled
from edgepack.factorize.refit import refit, refitted_weights
from edgepack.factorize.two_sided import damped
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import Structure
from edgepack.pipeline.covariances import Covariances
from edgepack.pipeline.moments import THREADS
from edgepack.pipeline.observe import Observation, joined
from edgepack.pipeline.parts import packed_part, unpacked_pair
from edgepack.pipeline.rounding import Rounder
from edgepack.types import Array, InputSpread, LayerPlan, Moments, Spectrum
from edgepack.workspace import Progress, digest

if TYPE_CHECKING:
    import onnx_ir as ir

PARTS = 4
FEWEST = 32
"""Samples: parts of fewer could not say which refit helps."""
WIDEST = 2048
"""Inputs of the widest layer that is refitted: every part has matrices of that size."""
VERSION = 1
_Choice = tuple[View, Spectrum, Structure, Scheme]


@dataclass
class Fitted(Covariances):
    """Covariances of what refitted layers are fed."""

    fitted: Mapping[str, Moments] = field(default_factory=dict)

    def of(self, name: str) -> Moments | None:
        """Moments of one layer."""
        return self.fitted.get(name)


@dataclass
class Refitter:
    """Refits the factors of a plan; what comes out is kept in the cache, layer by layer.

    Every layer behind a factored one is fitted anew: from the inputs that it gets with all factors before it in place,
    on their grids, to the outputs that the original gives. Layers of one depth share two passes over the calibration
    data, one through each model.

    Attributes:
        rounder: of the factors that nothing was refitted in.
    """

    model: ir.Model
    rounder: Rounder
    calibration: Samples
    progress: Progress

    def factors(
        self, layers: Sequence[View], spectra: Sequence[Spectrum], plan: Sequence[LayerPlan], scheme: FileScheme
    ) -> dict[str, Replacement]:
        """Factors of every layer that the plan factors, on the grids of its scheme; `scheme` is the file's."""
        from edgepack.onnxgraph.depth import depths

        wanted = {
            layer.name: (layer, spectrum, choice.structure, choice.scheme_in(scheme))
            for layer, spectrum, choice in zip(layers, spectra, plan, strict=True)
            if choice.structure.ranks
        }
        level = depths(self.model, wanted)
        # The first ones are fed what they always were; what cannot be told apart, or is too large, stays as well.
        done = {name: self._kept(choice) for name, choice in wanted.items() if not self._fits(choice, level.get(name))}
        last = max(level.values(), default=0)
        for depth in range(1, last + 1):
            self.progress("refit", depth - 1, last)
            own = {name: wanted[name] for name in wanted if name not in done and level[name] == depth}
            done |= self._level(own, {name: done[name] for name in sorted(done) if level.get(name, depth) < depth})
        return {name: done[name] for name in wanted}

    def _fits(self, choice: _Choice, depth: int | None) -> bool:
        layer, spectrum, structure, _ = choice
        few = len(self.calibration) < FEWEST
        return (
            bool(depth)
            and not few
            and spectrum.mean is not None
            and layer.in_features <= WIDEST
            and structure.is_low_rank
        )

    def _kept(self, choice: _Choice) -> Replacement:
        with one_thread():
            layer, spectrum, structure, scheme = choice
            return self.rounder.factors(layer, spectrum, structure, scheme)

    def _level(self, choices: Mapping[str, _Choice], before: Mapping[str, Replacement]) -> dict[str, Replacement]:
        cache, rounder = self.rounder.covariances.cache, self.rounder
        prefix = digest("refit", VERSION, PARTS, rounder.covariances.key, *_parts(before))
        keys = {
            name: digest(
                prefix,
                rounder.method,
                rounder.seed,
                rounder.largest,
                name,
                str(structure),
                scheme.key,
                _weighing(spectrum),
            )
            for name, (_, spectrum, structure, scheme) in choices.items()
        }
        found = {name: known for name, key in keys.items() if (known := cache.known_arrays("refitted", key))}
        missing = {name: choice for name, choice in choices.items() if name not in found}
        if missing:
            with one_thread():
                seen = self._observed(missing, before)
                for name, choice in missing.items():
                    made = self._refitted(choice, seen[name], prefix) if name in seen else self._kept(choice)
                    found[name] = cache.keep_arrays("refitted", keys[name], packed_part(made))
        return {name: unpacked_pair(found[name]) for name in choices}

    def _observed(
        self, choices: Mapping[str, _Choice], before: Mapping[str, Replacement]
    ) -> dict[str, tuple[PairedMoments, ...]]:
        """By layer name, moments of every part; layers that a part never reached, or with other rows, are absent."""
        from edgepack.onnxgraph.rewrite import names_after, with_factors

        dense = Observation(self.model, choices, threads=THREADS)
        compressed_model = with_factors(self.model, before)
        after = {name: own[0] for name, own in names_after(self.model, compressed_model, before).items()}
        thin = Observation(compressed_model, [after[name] for name in choices], threads=THREADS)
        names = [name for name in choices if name in dense.keys and after[name] in thin.keys]
        strayed: set[str] = set()
        roots = {name: self._root(choices[name][0]) for name in names}
        parts = []
        for part in range(PARTS):
            samples = self.calibration.take(np.arange(part, len(self.calibration), PARTS))
            sums = {name: PairedRows(name) for name in names}
            for original, compressed in zip(dense.rows(samples), thin.rows(samples), strict=True):
                for name in names:
                    x, fed = original[joined(dense.keys[name])], compressed[joined(thin.keys[after[name]])]
                    if len(x) != len(fed):  # how many rows there are depends on the values before it
                        strayed.add(name)
                    if name not in strayed:
                        sums[name].add(fed, _answers(choices[name][0], x, roots[name]))
            parts.append({name: one.moments() for name, one in sums.items() if one.count})
        whole = [name for name in names if name not in strayed and all(name in part for part in parts)]
        return {name: tuple(part[name] for part in parts) for name in whole}

    def _root(self, layer: View) -> Array | None:
        """L with L Lᵀ = G: outputs are compared as the method weighs them."""
        moment = self.rounder.gradients.get(layer.name)
        return None if moment is None else np.linalg.cholesky(damped(layer, moment))

    def _refitted(self, choice: _Choice, parts: Sequence[PairedMoments], prefix: str) -> Replacement:
        layer, spectrum, structure, scheme = choice
        rounder, root = self.rounder, self._root(layer)
        plain = factorizer(rounder.method).factors(layer, spectrum, structure.ranks[0])
        bias = np.zeros(layer.out_features, np.float32) if plain.bias is None else plain.bias
        kept = low_rank(_weighed(plain.A, root), plain.B, _weighed(bias, root))
        outer = replace(layer, weight=_weighed(layer.weight, root), moments=None)
        found = refit(outer, kept, parts)
        if found.ridge is None:
            return self._kept(choice)
        seen = pooled(parts)
        (weight,) = refitted_weights(outer, seen, [found.ridge])
        mean = seen.mean
        if root is not None:
            from scipy.linalg import solve_triangular

            weight, mean = (solve_triangular(root.T, one, lower=False) for one in (weight, mean))
        fitted = replace(
            layer,
            weight=weight.astype(np.float32),
            bias=(mean - weight @ seen.inputs.mean).astype(np.float32),
            moments=seen.inputs,
        )
        given = self.rounder.covariances
        covariances = Fitted(
            *(given.model, given.names, given.calibration, prefix, given.cache, given.progress, given.workers),
            fitted={layer.name: seen.inputs},
        )
        return replace(rounder, covariances=covariances, _last={}).factors(
            replace(fitted, moments=None), self._spectrum(fitted, seen.inputs), structure, scheme
        )

    def _spectrum(self, fitted: View, seen: Moments) -> Spectrum:
        gradient = self.rounder.gradients.get(fitted.name)
        method = self.rounder.method if gradient is not None or not self.rounder.gradients else "whitened"
        inputs = InputSpread(seen.variance, seen.low, seen.high, seen.row_range)
        return replace(spectrum_of(method, fitted, gradient), inputs=inputs)


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


def _weighing(spectrum: Spectrum) -> str:
    return "" if spectrum.dual is None else digest(spectrum.dual)


def _parts(factors: Mapping[str, Replacement]) -> Iterator[object]:
    for name in sorted(factors):
        yield from (name, *packed_part(factors[name]).values())
