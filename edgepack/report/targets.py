"""What `edgepack targets` says of CPUs: their facts, a probe, and what layers cost on them, measured or counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import inf
from statistics import median, quantiles
from typing import Any

from edgepack.report.report import (
    Axis,
    Block,
    Chart,
    Column,
    Field,
    Figure,
    Line,
    Mark,
    Paragraph,
    Report,
    Series,
    Table,
    Unit,
    facts,
    hidden,
    make_table,
)
from edgepack.targets.target import Bandwidth, Cache, Cluster, Target
from edgepack.targets.write import targets_file_text
from edgepack.units import NONE

Record = Mapping[str, Any]


def targets_report(targets: Sequence[Target]) -> Report:
    """One row per target; `~` marks an estimate."""
    return Report(blocks=(make_table(_TARGETS, targets),), record=[asdict(target) for target in targets])


def cache_value(cache: Cache | None) -> tuple[int, str] | None:
    """Of the unit "cache": bytes, and whether they are an estimate."""
    return None if cache is None else (cache.size_bytes, cache.source)


def bandwidth_value(read: Bandwidth | None) -> tuple[float, float, str] | None:
    """Of the unit "bandwidth": the range in bytes per second, and whether it is an estimate."""
    return None if read is None else (read.low_gb_s * 1e9, read.high_gb_s * 1e9, read.source)


def _hz(cluster: Cluster) -> float | None:
    return cluster.frequency_mhz * 1e6 if cluster.frequency_mhz else None


def _level(level: str) -> Field[Target]:
    column = Column(level, level, "cache", parts=(f"{level}_bytes", f"{level}_source"))
    return Field(column, lambda target: cache_value(getattr(target.main_cluster, level)))


_READ_PARTS = ("read_low_bytes_per_s", "read_high_bytes_per_s", "read_source")
_TARGETS: tuple[Field[Target], ...] = (
    Field(Column("target", "target"), lambda target: target.name),
    Field(
        Column("cpu", "CPU", "clusters"),
        lambda target: [(cluster.cores, cluster.core, _hz(cluster)) for cluster in target.clusters],
    ),
    Field(Column("simd", "SIMD"), lambda target: " ".join(target.isa) or None),
    *map(_level, ("L1d", "L2", "L3")),
    Field(Column("ram_bytes", "RAM", "binary")),
    Field(
        Column("read", "read GB/s", "bandwidth", parts=_READ_PARTS),
        lambda target: bandwidth_value(target.main_cluster.read),
    ),
    Field(Column("formats", "formats", missing="none"), lambda target: ", ".join(target.formats) or None),
)


def target_report(target: Target) -> Report:
    """Facts of one target, a row each; for data a row for each cluster of its cores."""
    shown = facts(target.name, _facts(target))
    return Report(
        blocks=(
            Table(shown.columns, shown.rows, only="people"),
            make_table(_CLUSTER, target.clusters, only="data"),
        ),
        record=asdict(target),
    )


_CACHE_PARTS = ("size_bytes", "shared", "ways", "line_bytes", "source")
_CLUSTER: tuple[Field[Cluster], ...] = (
    Field(hidden("cluster"), lambda cluster: cluster.name),
    Field(hidden("core")),
    Field(hidden("cores", "integer")),
    Field(hidden("frequency_hz", "megahertz"), _hz),
    Field(hidden("frequency_source")),
    Field(Column("ipc", unit="range", parts=("ipc_low", "ipc_high", "ipc_source"))),
    *(
        Field[Cluster](Column(level, unit="cache", parts=tuple(f"{level}_{part}" for part in _CACHE_PARTS)))
        for level in ("L1d", "L1i", "L2", "L3")
    ),
    Field(Column("read", unit="bandwidth", parts=_READ_PARTS), lambda cluster: bandwidth_value(cluster.read)),
)


def _facts(target: Target) -> Iterator[tuple[str, Line | None]]:
    ram: Line = (Figure(target.ram_bytes, "binary"),)
    if target.ram_max_bytes:
        ram = (*ram, "–", Figure(target.ram_max_bytes, "binary"))
    yield from (("description", target.description), ("arch", target.arch), ("SIMD", " ".join(target.isa) or None))
    yield "RAM", ram
    for cluster in target.clusters:
        yield from _cluster_facts(cluster)
    yield from ((fmt, target.runtimes[fmt]) for fmt in target.formats)
    if target.no_runtime_reason:
        yield "no runtime", target.no_runtime_reason
    yield from (("known bad", f"{bad.runtime} {bad.version}: {bad.reason}") for bad in target.known_bad)
    yield from (("host", host) for host in target.hosts)


def _cluster_facts(cluster: Cluster) -> Iterator[tuple[str, Line | None]]:
    clock: Line = (", ", Figure(_hz(cluster), "megahertz")) if cluster.frequency_mhz else ()
    mark = " (estimate)" if cluster.frequency_source == "estimate" else ""
    yield f"cluster {cluster.name}", (f"{cluster.cores}× {cluster.core}", *clock, mark)
    ipc = cluster.ipc
    yield "  instructions per cycle", None if ipc is None else (Figure((ipc.low, ipc.high, ipc.source), "range"),)
    for level in ("L1d", "L1i", "L2", "L3"):
        yield f"  {level}", _cache_line(getattr(cluster, level))
    read = bandwidth_value(cluster.read)
    yield "  read, one core", None if read is None else (Figure(read, "bandwidth"), " GB/s")


def _cache_line(cache: Cache | None) -> Line | None:
    if cache is None:
        return None
    ways = f", {cache.ways}-way" if cache.ways else ""
    return (Figure(cache_value(cache), "cache"), f"{ways}, {cache.line_bytes} B lines, shared by {cache.shared}")


def entry_text(target: Target, record: Record) -> str:
    """A targets file with this target: good as it stands, with what a person should know of it in comments.

    Args:
        target: that was probed.
        record: of `edgepack.devices.profile.Probed.record`.
    """
    return targets_file_text(target, list(_comments(record)))


def _comments(record: Record) -> Iterator[str]:
    shipped = record["shipped"]
    if shipped is None:
        yield "no shipped target has this architecture and core"
    elif not record["differences"]:
        yield f"no difference that matters from {_shipped(record)}"
    for difference in record["differences"]:
        what = f"{difference['key']}: {difference['shipped']}, found {difference['found']}"
        yield f"differs from {_shipped(record)}: {what}"
    for note in record["notes"]:
        yield f"note: {note}"


def _shipped(record: Record) -> str:
    """`the shipped rpi4`, and that it is a guess where nobody said so."""
    return f"the shipped {record['shipped']}" + (", which it seems to be" if record["guessed"] else "")


def sweep_report(record: Record) -> Report:
    """For every cluster its curves, a row per octave of a thread's working set, and where latency rises.

    Args:
        record: of `edgepack.devices.profile.Probed.record`.
    """
    return Report(blocks=tuple(block for one in record["swept"] for block in _swept(one)), record=record)


_AXES: Mapping[Unit, str] = {"nanoseconds": "ns per load", "gigabytes per second": "GB/s"}


def _swept(one: Record) -> Iterator[Block]:
    sweep, cluster = one["sweep"], one["cluster"]
    cpus = ", ".join(map(str, sweep["cpus"])) or "any"
    clock: str | Figure = Figure(sweep["clock_hz"], "gigahertz") if sweep["clock_hz"] else "clock not measured"
    yield Paragraph((f"{cluster}: CPUs {cpus}, ", clock, ", measured in ", Figure(sweep["seconds"], "whole seconds")))
    single, every, loads = curves = _curves(sweep)
    titles = ("read, 1 thread", f"read, {sweep['threads']} threads", "latency")
    for title, curve in zip(titles, curves, strict=True):
        if curve:
            key: str = "load_s" if title == "latency" else "bytes_per_s"
            unit: Unit = "nanoseconds" if title == "latency" else "gigabytes per second"
            x, y = Axis("size_bytes", "binary", "working set", log=True), Axis(key, unit, _AXES[unit], log=True)
            points = tuple(Mark(size, value) for size, value in curve.items())
            yield Chart(title, x, y, (Series(title, points),), of=cluster, drawn=False)
    sizes = sorted(size for size in {*single, *every, *loads} if size & (size - 1) == 0)
    fields: tuple[Field[int], ...] = (
        Field(hidden("cluster"), lambda _: cluster),
        Field(Column("size_bytes", "working set", "binary"), lambda size: size),
        Field(Column("read_bytes_per_s", "GB/s, 1 thread", "gigabytes per second", missing=""), single.get),
        Field(Column("read_all_bytes_per_s", "GB/s, all cores", "gigabytes per second", missing=""), every.get),
        Field(Column("load_s", "ns per load", "nanoseconds", missing=""), loads.get),
        Field(Column("rises"), lambda size: _rises(one["knees"], size, sizes)),
    )
    yield make_table(fields, sizes)


def _curves(sweep: Record) -> tuple[dict[int, float], dict[int, float], dict[int, float]]:
    """By bytes of the working set: what one thread reads a second, what all do, and seconds of a load."""
    every = _rates(sweep, sweep["threads"]) if sweep["threads"] > 1 else {}
    loads = {point["size_bytes"]: _calm(point["load_s"]) for point in sweep["latency"]}
    return _rates(sweep, 1), every, loads


def _rises(knees: Sequence[Record], size: int, sizes: Sequence[int]) -> Line:
    """The rises of the latency that lie between a working set and the next larger one."""
    following = min((other for other in sizes if other > size), default=inf)
    here = [Figure(knee["at_bytes"], "binary") for knee in knees if size <= knee["at_bytes"] < following]
    parts: list[str | Figure] = []
    for rise in here:
        parts += [", latency rises at " if parts else "latency rises at ", rise]
    return tuple(parts)


def _rates(sweep: Record, threads: int) -> dict[int, float]:
    return {read["size_bytes"]: median(read["bytes_per_s"]) for read in sweep["reads"] if read["threads"] == threads}


def _calm(loads: Sequence[float]) -> float:
    """The second fastest repeat, as the search for rises takes it."""
    return sorted(loads)[min(1, len(loads) - 1)]


EXAMPLES = 6

Layer = tuple[int, int, int | None, int, str | None]
"""Outputs, inputs, rank, batch, kernel."""

Key = tuple[str, str]
"""Format and scheme."""


def calibrated_report(record: Record) -> Report:
    """A row per scheme, with its latency of the largest layer that all schemes of its format have and of a pair in its
    place; below, which two schemes are fastest for the largest layers. For data a row for each layer.

    Args:
        record: the table and where it is kept, see `edgepack.pipeline.measure_target.Calibrated.record`.
    """
    by_scheme: dict[Key, dict[Layer, Record]] = {}
    for one in record["layers"]:
        by_scheme.setdefault((one["format"], one["scheme"]), {})[_layer(one)] = one
    refused = [(one["format"], one["scheme"]) for one in record["refused"]]
    fields: tuple[Field[Key], ...] = (
        Field(Column("format", "format"), lambda key: key[0]),
        Field(Column("scheme", "scheme"), lambda key: key[1]),
        Field(Column("layers", "layers", "integer"), lambda key: len(by_scheme[key])),
        Field(Column("dense", "dense, e.g.", "figures"), lambda key: _example(key, by_scheme, 0)),
        Field(Column("pair", "factors, e.g.", "figures"), lambda key: _example(key, by_scheme, 1)),
        Field(Column("spread", "spread of the rounds", "spread"), lambda key: _steadiness(by_scheme[key].values())),
        Field(Column("refused", "refused", "integer"), lambda key: refused.count(key) or None),
    )
    fastest = _fastest(record["layers"])
    return Report(
        blocks=(
            make_table(fields, by_scheme, only="people"),
            *([Table(_FASTEST, tuple(fastest), only="people")] if fastest else []),
            make_table([_measured(key) for key in _MEASURED], record["layers"], only="data"),
            *(Paragraph(line, note=True) for line in _calibrated_notes(record)),
        ),
        record=record,
    )


def _measured(key: str) -> Field[Record]:
    return Field(hidden(key), lambda one: one[key])


_MEASURED = (
    *("format", "scheme", "out_features", "in_features", "rank", "kernel", "batch"),
    *("seconds", "spread_s", "rounds"),
)
_FASTEST = (
    Column("layer", "layer"),
    Column("fastest", "fastest"),
    Column("latency_s", "latency", "seconds"),
    Column("next", "next"),
    Column("next_latency_s", "latency", "seconds"),
)


def _calibrated_notes(record: Record) -> Iterator[Line]:
    device = record["fingerprint"]
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    yield f"{record['target']}, {threads}: {', '.join(device['cores'])}; {', '.join(device['runtimes'].values())}"
    calls: list[str | Figure] = []
    for fmt, call in record["calls"].items():
        calls += [f", {fmt} " if calls else f"{fmt} ", Figure(call["seconds"], "seconds")]
    yield ("one call of the runtime, which no figure contains: ", *(calls or [NONE]))
    known = f"asked for {record['asked']} layers, {len(record['layers'])} are known"
    yield f"{known}; spread: interquartile range / median, median to 90th percentile"
    yield f"kept in {record['path']}"


def _layer(one: Record) -> Layer:
    return one["out_features"], one["in_features"], one["rank"], one["batch"], one["kernel"]


def _example(key: Key, by_scheme: Mapping[Key, Mapping[Layer, Record]], which: int) -> Line | None:
    """The dense layer (0) or the pair (1) that all schemes of its format have, with its latency."""
    layer = _common([layers for (fmt, _), layers in by_scheme.items() if fmt == key[0]])[which]
    return None if layer is None else (f"{_named(layer)}: ", Figure(by_scheme[key][layer]["seconds"], "seconds"))


def _steadiness(known: Iterable[Record]) -> tuple[float, float]:
    spread = [one["spread_s"] / one["seconds"] for one in known]
    p90 = quantiles(spread, n=10, method="inclusive")[-1] if len(spread) > 1 else spread[0]
    return median(spread), p90


def _common(schemes: Iterable[Mapping[Layer, Record]]) -> tuple[Layer | None, Layer | None]:
    """The largest dense linear layer at the smallest batch, and its pair of middle rank, that every scheme has."""
    shared = set.intersection(*(set(layers) for layers in schemes))
    linear = (a for a in shared if a[2] is None and a[4] is None)
    dense = max(linear, key=lambda a: (-a[3], a[0] * a[1], a[:2]), default=None)
    if dense is None:
        return None, None
    ranks = sorted(a[2] for a in shared if a[2] is not None and (*a[:2], a[3]) == (*dense[:2], dense[3]))
    return dense, (dense[0], dense[1], ranks[len(ranks) // 2], dense[3], None) if ranks else None


def _fastest(layers: Iterable[Record]) -> list[tuple[object, ...]]:
    """For the largest dense layers: the two fastest ways to write them in any format."""
    found: dict[Layer, list[tuple[float, str]]] = {}
    for one in layers:
        if one["rank"] is None:
            found.setdefault(_layer(one), []).append((one["seconds"], f"{one['format']} {one['scheme']}"))
    rows: list[tuple[object, ...]] = []
    for layer in sorted(found, key=lambda a: (-a[0] * a[1], a[3], a[0]))[:EXAMPLES]:
        best = [cell for latency, name in sorted(found[layer])[:2] for cell in (name, latency)]
        rows.append((_named(layer), *best, *[None] * (4 - len(best))))
    return rows


def _named(layer: Layer) -> str:
    rows, columns, rank, batch, kernel = layer
    ranked = "" if rank is None else f" rank {rank}"
    if kernel is not None:
        return f"{rows}x{columns} {kernel}, {batch} places"
    return f"{rows}x{columns}{ranked}" + (f", {batch} rows" if batch > 1 else "")


def costs_report(target: str, table: Record) -> Report:
    """A row per scheme of a table of emulated costs and how well it interpolates, the grid and its source below; then
    the same of convolutions, where there are any.

    Args:
        target: that was asked for.
        table: the fields of a cost table.
    """
    levels = [level for level in next(iter(table["calls"].values()))["misses"] if level != "L1i"]
    first: tuple[Field[Key], ...] = (
        Field(Column("format", "format"), lambda key: key[0]),
        Field(Column("scheme", "scheme"), lambda key: key[1]),
    )
    call: Field[Key] = Field(
        Column("call_instructions", "one call", "count"), lambda key: table["calls"][key[0]]["instructions"]
    )
    errors = ("between_batches", "between batches"), *((f"misses.{level}", f"{level} misses") for level in levels)
    fields = (*first, call, *_deviations(table, errors))
    blocks: list[Block] = [make_table(fields, _keys(table), notes=tuple(_cost_notes(target, table)))]
    convolved = table["convolutions"]
    if convolved is not None:
        errors = ("between_batches", "between images"), *errors[1:]
        blocks.append(
            make_table((*first, *_deviations(convolved, errors)), _keys(convolved), notes=_conv_notes(convolved))
        )
    return Report(blocks=tuple(blocks), record=table)


def _keys(part: Record) -> list[Key]:
    return [(fmt, scheme) for fmt, schemes in part["costs"].items() for scheme in schemes]


def _deviations(part: Record, others: Iterable[tuple[str, str]]) -> list[Field[Key]]:
    return [_deviation(part, path, header) for path, header in (("instructions", "instr. off by"), *others)]


def _conv_notes(part: Record) -> tuple[str, ...]:
    channels, kernels, sides = (", ".join(map(str, part["grid"][name])) for name in ("channels", "kernels", "sides"))
    return (f"convolutions: channels {channels}, kernels 1, {kernels}, sides of images {sides}",)


def _cost_notes(target: str, table: Record) -> Iterator[str]:
    caches, runtimes = ", ".join(table["caches"]), ", ".join(table["runtimes"].values())
    yield f"counted for {target}: {table['core']}, {caches}; {runtimes} under {table['emulator']}"
    yield from table["notes"]
    sides, ranks, batches = (", ".join(map(str, table["grid"][name])) for name in ("sides", "ranks", "batches"))
    yield f"grid: sides {sides}, ranks {ranks} and dense, batches {batches}"
    yield "off by: |interpolated / counted - 1| of layers between the points, median to 90th percentile (how many)"


def _deviation(table: Record, path: str, header: str) -> Field[Key]:
    """How far interpolated counts are off; None where none were held out."""
    name = path.replace(".", "_")

    def value(key: Key) -> tuple[float, float, int] | None:
        held = table["held_out"].get(key[0], {}).get(key[1])
        for part in path.split("."):
            held = held and held.get(part)
        return None if held is None else (held["median"], held["p90"], held["points"])

    return Field(
        Column(name, header, "deviation", parts=tuple(f"{name}_{p}" for p in ("median", "p90", "points"))), value
    )
