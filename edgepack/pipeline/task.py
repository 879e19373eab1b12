"""What every part of a build works on: one model, one target, one set of options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from edgepack.data import example
from edgepack.executor import one_thread
from edgepack.inference import load, rename
from edgepack.model.kinds import views_of
from edgepack.model.layer import Layer, View
from edgepack.model.replacement import Replacement, of_structure
from edgepack.model.scheme import FileScheme, Format, Scheme
from edgepack.model.structure import Structure
from edgepack.pipeline.alternatives import Alternatives
from edgepack.pipeline.attempt import Prover
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.recovering import Outcome, Recovery
from edgepack.pipeline.refitting import Refitter
from edgepack.pipeline.rounding import Rounder
from edgepack.plan.cost import interleaved_s
from edgepack.targets import HOST
from edgepack.types import Aim, LayerPlan, Spectrum
from edgepack.workspace import Cache, Progress, digest, file_digest, tool_versions


@dataclass
class Task:
    """One build's model and tools.

    Attributes:
        key: digest of all that decides what a plan's file answers: model, data, method, metric, seed, arithmetic.
        rounder: makes factors.
        work: temporary folder.
        warnings: what the user should hear; each once.
        refitter: refits the factors of a plan whose file is made; None to take them as they are.
        recovery: trains them; None for no training.
        alternatives: what other methods make of the layers.
        aim: what is least in the chosen plan.
    """

    options: BuildOptions
    layers: Sequence[Layer]
    spectra: Sequence[Spectrum]
    method: str
    prover: Prover
    cache: Cache
    key: str
    rounder: Rounder
    work: Path
    progress: Progress
    warnings: list[str] = field(default_factory=list)
    refitter: Refitter | None = None
    recovery: Recovery | None = None
    alternatives: Alternatives = field(default_factory=Alternatives)
    aim: Aim = "latency"

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The matrices of the layers, in the order of `spectra`."""
        return views_of(self.layers)

    @property
    def measures_here(self) -> bool:
        """Whether the target is this machine, so that latencies of files can be measured during the build."""
        return self.options.target.name == HOST

    def warn(self, message: str) -> None:
        """Keeps a warning, once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def draft(self, plan: Sequence[LayerPlan], scheme: FileScheme) -> dict[str, Replacement]:
        """What the plan writes for its layers, quickly: pairs and 8-bit weights are left to be rounded to nearest.

        With 4 bits the difference is large: there dense layers are rounded as in the end, once for all plans.
        """
        return self._each(plan, scheme, self.rounder.draft, partial(self.rounder.dense, only_bits=4))

    def factors(self, plan: Sequence[LayerPlan], scheme: FileScheme) -> dict[str, Replacement]:
        """What the plan writes for its layers, on the grids of their schemes; `scheme` is that of the file."""
        outcome = self.recovered(plan, scheme)
        if outcome is None:
            return self._untrained(plan, scheme)
        trained = outcome.factors

        def pair(layer: View, spectrum: Spectrum, structure: Structure, own: Scheme) -> Replacement:
            if layer.name in trained:
                return self.rounder.trained(layer, trained[layer.name], own)
            return self.rounder.factors(layer, spectrum, structure, own)

        return self._each(plan, scheme, pair, self.rounder.dense)

    def recovered(self, plan: Sequence[LayerPlan], scheme: FileScheme) -> Outcome | None:
        """What training made of the plan's pairs; None without `--recover`, and for a plan without pairs.

        A pair that stands beside a dense matrix is not trained.
        """
        own = [layer for layer in plan if layer.alternative is None]
        pairs = {layer.layer: layer.scheme_in(scheme) for layer in own if layer.structure.is_low_rank}
        if self.recovery is None or not pairs:
            return None
        begin = self.draft(plan, scheme) if self.refitter is None else self._untrained(plan, scheme)
        start = {
            name: pair for name, pair in of_structure(begin, "low-rank", "low-rank-correction").items() if name in pairs
        }
        int8 = all(own.per_channel_int8 for own in pairs.values())
        return self.recovery.of(start, int8=int8, largest=min(map(self.rounder.largest_of, pairs.values())))

    def _untrained(self, plan: Sequence[LayerPlan], scheme: FileScheme) -> dict[str, Replacement]:
        if self.refitter is None:
            return self._each(plan, scheme, self.rounder.factors, self.rounder.dense)
        refitted = self.refitter.factors(self.views, self.spectra, plan, scheme)
        return self._each(plan, scheme, lambda layer, *_: refitted[layer.name], self.rounder.dense)

    def _each(
        self,
        plan: Sequence[LayerPlan],
        scheme: FileScheme,
        pair: Callable[[View, Spectrum, Structure, Scheme], Replacement],
        dense: Callable[[View, Scheme], Replacement | None],
    ) -> dict[str, Replacement]:
        made: dict[str, Replacement] = {}
        with one_thread():  # the same bytes on machines with more cores
            for layer, spectrum, choice in zip(self.views, self.spectra, plan, strict=True):
                own = choice.scheme_in(scheme)
                part: Replacement | None
                if choice.alternative is not None:
                    part = self.alternatives.part(layer.name, choice.alternative)
                else:
                    way = choice.structure
                    part = pair(layer, spectrum, way, own) if way.ranks else dense(layer, own)
                if part is not None:
                    made[layer.name] = part
        return made

    def latencies(self, paths: Mapping[str, Path], fmt: Format) -> dict[str, float]:
        """Seconds per inference of files on this machine: medians of `turns_s`."""
        return {name: float(np.median(turns)) for name, turns in self.turns_s(paths, fmt).items()}

    def turns_s(self, paths: Mapping[str, Path], fmt: Format) -> dict[str, list[float]]:
        """Seconds per inference of files on this machine, turn by turn; kept in the cache."""
        files = [[name, file_digest(path)] for name, path in paths.items()]
        key = digest("latency", 2, files, repr(self.options.target), tool_versions())

        def measure() -> dict[str, list[float]]:
            runs = {}
            for name, path in paths.items():
                model = load(path, fmt, exact=False)
                feed = example(rename(self.prover.guard.samples, model.inputs), model.inputs, self.options.seed)
                runs[name] = lambda model=model, feed=feed: model.run(feed)
            return interleaved_s(runs)

        return dict(self.cache.record("latency", key, measure))
