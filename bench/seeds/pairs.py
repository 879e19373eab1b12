"""Pairs: edgepack's default, and what the pairs of others become."""

from __future__ import annotations

from typing import Any

from accuracy.pairs import rounded, rounded_product
from accuracy.study import seen_spectrum

from edgepack.backends.onnx.schemes import INT8_DYNAMIC
from edgepack.distill import Epochs, distill_factors, rounding_of
from edgepack.distill.distil import Training
from edgepack.factorize import svd, whitened
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.plan.candidates import asked_rank
from edgepack.quantize.rotation import balanced
from seeds.lab import LARGEST, Lab


def ranks(layers: tuple[View, ...], share: float) -> dict[str, int]:
    """By layer name, where a pair of that share of the weights has fewer of them."""
    asked = {layer.name: asked_rank(layer.out_features, layer.in_features, share) for layer in layers}
    return {name: rank for name, rank in asked.items() if isinstance(rank, int)}


def default_pairs(lab: Lab, asked: dict[str, int], epochs: int = 0) -> dict[str, Replacement]:
    """Centred whitening, rounded to int8 as a build rounds; with epochs, recovered before that."""
    layers = {layer.name: layer for layer in lab.layers}
    spectra = {name: seen_spectrum(layers[name]) for name in asked}
    if not epochs:
        return {name: rounded(layers[name], spectra[name], rank, INT8_DYNAMIC) for name, rank in asked.items()}
    start = {
        name: balanced(whitened.factors(layers[name], spectra[name], rank), spectra[name], seed=0)
        for name, rank in asked.items()
    }
    found = distill_factors(
        program(lab),
        lab.opened.layers,
        start,
        {lab.opened.inputs[0].name: lab.images},
        {n: rounding_of(INT8_DYNAMIC, p, qmax=LARGEST) for n, p in start.items()},
        training=Training(True, Epochs(epochs), seed=0, threads=1),
    )
    return {name: rounded_product(layers[name], pair, INT8_DYNAMIC) for name, pair in found.factors.items()}


def plain_pairs(lab: Lab, asked: dict[str, int]) -> dict[str, Replacement]:
    """Truncated SVD, without data."""
    layers = {layer.name: layer for layer in lab.layers}
    return {name: svd.factors(layers[name], svd.spectrum(layers[name]), rank) for name, rank in asked.items()}


def program(lab: Lab) -> Any:
    """The model in torch."""
    from edgepack.sources.torch import load_pt2

    return load_pt2(lab.work / "source.pt2")
