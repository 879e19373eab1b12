"""Charts of layers: what each takes before and after, what it loses, and what other ranks would come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from edgepack.backends.schemes import layer_schemes
from edgepack.cost.emulated import CostTable, table_for
from edgepack.cost.interpolate import interpolate_all
from edgepack.cost.sizes import size_bytes
from edgepack.model.point import linear_point
from edgepack.model.scheme import Format, Scheme
from edgepack.pack.manifest import CandidateEntry, LayerEntry, Manifest, PackedFile
from edgepack.pipeline.inspect import ModelReport
from edgepack.report.emulated import EmulatedRow
from edgepack.report.report import Axis, Bars, Chart, Mark, Rule, Series, Unit
from edgepack.report.tradeoffs import VARIANTS
from edgepack.targets.file import load_targets
from edgepack.units import binary

SHOWN = 4
"""Layers, those of most weights, that have a chart of their own."""
POINTS = 24


def layer_bars(entry: PackedFile, file: str) -> Iterator[Bars]:
    """Of a packed file, where something was chosen: bytes, predicted latency, losses and ranks of each layer."""
    layers = [layer for layer in entry.layers if layer.predicted is not None]
    names = tuple(layer.layer for layer in layers)
    if not layers:
        return
    dense = [_dense(layer) for layer in layers]
    fp32 = tuple(4.0 * layer.out_features * layer.in_features for layer in layers)
    sizes = (
        ("written", _written(layers, "size_bytes")),
        ("best dense", _values(dense, "size_bytes")),
        ("dense fp32", fp32),
    )
    yield Bars(f"{file}: bytes of each layer", Axis("size_bytes", "bytes"), names, sizes)
    times = (("written", _written(layers, "latency_s")), ("best dense", _values(dense, "latency_s")))
    yield Bars(f"{file}: predicted latency of each layer", Axis("latency_s", "seconds"), names, times)
    shares = [layer.lost_shares for layer in layers]
    if any(shares):
        parts = (
            ("truncation", "truncation"),
            ("rounding of weights", "rounding"),
            ("rounding between factors", "latent"),
        )
        lost = tuple((name, tuple(None if s is None else getattr(s, key) for s in shares)) for name, key in parts)
        yield Bars(f"{file}: share of the output energy that is lost", Axis("lost", "loss"), names, lost)
    ranks = tuple(None if layer.rank is None else float(layer.rank) for layer in layers)
    even = tuple(float(layer.break_even_rank) for layer in layers)
    if any(ranks):
        yield Bars(f"{file}: ranks", Axis("rank", "integer"), names, (("chosen", ranks), ("break-even", even)))


def _dense(layer: LayerEntry) -> CandidateEntry | None:
    """The fastest dense way to write it that was weighed."""
    every = (*layer.others, *([layer.predicted] if layer.predicted is not None else []))
    return min((one for one in every if one.structure == "dense"), key=lambda one: one.latency_s, default=None)


def _values(candidates: Sequence[CandidateEntry | None], key: str) -> tuple[float | None, ...]:
    return tuple(None if one is None else float(getattr(one, key)) for one in candidates)


def _written(layers: Sequence[LayerEntry], key: str) -> tuple[float | None, ...]:
    return _values([layer.predicted for layer in layers], key)


def miss_charts(manifest: Manifest, entry: PackedFile, file: str) -> Iterator[Chart]:
    """Cache misses over the rank of the largest factored layers, by the counts that are kept for the target's CPU; none
    where there are none."""
    target = load_targets().get(manifest.target.name)
    table = None if target is None else table_for(target)
    if table is None:
        return
    schemes = layer_schemes(entry.format)
    factored = (layer for layer in _by_weights(entry.layers) if layer.structure == "low-rank" and not layer.products)
    for layer in islice(factored, SHOWN):
        scheme = schemes.get(layer.scheme or "")
        if scheme is not None and layer.rank is not None:
            yield from _misses(layer, layer.rank, scheme, table, file)


def _by_weights(layers: Sequence[LayerEntry]) -> list[LayerEntry]:
    return sorted(layers, key=lambda layer: -layer.out_features * layer.in_features)


def _misses(layer: LayerEntry, rank: int, scheme: Scheme, table: CostTable, file: str) -> Iterator[Chart]:
    sides = layer.out_features, layer.in_features
    most = max(2 * layer.break_even_rank, rank) + 1
    ranks = sorted({int(value) for value in np.geomspace(1, min(most, *sides), POINTS)} | {rank})
    points = [linear_point(scheme, *sides, each, 1) for each in ranks]
    counts = interpolate_all(table, points)
    if counts is None:
        return
    curves = tuple(
        Series(f"{level} misses", tuple(Mark(each, one.misses[level]) for each, one in zip(ranks, counts, strict=True)))
        for level in table.levels[1:]
    )
    rules = [Rule(rank, f"rank {rank}, chosen"), Rule(layer.break_even_rank, f"{layer.break_even_rank}, break-even")]
    for level in table.levels[1:]:
        cache_bytes = table.cache_geometry(level)[0]
        fits = [p.rank for p in points if p.rank is not None and size_bytes(scheme, p.ops, None) <= cache_bytes]
        if fits and max(fits) < ranks[-1]:
            rules.append(Rule(max(fits), f"{level}, {binary(cache_bytes)}, is full"))
    yield Chart(
        f"{file}: cache misses of {layer.layer} over its rank",
        Axis("rank", "integer", f"rank, {scheme.name}", log=True),
        Axis("misses", "misses", "misses per inference"),
        curves,
        tuple(rules),
        note=f"of one vector, interpolated between counts on an emulated {table.core}",
    )


def count_bars(rows: Sequence[EmulatedRow]) -> Iterator[Bars]:
    """Of every emulated session in which layers were counted: instructions and misses of each, in all its files."""
    sessions: dict[tuple[str, str, int, Format], list[EmulatedRow]] = {}
    for row in rows:
        if row.parts:
            sessions.setdefault((row.model, row.target, row.threads, row.format), []).append(row)
    for (model, target, _, fmt), files in sessions.items():
        names = tuple(dict.fromkeys(part.name for row in files for part in row.parts))
        level = files[0].last_level
        figures: tuple[tuple[str, Unit, str], ...] = (
            ("instructions", "count", "instructions"),
            ("last_level_misses", "misses", f"{level} misses"),
        )
        for key, unit, what in figures:
            series = tuple((VARIANTS.get(row.variant, row.variant), _parts(row, names, key)) for row in files)
            yield Bars(f"{model} for {target}, {fmt}: {what} of each layer", Axis(key, unit), names, series)


def _parts(row: EmulatedRow, names: Sequence[str], key: str) -> tuple[float | None, ...]:
    known = {part.name: float(getattr(part, key)) for part in row.parts}
    return tuple(map(known.get, names))


def spectrum_charts(model: ModelReport) -> Iterator[Chart]:
    """Singular values of the largest layers, with the ranks that matter."""
    largest = sorted(model.layers, key=lambda layer: -layer.weight_bytes)[:SHOWN]
    for layer in largest:
        values = model.singular_values.get(layer.name, ())
        marks = tuple(Mark(rank, value) for rank, value in values if value > 0)
        if len(marks) < 2:
            continue
        rules = (
            Rule(layer.rank_90, f"{layer.rank_90} keeps 90 %"),
            Rule(layer.rank_99, f"{layer.rank_99} keeps 99 %"),
            Rule(layer.break_even, f"{layer.break_even}, break-even"),
            Rule(layer.break_even_int8_int4, f"{layer.break_even_int8_int4}, int8 vs int4"),
        )
        yield Chart(
            f"singular values of {layer.name}",
            Axis("rank", "integer", "rank"),
            Axis("singular_value", "loss", f"of its {layer.energy}, the largest = 1", log=True),
            (Series("singular value", marks),),
            rules,
        )
