"""The curve of misses over the rank as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw_working_set(curve: Mapping[str, Any], path: Path) -> None:
    """Last-level misses per inference over the rank, a line per target; dashes where the factors fill its last level.

    Args:
        curve: of `measure_emulated.measure`.
        path: SVG to write; the same figures give the same bytes.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "edgepack", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for index, name in enumerate(dict.fromkeys(point["target"] for point in curve["points"])):
        points = [point for point in curve["points"] if point["target"] == name]
        last = points[0]["last_level_bytes"]
        label = f"{name}: {points[0]['last_level']} of {last >> 10} KiB"
        misses = [max(point["misses"][point["last_level"]], 1) for point in points]
        axes.plot([point["rank"] for point in points], misses, marker="o", markersize=3, color=f"C{index}", label=label)
        axes.axvline(
            last * points[0]["rank"] / points[0]["weight_bytes"], color=f"C{index}", linestyle="--", linewidth=1
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"rank of the pair in the place of a {curve['side']}×{curve['side']} layer, {curve['form']}",
        ylabel="lines read from memory per inference",
    )
    ticks = [16, 32, 64, 128, 256, 512, 1024]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
