"""The layers of a pack: what became of each, what it was predicted to cost, and why nothing else was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.report.cells import NONE, seconds, size
from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.console import Group

SHORT = ("layer", "out×in", "scheme", "rank", "weights", "why")
NOTHING = 1e-9
"""Shares that are rounding errors of their own computation."""
LONG = ("layer", "out×in", "scheme", "rank", "break-even", "weights", "size", "latency", "loss", "lost", "why")


def layer_table(layers: Sequence[Mapping[str, Any]], headers: tuple[str, ...] = SHORT) -> Any:
    """One row per layer.

    Args:
        layers: of a manifest's entry for a model file.
        headers: `SHORT` or `LONG`.
    """
    rows = [tuple(_cells(layer)[header] for header in headers) for layer in layers]
    return plain_table(headers, rows, right=[h for h in headers if h not in ("layer", "scheme", "why")])


def render_planned(pack: Path, manifest: Mapping[str, Any]) -> Group:
    """Every model file of a pack with its layers, where its figures come from, and how they are to be read."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(f"{pack}: {manifest['model']['name']} for {manifest['target']['name']}")]
    for name, entry in sorted(manifest["files"].items()):
        if "layers" not in entry:
            continue
        parts.append(
            Text(f"\n{name}: {entry['scheme']}, {size(entry['size_bytes'])}, chosen by: {entry['scheme_chosen_by']}")
        )
        parts.append(layer_table(entry["layers"], LONG))
    weighted = manifest.get("loss_weighted_by", "output energy")
    parts.append(Text(f"latency: of the layer alone, predicted. {_LOSSES[weighted]} {_LOST}", style="dim"))
    return Group(*parts)


_LOSSES = {
    "output gradients": "loss: predicted, in nats of the answer's change to second order, quantization included.",
    "output energy": "loss: predicted share of the layer's output energy, quantization included.",
}


_LOST = (
    "lost: share of the layer's output energy on the calibration data: of a pair to truncation + rounding of weights + "
    "rounding of what flows between the two, of a dense layer to rounding."
)


def _lost(shares: Mapping[str, float] | None, rank: int | None) -> str:
    if shares is None:
        return NONE
    names = ("rounding",) if rank is None else ("truncation", "rounding", "latent")
    return " + ".join(f"{shares[name]:.1e}" if shares[name] > NOTHING else "0" for name in names)


def _rank(rank: int | None, structure: str) -> str:
    if structure == "constexpr":
        return NONE
    return "dense" if rank is None else str(rank)


def _scheme(layer: Mapping[str, Any]) -> str:
    scheme: str = layer.get("scheme") or NONE
    return f"{scheme} + pair" if layer["structure"] == "low-rank-correction" else scheme


def _cells(layer: Mapping[str, Any]) -> dict[str, str]:
    dense = layer["out_features"] * layer["in_features"]
    rank = layer["rank"]
    other = layer.get("alternative")
    predicted = layer.get("predicted")
    return {
        "layer": layer["layer"],
        "out×in": f"{layer['out_features']}×{layer['in_features']}",
        "scheme": " ".join([*([] if other is None else [other["method"]]), _scheme(layer)]),
        "rank": _rank(rank, layer["structure"]),
        "break-even": str(layer["break_even_rank"]),
        "weights": f"{layer['weight_parameters'] / dense:.1%}",
        "size": NONE if predicted is None else size(predicted["size_bytes"]),
        "latency": NONE if predicted is None else seconds(predicted["latency_s"]),
        "loss": NONE if predicted is None else f"{predicted['loss']:.2g}",
        "lost": _lost(layer.get("lost_shares"), rank),
        "why": layer["reason"],
    }
