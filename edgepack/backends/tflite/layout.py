"""What litert-torch is told of channels-last: operators that its pass for layouts does not know.

The pass lets convolutions, and what stands between them, compute with channels last, as LiteRT wants it. Around an
operator that it does not know it puts a transpose on each side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Node


def teach_layouts() -> None:
    """Tell the pass, for this process: pads with a constant, and what computes each element by itself."""
    import torch
    from litert_torch._convert.fx_passes.optimize_layout_transposes_pass.layout_rewrite import noop, rewriters

    aten = torch.ops.aten
    rewriters.register(aten.constant_pad_nd)(_pad_channels_last)
    for single in (aten.elu, aten.square):
        rewriters.register(single)(noop)


def _pad_channels_last(node: Node) -> None:
    """A pad of an image (N, C, H, W) with channels last: widths are those of the last axis first."""
    x, widths, *fill = node.args
    w, h, c, n = ([*widths, *[0] * 8][at : at + 2] for at in (0, 2, 4, 6))
    node.args = (x, [*c, *w, *h, *n], *fill)
