"""`edgepack inspect`: what there is to gain in a model, in seconds, without building anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from edgepack.backends.backend import THREADS
from edgepack.backends.tables import EmbeddingTable
from edgepack.data import example
from edgepack.methods.registry import needs_gradients, outside_version
from edgepack.model.kinds import kind_of, views_of
from edgepack.model.layer import Layer, View
from edgepack.model.model import Model
from edgepack.model.types import Array, Spectrum
from edgepack.natives import native
from edgepack.pipeline.activations import Subject, row_counts
from edgepack.pipeline.datasets import choose_method, load_data, make_evaluation_sets, with_open_sides
from edgepack.pipeline.decompositions import decompose
from edgepack.pipeline.gradients import weighed
from edgepack.plan.candidates import break_even_rank
from edgepack.sources import open_model
from edgepack.sources.images import ImageOptions
from edgepack.sources.inputs import GivenInput
from edgepack.sources.onnx import FOUND
from edgepack.workspace import Cache, Progress, digest, open_workspace, silent

CURVE = 64
"""Ranks, at most, of which a singular value is kept for the report."""

Energy = Literal["weight", "output", "weighed output"]
"""What the error curve of a layer is of: its weights alone, its output on the calibration data, or that output weighed
by gradients of the model's answer."""


@dataclass(frozen=True)
class LayerReport:
    """One linear layer.

    Attributes:
        rows: rows it multiplies in one inference of the example inputs; None where its input was never seen.
        bytes_share: of all weight bytes of the model.
        macs_share: of the multiplications of all products in the model, those of recurrent states and of what is no
            layer included; None where these or the layer's rows are unknown.
        break_even: largest rank at which a pair has fewer weights and multiplications than the dense layer of the same
            precision, fp32 or int8.
        break_even_int8_int4: likewise for int8 factors in bytes against a dense int4 layer.
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
        fixed: why a build changes none of its layers; None where it may.
        left: what would be layers, but stays as it is.
        tables: embedding tables that no layer multiplies by; the rows that one inference looks up are counted.
        singular_values: by layer, of what its ranks keep a share of: some ranks, and the value there over the largest.
    """

    model: str
    weight_bytes: int
    linear_bytes: int
    method: str
    has_data: bool
    layers: tuple[LayerReport, ...]
    fixed: str | None = None
    left: str | None = None
    tables: tuple[LayerReport, ...] = ()
    singular_values: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class InspectOptions:
    """What is looked at, and with which data: see `BuildOptions`."""

    model: str
    data: Path | None = None
    method: str | None = None
    inputs: Sequence[GivenInput] = ()
    images: ImageOptions | None = None
    seed: int = 0


def inspect(options: InspectOptions, cache: Cache | None = None, progress: Progress = silent) -> ModelReport:
    """Report every linear layer of a model.

    Raises:
        UsageError, InputError: bad arguments, model or data.
    """
    seed = options.seed
    with open_workspace(cache or Cache(), seed=seed, progress=progress) as workspace:
        progress("open model")
        opened = open_model(options.model, workspace.folder, given=options.inputs)
        opened = with_open_sides(opened, options.data, workspace)
        loaded = load_data(options.data, opened, options.model, seed, images=options.images)
        chosen = choose_method(options.method, loaded)
        subject = Subject(
            opened, loaded.calibration, digest(opened.sha256, FOUND, loaded.digest(), *outside_version(chosen))
        )
        alone = replace(workspace, workers=None)  # in seconds: not worth a start of processes
        gradients = None
        if needs_gradients(chosen):
            dense = native(opened.native).session(opened.content, {}, threads=THREADS)
            metric = make_evaluation_sets(None, loaded, dense, exact=False)[0].metric
            _, gradients = weighed(subject, chosen, metric, alone)
        spectra, _ = decompose(subject, chosen, alone, gradients=gradients)
        progress("count rows")
        rows = row_counts(opened, loaded.calibration, seed)
        feed = example(loaded.calibration, opened.inputs, seed)
        macs = None if rows is None else native(opened.native).macs(opened.content, feed)
        looked = {
            view.name: _Look(spectrum, _energy(view.name, spectrum, gradients), (rows or {}).get(view.name))
            for view, spectrum in zip(subject.views, spectra, strict=True)
        }
        report = _report(opened, chosen, looked, macs, has_data=loaded.calibration is not None)
        progress("embedding tables")
        tables = native(opened.native).tables(opened.content, loaded.calibration)
        return replace(report, tables=tuple(_table(table, report.weight_bytes) for table in tables))


