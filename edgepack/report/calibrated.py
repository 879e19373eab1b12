"""What was measured on a device: how many layers in each scheme, how fast, and how steady."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from edgepack.report.cells import NONE, seconds
from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.console import Group

EXAMPLES = 6
HEADERS = ("format", "scheme", "layers", "dense, e.g.", "pair, e.g.", "spread of the rounds", "refused")

Layer = tuple[int, int, int | None, int]
Key = tuple[str, str]
Record = Mapping[str, Any]


def render_calibrated(record: Record) -> Group:
    """A row per scheme, with its latency of the largest layer that all schemes of its format have and of a pair in its
    place; below, which two schemes are fastest for the largest layers.

    Args:
        record: the table and where it is kept, see `edgepack.pipeline.calibrating.Calibrated.record`.
    """
    from rich.console import Group
    from rich.text import Text

    by_scheme: dict[Key, dict[Layer, Record]] = {}
    for one in record["layers"]:
        by_scheme.setdefault((one["format"], one["scheme"]), {})[_layer(one)] = one
    refused = [(one["format"], one["scheme"]) for one in record["refused"]]
    lines = [_line(key, by_scheme, refused.count(key)) for key in by_scheme]
    device = record["fingerprint"]
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    calls = ", ".join(f"{fmt} {seconds(call['seconds'])}" for fmt, call in record["calls"].items())
    notes = [
        f"{record['target']}, {threads}: {', '.join(device['cores'])}; {', '.join(device['runtimes'].values())}",
        f"one call of the runtime, which no figure contains: {calls or NONE}",
        f"asked for {record['asked']} layers, {len(record['layers'])} are known; spread: interquartile range / median, "
        "median to 90th percentile",
        f"kept in {record['path']}",
    ]
    parts: list[Any] = [plain_table(HEADERS, lines, right=HEADERS[2:])]
    fastest = _fastest(record["layers"])
    if fastest:
        parts.append(plain_table(("layer", "fastest", "latency", "next", "latency"), fastest, right=("latency",)))
    return Group(*parts, *(Text(note, style="dim") for note in notes))


def _layer(one: Record) -> Layer:
    return one["out_features"], one["in_features"], one["rank"], one["batch"]


def _line(key: Key, by_scheme: Mapping[Key, Mapping[Layer, Record]], refused: int) -> tuple[str, ...]:
    known = by_scheme[key]
    examples = _common([layers for (fmt, _), layers in by_scheme.items() if fmt == key[0]])
    cells = [NONE if a is None else f"{_named(a)}: {seconds(known[a]['seconds'])}" for a in examples]
    spread = [one["spread_s"] / one["seconds"] for one in known.values()]
    p90 = quantiles(spread, n=10, method="inclusive")[-1] if len(spread) > 1 else spread[0]
    steadiness = f"{median(spread):.0%} to {p90:.0%}"
    return (*key, str(len(known)), *cells, steadiness, str(refused) if refused else NONE)


def _common(schemes: Iterable[Mapping[Layer, Record]]) -> tuple[Layer | None, Layer | None]:
    """The largest dense layer at the smallest batch, and its pair of middle rank, that every scheme has."""
    shared = set.intersection(*(set(layers) for layers in schemes))
    dense = max((a for a in shared if a[2] is None), key=lambda a: (-a[3], a[0] * a[1], a[:2]), default=None)
    if dense is None:
        return None, None
    ranks = sorted(a[2] for a in shared if a[2] is not None and (*a[:2], a[3]) == (*dense[:2], dense[3]))
    return dense, (dense[0], dense[1], ranks[len(ranks) // 2], dense[3]) if ranks else None


def _fastest(layers: Iterable[Record]) -> list[tuple[str, ...]]:
    """For the largest dense layers: the two fastest ways to write them in any format."""
    found: dict[Layer, list[tuple[float, str]]] = {}
    for one in layers:
        if one["rank"] is None:
            found.setdefault(_layer(one), []).append((one["seconds"], f"{one['format']} {one['scheme']}"))
    rows: list[tuple[str, ...]] = []
    for layer in sorted(found, key=lambda a: (-a[0] * a[1], a[3], a[0]))[:EXAMPLES]:
        best: Sequence[tuple[float, str]] = sorted(found[layer])[:2]
        cells = [cell for latency, name in best for cell in (name, seconds(latency))]
        rows.append((_named(layer), *cells, *[NONE] * (4 - len(cells))))
    return rows


def _named(layer: Layer) -> str:
    rows, columns, rank, batch = layer
    ranked = "" if rank is None else f" rank {rank}"
    return f"{rows}x{columns}{ranked}" + (f", {batch} rows" if batch > 1 else "")
