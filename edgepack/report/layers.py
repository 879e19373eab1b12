"""The layer table of `edgepack inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgepack.report.cells import size
from edgepack.report.tables import plain_table

if TYPE_CHECKING:
    from rich.console import Group

Energy = Literal["weight", "output", "weighed output"]
"""What the error curve of a layer is of: its weights alone, its output on the calibration data, or that output weighed
by gradients of the model's answer."""


@dataclass(frozen=True)
class LayerReport:
    """One linear layer.

    Attributes:
        rows: rows it multiplies in one inference of the example inputs; None where its input was never seen.
        bytes_share: of all weight bytes of the model.
        macs_share: of the multiplications of all linear layers; None where a layer's rows are unknown.
        break_even: largest rank at which a pair has fewer weights and multiplications than the dense layer of the same
            precision, fp32 or int8.
        break_even_int8_int4: likewise for an int8 pair in bytes against a dense int4 layer.
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
    """

    model: str
    weight_bytes: int
    linear_bytes: int
    method: str
    has_data: bool
    layers: tuple[LayerReport, ...]


HEADERS = (
    "layer",
    "op",
    "out×in",
    "rows",
    "bytes",
    "MACs",
    "break-even",
    "int8 vs int4",
    "rank 90 %",
    "rank 99 %",
    "pays",
)


def render_layers(report: ModelReport) -> Group:
    """One row per layer and what the columns mean."""
    from rich.console import Group
    from rich.text import Text

    share = report.linear_bytes / report.weight_bytes if report.weight_bytes else 0.0
    where = f"{share:.0%} of them in {len(report.layers)} linear layers"
    head = f"{report.model}: {size(report.weight_bytes)} of weights, {where}"
    notes = (
        "break-even: a pair of this rank or less has fewer weights and multiplications than the dense layer at the "
        "same precision (fp32 or int8); int8 vs int4: the same in bytes, an int8 pair against a dense int4 layer.\n"
        f"rank 90 % / 99 %: keeps that share of {_energies(report)}. pays: rank 99 % is not above break-even."
    )
    table = plain_table(HEADERS, [_cells(layer) for layer in report.layers], right=HEADERS[2:-1])
    return Group(Text(head), table, Text(notes, style="dim"))


def _energies(report: ModelReport) -> str:
    """What the ranks keep a share of; layers that differ from most are named."""
    said: dict[Energy, str] = {
        "weight": "weight energy" if report.has_data else "weight energy (no data)",
        "output": "output energy on the calibration data",
        "weighed output": "output energy on the calibration data, weighed by output gradients",
    }
    names: dict[Energy, list[str]] = {}
    for layer in report.layers:
        names.setdefault(layer.energy, []).append(layer.name)
    most, *others = sorted(names, key=lambda energy: -len(names[energy]))
    return "; ".join([said[most], *(f"in {', '.join(names[each])} of {said[each]}" for each in others)])


def _cells(layer: LayerReport) -> tuple[str, ...]:
    return (
        layer.name,
        layer.op if layer.uses == 1 else f"{layer.op} ×{layer.uses}",
        f"{layer.out_features}×{layer.in_features}",
        "–" if layer.rows is None else str(layer.rows),
        f"{layer.bytes_share:.1%}",
        "–" if layer.macs_share is None else f"{layer.macs_share:.1%}",
        str(layer.break_even),
        str(layer.break_even_int8_int4),
        str(layer.rank_90),
        str(layer.rank_99),
        "yes" if layer.rank_99 <= layer.break_even else "no",
    )
