"""What a plan writes for the layers of a model: on their grids, refitted, trained, or by another method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from edgepack.backends.schemes import FP32
from edgepack.distill.fake import rounding_of
from edgepack.model.kinds import kind_of, recurrent, view_name
from edgepack.model.layer import Layer, View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import Structure
from edgepack.model.types import LayerPlan, Spectrum
from edgepack.pipeline.analysis import Analysis
from edgepack.pipeline.distill import Distillation, Outcome
from edgepack.pipeline.method_fits import Alternatives
from edgepack.pipeline.refit import Refitter
from edgepack.pipeline.rounding import Part, Rounder
from edgepack.pipeline.shared_input import Group
from edgepack.workers import one_thread


@dataclass(frozen=True)
class Replacements:
    """Makes what is written for layers.

    Attributes:
        rounder: of factors and dense weights.
        refitter: refits the factors of a plan whose file is made; None to take them as they are.
        distillation: trains them; None for no training.
        alternatives: what other methods make of the layers.
        groups: of layers that can have one B, by their names.
    """

    analysis: Analysis
    rounder: Rounder
    refitter: Refitter | None
    distillation: Distillation | None
    alternatives: Alternatives
    groups: Mapping[tuple[str, ...], Group] = field(default_factory=dict)

    def draft(self, plan: Sequence[LayerPlan], scheme: FileScheme) -> dict[str, Replacement]:
        """What the plan writes for its layers, quickly: pairs are rounded to nearest."""
        return self._each(plan, scheme, self.rounder.draft, self.rounder.dense_draft)

    def factors(
        self, plan: Sequence[LayerPlan], scheme: FileScheme, outcome: Outcome | None = None
    ) -> dict[str, Replacement]:
        """What the plan writes for its layers, on the grids of their schemes.

        Args:
            scheme: of the file.
            outcome: of training the plan's pairs; None where they were not trained.
        """
        if outcome is None or not outcome.kept:
            return self._untrained(plan, scheme)
        trained = outcome.factors

        def pair(view: View, spectrum: Spectrum, structure: Structure, own: Scheme) -> Replacement:
            if view.name in trained:
                return self.rounder.trained(trained[view.name], own)
            return self.rounder.factors(view, spectrum, structure, own)

        return self._each(plan, scheme, pair, self.rounder.dense)

    def distilled(self, plan: Sequence[LayerPlan], scheme: FileScheme) -> Outcome | None:
        """What training made of the plan's pairs; None without `--distill`, and for a plan without pairs.

        A pair that stands beside a dense matrix is not trained, nor one in front of recurrent cells: in torch their
        weights are inside of an operator.
        """
        kinds = {layer.name: layer.kind for layer in self.analysis.layers}
        own = [layer for layer in plan if layer.alternative is None and kinds[layer.layer] != recurrent.NAME]
        pairs = {layer.layer: layer.scheme_in(scheme) for layer in own if layer.structure.in_place}
        if self.distillation is None or not pairs:
            return None
        begin = self._begin(plan, scheme) if self.refitter is None else self._untrained(plan, scheme)
        start = {name: pair for name, pair in begin.items() if name in pairs}
        roundings = {
            name: rounding_of(pairs[name], pair, qmax=self.rounder.qmax)
            for name, pair in start.items()
            if not pairs[name].is_float
        }
        return self.distillation.of(start, roundings)

    def _begin(self, plan: Sequence[LayerPlan], scheme: FileScheme) -> dict[str, Replacement]:
        """The pairs that training takes, on no grid, for it rounds them itself."""

        def pair(view: View, spectrum: Spectrum, structure: Structure, own: Scheme) -> Replacement | None:
            floats = FP32[own.backend]
            return self.rounder.factors(view, spectrum, structure, floats) if structure.in_place else None

        return self._each(plan, scheme, pair, lambda view, own: None)

    def _untrained(self, plan: Sequence[LayerPlan], scheme: FileScheme) -> dict[str, Replacement]:
        if self.refitter is None:
            return self._each(plan, scheme, self.rounder.factors, self.rounder.dense)
        parts = (
            part
            for layer, choice in zip(self.analysis.layers, plan, strict=True)
            for part in self._parts(layer, choice, scheme).values()
        )
        refitted = self.refitter.factors(parts)
        return self._each(plan, scheme, lambda view, *_: refitted[view.name], self.rounder.dense)

    def _each(
        self,
        plan: Sequence[LayerPlan],
        scheme: FileScheme,
        pair: Callable[[View, Spectrum, Structure, Scheme], Replacement | None],
        dense: Callable[[View, Scheme], Replacement | None],
    ) -> dict[str, Replacement]:
        made: dict[str, Replacement] = {}
        with one_thread():  # the same bytes on machines with more cores
            for layer, choice in zip(self.analysis.layers, plan, strict=True):
                if choice.shares:
                    if layer.name not in made:
                        made |= self._together(choice, scheme, pair)
                    continue
                if choice.alternative is not None:
                    made[layer.name] = self.alternatives.part(layer.name, choice.alternative)
                    continue
                found: dict[str, Replacement] = {}
                parts = self._parts(layer, choice, scheme)
                for name, part in parts.items():
                    way, own = part.structure, part.scheme
                    one = pair(part.view, part.spectrum, way, own) if way.ranks else dense(part.view, own)
                    if one is not None:
                        found[name] = one
                if len(found) == len(parts):
                    made[layer.name] = kind_of(layer).replace(layer, choice.structure, found)
        return made

    def _together(
        self,
        choice: LayerPlan,
        scheme: FileScheme,
        pair: Callable[[View, Spectrum, Structure, Scheme], Replacement | None],
    ) -> dict[str, Replacement]:
        """What the plan makes of all layers that have one B with this one, by name."""
        group = self.groups[choice.shares]
        stacked = pair(group.view, group.spectrum, choice.structure, choice.scheme_in(scheme))
        return {} if stacked is None else group.parts(stacked)

    def _parts(self, layer: Layer, choice: LayerPlan, scheme: FileScheme) -> dict[str, Part]:
        """By view, what the plan makes of a layer."""
        wanted = kind_of(layer).parts(layer, choice.structure)
        names = {view: view_name(layer.name, view) for view in wanted}
        return {
            view: Part(self._views[name], self.analysis.spectra[name], wanted[view], choice.scheme_in(scheme))
            for view, name in names.items()
        }

    @cached_property
    def _views(self) -> Mapping[str, View]:
        return {view.name: view for view in self.analysis.views}
