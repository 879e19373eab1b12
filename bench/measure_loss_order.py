"""Whether predicted losses put plans into the order of what they really change: random fp32 plans, written and run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case, cases

from edgepack.backends.backend import THREADS
from edgepack.backends.onnx.schemes import FP32
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.runtime import load, predict
from edgepack.data import Samples
from edgepack.methods.registry import factorizer
from edgepack.model.kinds import views_of
from edgepack.model.layer import Layer, View
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme
from edgepack.model.structure import low_rank
from edgepack.model.types import Array, Curvature, Spectrum
from edgepack.pipeline.activations import Subject
from edgepack.pipeline.datasets import load_data
from edgepack.pipeline.decompositions import decompose
from edgepack.pipeline.gradients import make_sensitivity
from edgepack.plan.candidates import break_even_rank
from edgepack.plan.loss import Wanted, layer_losses
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace, digest

METHOD = "whitened"
WEIGHT_CODES = 127
PLANS, QUICK_PLANS = 20, 8
VALIDATION_SAMPLES = 400
SEED = 0
SHARE = 0.25
FEW_LAYERS = 4
"""A model of so few layers has all of them factored: a quarter would leave nothing to put into an order."""
LEAST_RANK = 4

Table = Mapping[str, Array]
"""By layer name: predicted loss of rank 0 … k in fp32."""


@dataclass(frozen=True)
class _Model:
    """A model opened, its layers decomposed, and the samples that plans are compared on."""

    opened: Model
    spectra: Mapping[str, Spectrum]
    curvature: Table
    energy: Table
    samples: Samples
    metric: str


def measure_loss_order(names: Sequence[str], *, quick: bool = False) -> dict[str, Any]:
    """Spearman's correlation of predicted and real change over random plans, with and without output gradients."""
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as folder:
        rows = [_row(case, Path(folder), QUICK_PLANS if quick else PLANS) for case in cases(names, Path(folder))]
    return {"plans": QUICK_PLANS if quick else PLANS, "rows": rows}


def _row(case: Case, work: Path, plans: int) -> dict[str, Any]:
    from scipy.stats import spearmanr

    model = _prepared(case, work)
    files, change = OnnxWriter(model.opened.content, None, qmax=WEIGHT_CODES), CHANGES[model.metric]
    files.write_dense(work / "dense.onnx")
    reference = predict(load(work / "dense.onnx", "onnx", threads=THREADS), model.samples)
    drawn = [_drawn(model.opened.layers, rng) for rng in np.random.default_rng(SEED).spawn(plans)]
    real = []
    for ranks in drawn:
        files.write(_factors(model, ranks), FileScheme.of(FP32), work / "plan.onnx")
        real.append(change(reference, predict(load(work / "plan.onnx", "onnx", threads=THREADS), model.samples)))
    predicted = {
        name: [sum(float(table[layer][rank]) for layer, rank in ranks.items()) for ranks in drawn]
        for name, table in (("curvature", model.curvature), ("energy", model.energy))
    }
    return {
        "model": case.name,
        "change": "KL divergence" if change is kl_divergence else "1 − cosine",
        "samples": len(model.samples),
        "layers": len(model.opened.layers),
        "factored": round(sum(map(len, drawn)) / plans, 1),
        "least_change": float(f"{min(real):.3g}"),
        "largest_change": float(f"{max(real):.3g}"),
        **{name: round(float(spearmanr(values, real).statistic), 3) for name, values in predicted.items()},
    }


def _prepared(case: Case, work: Path) -> _Model:
    """As a build prepares it, and no more than is needed here.

    Raises:
        ValueError: torch finds no gradients at the layers of the model.
    """
    workspace = Workspace(Cache(), work, SEED)
    opened = open_model(case.model, work)
    data = load_data(case.data, opened, case.model, SEED)
    key = digest(opened.sha256, data.digest())
    subject = Subject(opened, data.calibration, key)
    found, _ = decompose(subject, METHOD, workspace)
    spectra = {view.name: spectrum for view, spectrum in zip(subject.views, found, strict=True)}
    metric = "classes" if data.validation.labels is not None else "cosine"
    sensitivity = make_sensitivity(subject, spectra, metric, digest(key, "order of plans"), workspace)
    if not sensitivity.known:
        raise ValueError(f"{case.name}: no gradients: {sensitivity.problem}")
    curvature = {}
    for view in subject.views:
        curvature[view.name] = _fp32_losses(view, spectra[view.name], sensitivity.curvatures[view.name])
    energy = {view.name: _fp32_losses(view, spectra[view.name], None) for view in subject.views}
    return _Model(opened, spectra, curvature, energy, data.validation.head(VALIDATION_SAMPLES), metric)


def _fp32_losses(layer: View, spectrum: Spectrum, curvature: Curvature | None) -> Array:
    """(k + 1,), with infinity for rank 0, which no plan takes."""
    ranks = range(1, len(spectrum.energies) + 1)

    def unused(rank: int) -> Replacement:
        raise ValueError(f"factors of rank {rank} were asked for, though nothing is quantized")

    found = layer_losses(layer, spectrum, curvature, Wanted((FP32,), ranks), unused, qmax=WEIGHT_CODES)
    return np.array([np.inf, *(found[FP32, low_rank(rank)] for rank in ranks)])


def _drawn(layers: Sequence[Layer], rng: np.random.Generator) -> dict[str, int]:
    """Layer name → rank: about a quarter of the layers, at ranks up to the one at which a pair stops to save."""
    share = 1.0 if len(layers) <= FEW_LAYERS else SHARE
    ranks: dict[str, int] = {}
    while not ranks:
        for layer in layers:
            if rng.uniform() < share:
                most = break_even_rank(layer.out_features, layer.in_features)
                ranks[layer.name] = int(rng.integers(min(LEAST_RANK, most), most, endpoint=True))
    return ranks


def _factors(model: _Model, ranks: Mapping[str, int]) -> dict[str, Replacement]:
    factors = factorizer(METHOD).factors
    layers = {view.name: view for view in views_of(model.opened.layers)}
    return {name: factors(layers[name], model.spectra[name], rank) for name, rank in ranks.items()}


def kl_divergence(reference: Array, outputs: Array) -> float:
    """Mean KL divergence of (N, classes) logits' distributions from those of the reference, in nats."""
    from scipy.special import log_softmax

    ours, theirs = (log_softmax(logits.astype(np.float64), axis=-1) for logits in (outputs, reference))
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=-1).mean())


def cosine_distance(reference: Array, outputs: Array) -> float:
    """Mean of 1 − cosine between the rows of (N, …) outputs and of the reference."""
    ours, theirs = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (outputs, reference))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(1 - (np.einsum("ij,ij->i", ours, theirs) / norms).mean())


CHANGES: Mapping[str, Callable[[Array, Array], float]] = {"classes": kl_divergence, "cosine": cosine_distance}
