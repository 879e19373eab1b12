"""Between a layer's place in a graph and the kernels, which want float32 with the features on the last axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepack.backends.onnx.rewrite import Builder
    from edgepack.backends.onnx.sites import Placement

FLOAT, FLOAT16 = 1, 10


def enter(
    builder: Builder, x: ir.Value, placement: Placement, dtype: np.dtype[np.generic], *, convolutions: bool = False
) -> ir.Value:
    """The layer's input in float32 with features on the last axis.

    Args:
        dtype: in which the layer's nodes compute.
        convolutions: move the channels of a 1×1 convolution as well; without, they stay on axis 1.
    """
    if dtype == np.float16:
        x = builder.op("Cast", [x], {"to": FLOAT})
    axes = _axes(placement, convolutions)
    return x if axes is None else builder.op("Transpose", [x], {"perm": axes})


def leave(
    builder: Builder, y: ir.Value, placement: Placement, dtype: np.dtype[np.generic], *, convolutions: bool = False
) -> ir.Value:
    """Undo `enter` on the layer's output."""
    axes = _axes(placement, convolutions)
    if axes is not None:
        y = builder.op("Transpose", [y], {"perm": [axes.index(axis) for axis in range(len(axes))]})
    return builder.op("Cast", [y], {"to": FLOAT16}) if dtype == np.float16 else y


def _axes(placement: Placement, convolutions: bool) -> list[int] | None:
    """The order of axes that puts the features last; None where they are. A vector has only one axis."""
    rank = placement.rank
    if rank is None or rank < 2:
        return None
    if placement.kind == "columns":
        return [*range(rank - 2), rank - 1, rank - 2]
    if placement.kind == "conv" and convolutions:
        return [0, *range(2, rank), 1]
    return None
