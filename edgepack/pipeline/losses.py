"""Predicted losses of every candidate of every layer, each layer once and kept in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgepack.backends.schemes import CORRECTED, scheme_of_key
from edgepack.executor import Workers, map_tasks
from edgepack.factorize import factorizer
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Structure, structure_of
from edgepack.pipeline.sensitivity import Sensitivity
from edgepack.plan.loss import layer_losses
from edgepack.quantize.gauge import balanced
from edgepack.types import Array, Spectrum
from edgepack.workspace import Cache, Progress, digest

Losses = Mapping[str, Mapping[tuple[Scheme, Structure], float]]
"""By layer name: (scheme, structure) → predicted loss."""
VERSION = 4
_Ranks = tuple[int, ...]
_Task = tuple[View, Spectrum, Array | None, Array | None, tuple[Scheme, ...], _Ranks, _Ranks, str, int, int]


def predict_losses(
    layers: Sequence[View],
    spectra: Sequence[Spectrum],
    sensitivity: Sensitivity,
    schemes: tuple[Scheme, ...],
    ranks: Mapping[str, tuple[int, ...]],
    *,
    residual: Mapping[str, tuple[int, ...]],
    method: str,
    seed: int,
    largest: int,
    key: str,
    cache: Cache,
    workers: Workers,
    progress: Progress,
) -> Losses:
    """Losses of every scheme, dense and at the given ranks, and of dense matrices with a pair beside them.

    Args:
        sensitivity: what the layers' outputs matter; where it is not known, a loss is a share of a layer's output
            energy.
        ranks: to look at, by layer name.
        residual: ranks of pairs beside the dense matrix, by layer name.
        key: digest of the model, the data, and how the spectra came about.
    """
    tasks: list[_Task] = []
    keys: list[str] = []
    found: dict[str, Mapping[tuple[Scheme, Structure], float]] = {}
    for layer, spectrum in zip(layers, spectra, strict=True):
        offered = ranks[layer.name], residual[layer.name]
        names = [scheme.key for scheme in schemes]
        parts = [layer.name, names, offered, method, seed, largest, sensitivity.known]
        entry = digest("loss", VERSION, key, *parts)
        known = cache.known("losses", entry)
        if known is not None:
            found[layer.name] = _unpacked(known)
            continue
        keys.append(entry)
        one = sensitivity.curvatures.get(layer.name)
        moment, truncation = (None, None) if one is None else (one.moment, one.truncation)
        tasks.append((layer, spectrum, moment, truncation, schemes, *offered, method, seed, largest))
    costs = [_cost(task) for task in tasks]
    for done, (index, losses) in enumerate(map_tasks(workers, _losses, tasks, costs), start=1):
        progress("predict losses", done, len(tasks))
        cache.keep("losses", keys[index], _packed(losses))
        found[tasks[index][0].name] = losses
    return found


def factors_at(layer: View, spectrum: Spectrum, rank: int, method: str, seed: int) -> Replacement:
    """The layer's factors at a rank, in the basis that quantizes well."""
    return balanced(factorizer(method).factors(layer, spectrum, rank), spectrum, seed=seed)


def _losses(
    layer: View,
    spectrum: Spectrum,
    gradient: Array | None,
    truncation: Array | None,
    schemes: tuple[Scheme, ...],
    ranks: _Ranks,
    residual: _Ranks,
    method: str,
    seed: int,
    largest: int,
) -> dict[tuple[Scheme, Structure], float]:
    def factors(rank: int) -> Replacement:
        return factors_at(layer, spectrum, rank, method, seed)

    return layer_losses(
        *(layer, spectrum, gradient, schemes, ranks, factors),
        largest=largest,
        truncation=truncation,
        residual=residual,
        corrected=CORRECTED["onnx"],
    )


def _cost(task: _Task) -> float:
    """Floating-point operations, roughly: the factors of every rank, and their products with the gradients."""
    layer, _, gradient, _, _, ranks, residual, *_ = task
    sides = layer.out_features + layer.in_features
    per_rank = sum(2.0 * rank * rank * sides for rank in ranks) + 2.0 * layer.weight.size * sum(residual)
    return per_rank + (0.0 if gradient is None else 2.0 * layer.out_features**2 * sum(ranks))


def _packed(losses: Mapping[tuple[Scheme, Structure], float]) -> list[tuple[str, str, int | None, float]]:
    return [(scheme.key, way.name, way.rank, loss) for (scheme, way), loss in losses.items()]


def _unpacked(record: Sequence[tuple[str, str, int | None, float]]) -> dict[tuple[Scheme, Structure], float]:
    return {(scheme_of_key(key), structure_of(name, rank)): loss for key, name, rank, loss in record}
