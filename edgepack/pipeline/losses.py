"""Predicted losses of every candidate of every layer, each layer once and kept in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepack.backends.schemes import scheme_of_key
from edgepack.methods.registry import factorizer
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure, structure_of
from edgepack.model.types import Curvature, Spectrum
from edgepack.pipeline.analysis import Analysis
from edgepack.plan.loss import Wanted, layer_losses
from edgepack.quantize.rotation import balanced
from edgepack.workspace import Keyed, Step, Workspace, record_store

Losses = Mapping[str, Mapping[tuple[Scheme, Structure], float]]
"""By view name: (scheme, structure of its matrix) → predicted loss."""


def predict_losses(analysis: Analysis, wanted: Mapping[str, Wanted], workspace: Workspace) -> Losses:
    """Losses of the wanted ways to write each view.

    Where gradients of every layer are not known, a loss is a share of a layer's output energy.

    Args:
        wanted: by view name.
    """
    sensitivity, settings = analysis.sensitivity, [analysis.method, workspace.seed, analysis.qmax]

    def entry(layer: View, spectrum: Spectrum) -> Keyed[_Layer]:
        own = wanted[layer.name]
        key = [analysis.key, layer.name, own, settings, sensitivity.by]
        return Keyed(
            key,
            lambda: _Layer(
                layer,
                spectrum,
                sensitivity.curvatures.get(layer.name),
                own,
                analysis.method,
                workspace.seed,
                analysis.qmax,
            ),
        )

    entries = [entry(view, analysis.spectra[view.name]) for view in analysis.views]
    losses = workspace.map(LOSSES, entries, "predict losses")
    return {layer.name: own for layer, own in zip(analysis.views, losses, strict=True)}


def factors_at(layer: View, spectrum: Spectrum, rank: int, method: str, seed: int) -> Replacement:
    """The layer's factors at a rank, in the basis that quantizes well."""
    return balanced(factorizer(method).factors(layer, spectrum, rank), spectrum, seed=seed)


@dataclass(frozen=True)
class _Layer:
    """A layer whose losses are to be predicted; see `layer_losses`."""

    layer: View
    spectrum: Spectrum
    curvature: Curvature | None
    wanted: Wanted
    method: str
    seed: int
    qmax: int


def _losses(task: _Layer) -> dict[tuple[Scheme, Structure], float]:
    def factors(rank: int) -> Replacement:
        return factors_at(task.layer, task.spectrum, rank, task.method, task.seed)

    return layer_losses(task.layer, task.spectrum, task.curvature, task.wanted, factors, qmax=task.qmax)


def _cost(task: _Layer) -> float:
    """Floating-point operations, roughly: the factors of every rank, and their products with the gradients."""
    layer, wanted = task.layer, task.wanted
    sides = layer.out_features + layer.in_features
    per_rank = sum(2.0 * rank * rank * sides for rank in wanted.ranks) + 2.0 * layer.weight.size * sum(
        wanted.corrections
    )
    return per_rank + (0.0 if task.curvature is None else 2.0 * layer.out_features**2 * sum(wanted.ranks))


def _packed(losses: Mapping[tuple[Scheme, Structure], float]) -> list[tuple[str, str, int | None, float]]:
    return [(scheme.key, way.name, way.rank, loss) for (scheme, way), loss in losses.items()]


def _unpacked(record: Sequence[tuple[str, str, int | None, float]]) -> dict[tuple[Scheme, Structure], float]:
    return {(scheme_of_key(key), structure_of(name, rank)): loss for key, name, rank, loss in record}


LOSSES: Step[_Layer, dict[tuple[Scheme, Structure], float]] = Step(
    "losses", 6, _losses, record_store(_packed, _unpacked), cost=_cost
)
