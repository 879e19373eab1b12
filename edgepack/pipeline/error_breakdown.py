"""What the layers of a file lose of their output, and to what: truncation, rounding of weights, the latent's grid."""

from __future__ import annotations

from edgepack.backends.backend import Writer
from edgepack.factorize.whitened import output_energy
from edgepack.methods.registry import DEFAULT, factorizer
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.layer import Layer, View
from edgepack.model.replacement import Replacement
from edgepack.model.types import LayerPlan, Moments
from edgepack.pipeline.evaluate import FileTrial
from edgepack.pipeline.evaluator import Evaluator
from edgepack.quantize.error_breakdown import Split, dense_share, split_error


def layer_splits(evaluator: Evaluator, files: Writer, trial: FileTrial) -> dict[str, Split]:
    """By layer name. Float layers that lose nothing are absent, and those whose input the data never reached."""
    parts = files.takes(evaluator.replacements.factors(trial.layers, trial.scheme, trial.distillation))
    found: dict[str, Split] = {}
    for layer, choice in zip(evaluator.layers, trial.layers, strict=True):
        if layer.name in parts:
            split = _split(evaluator, layer, parts[layer.name], choice, trial)
            if split is not None:
                found[layer.name] = split
    return found


def _split(evaluator: Evaluator, layer: Layer, part: Replacement, choice: LayerPlan, file: FileTrial) -> Split | None:
    """Of the layer as one matrix: its first view."""
    view, name = views_of([layer])[0], next(iter(kind_of(layer).views(layer)))
    moments = evaluator.replacements.rounder.covariances.of(view.name)
    if moments is None:
        return None
    covariance = moments.covariance
    energy = _energy(evaluator, view, moments)
    if not part.structure.is_low_rank:
        whole = kind_of(layer).effective(layer, part)[name]
        lost = dense_share(view.weight, whole, covariance, energy=energy)
        # Of a kernel that is taken apart nothing is known before its rounding either.
        return Split(lost, 0.0, 0.0, 0.0, 0.0) if part.structure.in_place else Split(0.0, lost, 0.0, 0.0, 0.0)
    # Of a trained or refitted pair, one by another method, or one of several with one B, nothing is known before its
    # rounding: all that it loses counts as truncation.
    trained = file.distillation is not None and file.distillation.kept
    unknown = trained or evaluator.replacements.refitter or choice.alternative or choice.shares
    exact = part if unknown else _exact(evaluator, view, part.rank)
    latent = choice.scheme_in(file.scheme).activations
    return split_error(view, exact, part, covariance, moments.mean, latent, energy=energy)


def _energy(evaluator: Evaluator, view: View, moments: Moments) -> float | None:
    """tr(W C Wᵀ) where the spectrum tells it: None where that is of something else."""
    spectrum = evaluator.spectra[view.name]
    if evaluator.analysis.method != DEFAULT or spectrum.mean is None:
        return None
    return output_energy(view, moments, spectrum)


def _exact(evaluator: Evaluator, view: View, rank: int) -> Replacement:
    """The factors before their rounding."""
    return factorizer(evaluator.analysis.method).factors(view, evaluator.spectra[view.name], rank)
