"""Blocks of what was counted on emulated targets, and of the time bound against published times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from block_tables import TITLES, markdown_table

from edgepack.units import count, seconds

Row = Mapping[str, Any]
PICTURE = "results/working-set.svg"


def render_emulated(figures: Row) -> str:
    """Both tables, how steady they are, and the picture."""
    ranks = figures["ranks"]
    spread = max(row["spread"] for name in ("layer", "network") for row in figures[name])
    return "\n\n".join(
        [
            "One 1024×1024 layer, batch 1, one thread. Each cell: instructions / L1d misses / last-level misses of one"
            " inference.",
            _counts(figures["targets"], figures["layer"], ranks["layer"]),
            "The 784-512-10 perceptron of the demo, likewise:",
            _counts(figures["targets"], figures["network"], ranks["network"]),
            f"Median of five rounds; within a file they lie at most {spread:.2%} of its instructions apart.",
            f"![Lines read from memory per inference over the rank of the pair]({PICTURE})",
            _knee(figures["curve"]),
        ]
    )


def _counts(targets: Sequence[str], rows: Sequence[Row], rank: int) -> str:
    lines = []
    by_file: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        by_file.setdefault((row["format"], row["layer"], row["form"]), {})[row["target"]] = row
    for (fmt, layer, scheme), found in by_file.items():
        cells = [_cell(found[target]) for target in targets]
        lines.append((TITLES[fmt], layer if layer == "dense" else f"pair, rank {rank}", scheme, *cells))
    headers = ("runtime", "layers", "scheme", *(f"{names} (…/L1d/{_last(rows, names)})" for names in targets))
    return markdown_table(headers, lines, right=headers[3:])


def _last(rows: Sequence[Row], target: str) -> str:
    return str(next(row["last_level"] for row in rows if row["target"] == target))


def _cell(row: Row) -> str:
    return " / ".join(count(row[key]) for key in ("instructions", "l1d_misses", "last_level_misses"))


def _knee(curve: Row) -> str:
    """Where the misses leave zero, in words, from the points."""
    parts = []
    for name in dict.fromkeys(point["target"] for point in curve["points"]):
        points = [point for point in curve["points"] if point["target"] == name]
        level, size = points[0]["last_level"], points[0]["last_level_bytes"]
        # Resident: less than one line in a hundred of the weights comes from memory.
        fits = [p for p in points if p["misses"][level] < 0.01 * p["weight_bytes"] / 64]
        streams = [p for p in points if p["misses"][level] > 0.9 * p["weight_bytes"] / 64]
        parts.append(
            f"{name}: weights stay in {level} ({size >> 10} KiB) up to rank {fits[-1]['rank'] if fits else '–'}"
            f" ({fits[-1]['weight_bytes'] >> 10 if fits else 0} KiB of them) and are read from memory whole from rank"
            f" {streams[0]['rank'] if streams else '–'} on"
        )
    return (
        f"A {curve['side']}×{curve['side']} layer as a pair in LiteRT, {curve['form']}, over the rank; dashes stand"
        f" where the factors' bytes equal the last-level cache. {'; '.join(parts)}."
    )


def render_estimate(figures: Row) -> str:
    """The bound beside the published time, and how far a miss is off."""
    lines = []
    for row in figures["rows"]:
        low, high, published = row["low_s"], row["high_s"], row["published_s"]
        if low <= published <= high:
            verdict = "inside"
        else:
            verdict = f"published is {published / high - 1:.0%} above" if published > high else "published is below"
        lines.append(
            (
                f"MobileNet {row['model']} {row['precision']}",
                row["target"],
                count(row["instructions"]),
                count(row["last_level_misses"]),
                f"{seconds(low)} – {seconds(high)}",
                seconds(published),
                verdict,
            )
        )
    headers = ("network", "board", "instructions", "L2 misses", "bound, 4 threads", "published", "")
    inside = sum(line[-1] == "inside" for line in lines)
    return "\n\n".join(
        [
            markdown_table(headers, lines, right=headers[2:6]),
            f"{inside} of {len(lines)} published times lie inside the bound. Random weights; counted on one thread and"
            " spread over all four cores, which no real run reaches. Published: XNNPACK's README, all cores.",
        ]
    )


def render_emulator(figures: Row) -> str:
    """What the cache model costs over QEMU alone."""
    lines = [
        (
            row["case"],
            count(row["instructions"]),
            f"{row['ratio']:.1f}×",
            f"{row['lowest_ratio']:.1f}× – {row['highest_ratio']:.1f}×",
        )
        for row in figures["rows"]
    ]
    headers = ("program, all of it simulated", "instructions", "CPU time over plain QEMU", "over the rounds")
    return "\n\n".join(
        [
            markdown_table(headers, lines, right=headers[1:]),
            f"Goal: at most {figures['goal_ratio']:g}×. Medians of {figures['rounds']} rounds, both in turns. A bench"
            " simulates only what lies behind the first mark: start-up runs at QEMU's full speed.",
        ]
    )
