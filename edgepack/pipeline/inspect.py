"""`edgepack inspect`: what there is to gain in a model, in seconds, without building anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from edgepack.backends.backend import THREADS
from edgepack.errors import ModelError
from edgepack.methods.registry import needs_gradients
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.types import Array, Spectrum
from edgepack.natives import native
from edgepack.pipeline.activations import Subject, row_counts
from edgepack.pipeline.datasets import choose_method, load_data, make_guard
from edgepack.pipeline.decompositions import decompose
from edgepack.pipeline.gradients import weighed
from edgepack.plan.candidates import break_even_rank
from edgepack.sources import open_model
from edgepack.workspace import Cache, Progress, digest, open_workspace, silent

Energy = Literal["weight", "output", "weighed output"]
"""What the error curve of a layer is of: its weights alone, its output on the calibration data, or that output weighed
by gradients of the model's answer."""


@dataclass(frozen=True)
class LayerReport:
    """One linear layer.

    Attributes:
        rows: rows it multiplies in one inference of the example inputs; None where its input was never seen.
        bytes_share: of all weight bytes of the model.
        macs_share: of the multiplications of all linear layers; None where a layer's rows are unknown.
        break_even: largest rank at which a pair has fewer weights and multiplications than the dense layer of the same
            precision, fp32 or int8.
        break_even_int8_int4: likewise for an int8 pair in bytes against a dense int4 layer.
        energy: what the ranks keep a share of.
        rank_90, rank_99: ranks that keep 90 % and 99 % of it.
    """

    name: str
    op: str
    out_features: int
    in_features: int
    uses: int
    rows: int | None
    weight_bytes: int
    bytes_share: float
    macs_share: float | None
    break_even: int
    break_even_int8_int4: int
    energy: Energy
    rank_90: int
    rank_99: int


@dataclass(frozen=True)
class ModelReport:
    """The whole model.

    Attributes:
        method: the factorizer that the ranks are by.
        has_data: whether there were calibration data.
    """

    model: str
    weight_bytes: int
    linear_bytes: int
    method: str
    has_data: bool
    layers: tuple[LayerReport, ...]


def inspect(
    model: str,
    *,
    data: Path | None = None,
    method: str | None = None,
    seed: int = 0,
    fresh: bool = False,
    cache: Cache | None = None,
    progress: Progress = silent,
) -> ModelReport:
    """Report every linear layer of a model.

    Args:
        model, data, method, seed, fresh: as for `build`.

    Raises:
        UsageError, InputError: bad arguments, model or data.
    """
    with open_workspace(cache or Cache(fresh=fresh), seed=seed, progress=progress) as workspace:
        progress("open model")
        opened = open_model(model, workspace.folder)
        if not opened.layers:
            raise ModelError(f"{model}: no linear layer found; there is nothing to factor")
        loaded = load_data(data, opened, model, seed)
        chosen = choose_method(method, loaded)
        subject = Subject(opened, loaded.calibration, digest(opened.sha256, loaded.digest()))
        alone = replace(workspace, workers=None)  # in seconds: not worth a start of processes
        gradients = None
        if needs_gradients(chosen):
            dense = native(opened.native).session(opened.content, {}, threads=THREADS)
            metric = make_guard(None, loaded, dense, exact=False).metric
            _, gradients = weighed(subject, chosen, metric, alone)
        spectra, _ = decompose(subject, chosen, alone, gradients=gradients)
        progress("count rows")
        energies = [
            _energy(layer.name, spectrum, gradients) for layer, spectrum in zip(opened.layers, spectra, strict=True)
        ]
        rows = row_counts(opened, loaded.calibration, seed) or {}
        return _report(opened, chosen, spectra, energies, rows, has_data=loaded.calibration is not None)


def _energy(name: str, spectrum: Spectrum, gradients: Mapping[str, Array] | None) -> Energy:
    """What the spectrum of a layer is of: a method that lacks its data or its gradients there gives way to another."""
    if spectrum.mean is None:
        return "weight"
    return "output" if gradients is None or name not in gradients else "weighed output"


def _report(
    opened: Model,
    method: str,
    spectra: Sequence[Spectrum],
    energies: Sequence[Energy],
    rows: dict[str, int],
    *,
    has_data: bool,
) -> ModelReport:
    total = native(opened.native).weight_bytes(opened.content)
    macs = {layer.name: rows[layer.name] * layer.weight.size for layer in opened.layers if layer.name in rows}
    known = len(macs) == len(opened.layers) and sum(macs.values()) > 0
    reports = tuple(
        _layer(
            layer,
            spectrum,
            energy,
            total,
            rows.get(layer.name),
            macs[layer.name] / sum(macs.values()) if known else None,
        )
        for layer, spectrum, energy in zip(opened.layers, spectra, energies, strict=True)
    )
    return ModelReport(opened.name, total, sum(r.weight_bytes for r in reports), method, has_data, reports)


def _layer(
    layer: Layer, spectrum: Spectrum, energy: Energy, total: int, rows: int | None, macs_share: float | None
) -> LayerReport:
    m, n = layer.out_features, layer.in_features
    lost = spectrum.lost_share()
    size = m * n * 4
    return LayerReport(
        name=layer.name,
        op=layer.geometry.operator,
        out_features=m,
        in_features=n,
        uses=layer.uses,
        rows=rows,
        weight_bytes=size,
        bytes_share=size / total if total else 0.0,
        macs_share=macs_share,
        break_even=break_even_rank(m, n),
        break_even_int8_int4=(m * n - 1) // (2 * (m + n)),
        energy=energy,
        rank_90=int(np.argmax(lost <= 0.10)),
        rank_99=int(np.argmax(lost <= 0.01)),
    )
