"""The tables of `edgepack targets list` and `edgepack targets show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepack.report.tables import plain_table
from edgepack.targets import Bandwidth, Cache, Cluster, Ipc, Target

if TYPE_CHECKING:
    from rich.table import Table

HEADERS = ("target", "CPU", "SIMD", "L1d", "L2", "L3", "RAM", "read GB/s", "formats")


def render_targets(targets: Sequence[Target]) -> Table:
    """One row per target; `~` marks an estimate."""
    return plain_table(HEADERS, [_row(target) for target in targets], right=("L1d", "L2", "L3", "RAM", "read GB/s"))


def _row(target: Target) -> tuple[str, ...]:
    main = target.main_cluster
    cores = " + ".join(_cores(cluster) for cluster in target.clusters)
    return (
        target.name,
        cores,
        " ".join(target.isa) or "–",
        cache_cell(main.L1d),
        cache_cell(main.L2),
        cache_cell(main.L3),
        _binary(target.ram_bytes),
        bandwidth_cell(main.read),
        ", ".join(target.formats) or "none",
    )


def _cores(cluster: Cluster) -> str:
    clock = f" {cluster.frequency_mhz / 1000:g}" if cluster.frequency_mhz else ""
    return f"{cluster.cores}×{cluster.core}{clock}"


def cache_cell(cache: Cache | None) -> str:
    """`32K`, `~512K` for an estimate, `–` for none."""
    if cache is None:
        return "–"
    return ("~" if cache.source == "estimate" else "") + _binary(cache.size_bytes)


def bandwidth_cell(read: Bandwidth | None) -> str:
    """`3.7–4.4`, `~0.7` for an estimate, `–` for none."""
    if read is None:
        return "–"
    text = f"{read.low_gb_s:g}" if read.low_gb_s == read.high_gb_s else f"{read.low_gb_s:g}–{read.high_gb_s:g}"
    return ("~" if read.source == "estimate" else "") + text


def ipc_cell(ipc: Ipc | None) -> str:
    """`~0.8–3`: an estimate up to the decode width; `–` where it is not known."""
    if ipc is None:
        return "–"
    return ("~" if ipc.source == "estimate" else "") + f"{ipc.low:g}–{ipc.high:g}"


def _binary(size_bytes: int) -> str:
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.3g}{unit}"
    return str(size_bytes)


def render_target(target: Target) -> Table:
    """Facts of one target, a row each."""
    rows = [
        ("description", target.description),
        ("arch", target.arch),
        ("SIMD", " ".join(target.isa) or "–"),
        ("RAM", _binary(target.ram_bytes) + (f"–{_binary(target.ram_max_bytes)}" if target.ram_max_bytes else "")),
    ]
    for cluster in target.clusters:
        clock = f", {cluster.frequency_mhz} MHz" if cluster.frequency_mhz else ""
        mark = " (estimate)" if cluster.frequency_source == "estimate" else ""
        rows.append((f"cluster {cluster.name}", f"{cluster.cores}× {cluster.core}{clock}{mark}"))
        rows.append(("  instructions per cycle", ipc_cell(cluster.ipc)))
        for level in ("L1d", "L1i", "L2", "L3"):
            rows.append((f"  {level}", _cache_line(getattr(cluster, level))))
        rows.append(("  read, one core", bandwidth_cell(cluster.read) + (" GB/s" if cluster.read else "")))
    rows += [(fmt, target.runtimes[fmt]) for fmt in target.formats]
    if target.no_runtime_reason:
        rows.append(("no runtime", target.no_runtime_reason))
    rows += [("known bad", f"{bad.runtime} {bad.version}: {bad.reason}") for bad in target.known_bad]
    rows += [("host", host) for host in target.hosts]
    return plain_table((target.name, ""), rows)


def _cache_line(cache: Cache | None) -> str:
    if cache is None:
        return "–"
    ways = f", {cache.ways}-way" if cache.ways else ""
    return f"{cache_cell(cache)}{ways}, {cache.line_bytes} B lines, shared by {cache.shared}"
