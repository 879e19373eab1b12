"""What `edgepack inspect` says of a model, and of a pack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgepack.pack.manifest import Manifest
from edgepack.pipeline.inspect import Energy, LayerReport, ModelReport
from edgepack.pipeline.prepare import NO_LAYERS
from edgepack.report.build import LONG, layer_table, packed_files, planned
from edgepack.report.layer_charts import layer_bars, miss_charts, spectrum_charts
from edgepack.report.report import Block, Column, Field, Figure, Paragraph, Report, hidden, make_table
from edgepack.report.tradeoffs import plan_charts


def model_report(model: ModelReport) -> Report:
    """One row per layer and what the columns mean."""
    share = model.linear_bytes / model.weight_bytes if model.weight_bytes else 0.0
    notes = _notes(model) if model.layers else (NO_LAYERS,)
    if model.fixed is not None:
        notes = (*notes, f"build keeps the model as it is: {model.fixed}.")
    if model.left is not None:
        notes = (*notes, f"{model.left}.")
    head = (
        f"{model.model}: ",
        Figure(model.weight_bytes, "bytes"),
        " of weights, ",
        Figure(share, "whole share"),
        f" of them in {len(model.layers)} {'layer' if len(model.layers) == 1 else 'layers'}",
    )
    layers = make_table(_LAYERS, model.layers, notes=notes, name="layers")
    tables = make_table(_LAYERS, model.tables, title=_TABLES, name="embedding tables")
    return Report(
        title=(head,),
        blocks=(layers, *([tables] if model.tables else []), *spectrum_charts(model)),
        record=_record(model),
    )


def _record(model: ModelReport) -> dict[str, Any]:
    """What is only drawn is left out."""
    record = asdict(replace(model, singular_values={}))
    del record["singular_values"]
    return record


_TABLES = "embedding tables, tokens×width; each row counts as often as it is looked up"


def _notes(model: ModelReport) -> tuple[str, ...]:
    return (
        "break-even: factors of this rank or less have fewer weights and multiplications than the dense layer at the "
        "same precision (fp32 or int8); int8 vs int4: the same in bytes, int8 factors against a dense int4 layer.",
        f"rank 90 % / 99 %: keeps that share of {_energies(model)}. pays: rank 99 % is not above break-even.",
    )


def _energies(model: ModelReport) -> str:
    """What the ranks keep a share of; layers that differ from most are named."""
    said: dict[Energy, str] = {
        "weight": "weight energy" if model.has_data else "weight energy (no data)",
        "output": "output energy on the calibration data",
        "weighed output": "output energy on the calibration data, weighed by output gradients",
    }
    names: dict[Energy, list[str]] = {}
    for layer in model.layers:
        names.setdefault(layer.energy, []).append(layer.name)
    most, *others = sorted(names, key=lambda energy: -len(names[energy]))
    return "; ".join([said[most], *(f"in {', '.join(names[each])} of {said[each]}" for each in others)])


_LAYERS: tuple[Field[LayerReport], ...] = (
    Field(Column("layer", "layer"), lambda layer: layer.name),
    Field(Column("op", "op", "repeated", parts=("op", "uses")), lambda layer: (layer.op, layer.uses)),
    Field(
        Column("shape", "out×in", "shape", parts=("out_features", "in_features")),
        lambda layer: (layer.out_features, layer.in_features),
    ),
    Field(Column("rows", "rows", "integer")),
    Field(hidden("weight_bytes", "bytes")),
    Field(Column("bytes_share", "bytes", "share")),
    Field(Column("macs_share", "MACs", "share")),
    Field(Column("break_even", "break-even", "integer")),
    Field(Column("break_even_int8_int4", "int8 vs int4", "integer")),
    Field(hidden("energy")),
    Field(Column("rank_90", "rank 90 %", "integer")),
    Field(Column("rank_99", "rank 99 %", "integer")),
    Field(Column("pays", "pays", "yes"), lambda layer: layer.rank_99 <= layer.break_even),
)


def pack_report(pack: Path, manifest: Manifest) -> Report:
    """Every model file of a pack with its layers, where its figures come from, and how they are to be read."""
    losses = f"latency: of the layer alone, predicted. {_LOSSES[manifest.loss_weighted_by]} {_LOST}"
    return Report(
        title=(f"{pack}: {manifest.model.name} for {manifest.target.name}",),
        blocks=(*_files(manifest), Paragraph(losses, note=True)),
        record=manifest.record(),
    )


def _files(manifest: Manifest) -> Iterator[Block]:
    for name, entry in packed_files(manifest).items():
        size = Figure(entry.size_bytes, "bytes")
        title = (f"{name}: {entry.scheme}, ", size, f", chosen by: {entry.scheme_chosen_by}")
        yield layer_table(planned(entry), name, LONG, title=title)
        yield from layer_bars(entry, name)
        yield from miss_charts(manifest, entry, name)
    yield from plan_charts(manifest)


_LOSSES = {
    "output gradients": "loss: predicted, in nats of the answer's change to second order, quantization included.",
    "measured noise": "loss: predicted share of the answers' variance, quantization included, as noise in each layer "
    "showed.",
    "output energy": "loss: predicted share of the layer's output energy, quantization included.",
}

_LOST = (
    "lost: share of the layer's output energy on the calibration data: of factors to truncation + rounding of weights "
    "+ rounding of what flows between the two, of a dense layer to rounding."
)