def _table(table: EmbeddingTable, total: int) -> LayerReport:
    """As a layer whose output energy is that of the rows that are looked up, each as often as it is."""
    energy: Energy = "output" if table.counts.any() else "weight"
    (view,), look = views_of([table.layer]), _Look(table.spectrum, energy, table.vectors)
    found = _layer(table.layer, view, look, total, 0.0)
    return replace(found, out_features=view.in_features, in_features=view.out_features)


@dataclass(frozen=True)
class _Look:
    """What was seen of a view: what its spectrum is of, and the vectors that one inference multiplies by it."""

    spectrum: Spectrum
    energy: Energy
    rows: int | None


def _energy(name: str, spectrum: Spectrum, gradients: Mapping[str, Array] | None) -> Energy:
    """What the spectrum of a layer is of: a method that lacks its data or its gradients there gives way to another."""
    if spectrum.mean is None:
        return "weight"
    return "output" if gradients is None or name not in gradients else "weighed output"


def _report(
    opened: Model, method: str, looked: Mapping[str, _Look], all_macs: int | None, *, has_data: bool
) -> ModelReport:
    """Of every layer as one matrix: its first view."""
    total = native(opened.native).weight_bytes(opened.content)
    views = [views_of([layer])[0] for layer in opened.layers]
    counted = [(layer, looked[view.name].rows) for layer, view in zip(opened.layers, views, strict=True)]
    macs = [None if rows is None else rows * kind_of(layer).macs(layer) for layer, rows in counted]
    shares = [one / all_macs if all_macs and one is not None else None for one in macs]
    reports = tuple(
        _layer(layer, view, looked[view.name], total, share)
        for layer, view, share in zip(opened.layers, views, shares, strict=True)
    )
    return ModelReport(
        model=opened.name,
        weight_bytes=total,
        linear_bytes=sum(r.weight_bytes for r in reports),
        method=method,
        has_data=has_data,
        layers=reports,
        fixed=opened.fixed,
        left=opened.left,
        singular_values={
            layer.name: _singular_values(looked[view.name].spectrum)
            for layer, view in zip(opened.layers, views, strict=True)
        },
    )


def _singular_values(spectrum: Spectrum) -> tuple[tuple[int, float], ...]:
    """At some ranks, more of them where these are small."""
    values = np.sqrt(np.maximum(spectrum.energies, 0.0))
    if not len(values) or values[0] <= 0.0:
        return ()
    ranks = np.unique(np.geomspace(1, len(values), CURVE).astype(int))
    return tuple((int(rank), float(values[rank - 1] / values[0])) for rank in ranks)


def _layer(layer: Layer, view: View, look: _Look, total: int, macs_share: float | None) -> LayerReport:
    m, n = view.out_features, view.in_features
    lost = look.spectrum.lost_share()
    size = m * n * 4
    return LayerReport(
        name=layer.name,
        op=layer.geometry.operator,
        out_features=m,
        in_features=n,
        uses=layer.uses,
        rows=look.rows,
        weight_bytes=size,
        bytes_share=size / total if total else 0.0,
        macs_share=macs_share,
        break_even=break_even_rank(m, n),
        break_even_int8_int4=(m * n - 1) // (2 * (m + n)),
        energy=look.energy,
        rank_90=int(np.argmax(lost <= 0.10)),
        rank_99=int(np.argmax(lost <= 0.01)),
    )
