"""Blocks of ways to weigh and refit factors, and of pairs beside dense matrices in 4 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from block_tables import markdown_table

from edgepack.units import size

Row = Mapping[str, Any]
METHODS = ("svd", "fisher", "whitened", "two-sided")


def render_weighting(figures: Row) -> str:
    """Methods by rank, refit against factors as they were, chosen shrinkage against the rule."""
    rows = figures["methods"]
    ranks = sorted({row["rank"] for row in rows if "rank" in row})
    dense = fmean(row["accuracy"] for row in rows if row["method"] == "dense")
    lines = [[method, *(_pair(_of(rows, method=method, rank=rank)) for rank in ranks)] for method in METHODS]
    table = markdown_table(("method", *(f"rank {rank}" for rank in ranks)), lines, right=())
    head = (
        f"MNIST 784-512-10, mean of {figures['seeds']} models, factors in fp32 without training: accuracy on the test "
        f"digits (fp32 {dense:.1f}), and the KL divergence from the original's answers."
    )
    return "\n\n".join([head, table, *_refit(figures["refit"]), *_shrinkage(figures["shrinkage"])])


def _refit(rows: Sequence[Row]) -> list[str]:
    ranks = sorted({row["rank"] for row in rows if row.get("rank") is not None and row["factors"] != "dense"})
    lines = [
        [str(samples), kind, *(_pair(_of(rows, samples=samples, factors=kind, rank=rank)) for rank in ranks)]
        for samples in sorted({row["samples"] for row in rows if "samples" in row})
        for kind in ("as factored", "refitted")
    ]
    table = markdown_table(("samples", "factors", *(f"rank {rank}" for rank in ranks)), lines, right=("samples",))
    return [
        "The same of int8 files of 784-128-128-128-10, all layers but the last in pairs, with and without `--refit`:",
        table,
    ]


def _shrinkage(rows: Sequence[Row]) -> list[str]:
    ranks = sorted({row["rank"] for row in rows})
    lines = [
        [
            str(samples),
            *(f"{fmean(r['lost_ratio'] for r in _of(rows, samples=samples, rank=rank)):.2f}" for rank in ranks),
        ]
        for samples in sorted({row["samples"] for row in rows})
    ]
    headers = ("samples", *(f"rank {rank}" for rank in ranks))
    what = (
        "Output energy that is lost on held-out digits with the shrinkage chosen by held-out samples, over that of the "
        "fixed rule:"
    )
    return [what, markdown_table(headers, lines, right=headers)]


def _of(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def _pair(rows: Sequence[Row]) -> str:
    return f"{fmean(row['accuracy'] for row in rows):.1f} / {fmean(row['divergence'] for row in rows):.2g}"


def render_residual(figures: Row) -> str:
    """Share of output energy lost and bytes of every way to write a layer, and latency against dense int8."""
    ways = {
        "int8": "dense int8-dynamic, nearest",
        "int8, GPTQ": "dense int8-dynamic, GPTQ",
        "int4": "dense nbits4, nearest",
        "int4, GPTQ": "dense nbits4, GPTQ",
        **{f"int4 + rank {rank}": f"dense nbits4 + rank {rank} nbits8" for rank in (8, 16, 32)},
        "pair of as many bytes as with rank 16": "pair nbits8 of as many bytes as with rank 16",
    }
    lines = [
        [f"{layer['model']} {layer['out']}×{layer['in']}", *(_way(layer["ways"].get(way)) for way in ways.values())]
        for layer in figures["layers"]
    ]
    table = markdown_table(("layer", *ways), lines, right=tuple(ways))
    keys = ("out", "in", "form", "structure", "rank")
    times = {tuple(row[key] for key in keys): row["seconds"] for row in figures["times"]}
    sides = list(dict.fromkeys((row["out"], row["in"]) for row in figures["times"]))
    int8, int4, corrected = (
        [times[*side, *way] for side in sides]
        for way in (
            ("int8-dynamic", "dense", None),
            ("nbits4", "dense", None),
            ("nbits4", "low-rank-correction", 16),
        )
    )
    ratios = [own / one for own, one in zip(corrected, int8, strict=True)]
    dense = [own / one for own, one in zip(int4, int8, strict=True)]
    said = (
        "Share of the layer's output energy that is lost on samples that rounding never saw (bytes in the file). "
        f"On this machine the matrix in 4 bits takes {min(dense):.1f} to {max(dense):.1f} times as long as dense int8, "
        f"with a pair of rank 16 beside it {min(ratios):.1f} to {max(ratios):.1f} times."
    )
    return f"{table}\n\n{said}"


def _way(found: Row | None) -> str:
    return "–" if found is None else f"{found['lost_share']:.1e} ({size(found['size_bytes'])})"
