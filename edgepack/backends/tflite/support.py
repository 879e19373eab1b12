"""Which layers LiteRT can hold in which scheme, each rule once."""

from __future__ import annotations

from collections.abc import Iterable

from edgepack.backends.tflite.schemes import INT4_DYNAMIC
from edgepack.model.layer import Layer
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Op


def takes_int4(operator: str, columns: int) -> bool:
    """Whether the runtime has a fast kernel for 4-bit weights of this operator.

    XNNPACK takes FULLY_CONNECTED with an even number of columns. All else runs in LiteRT's own kernels, which unpack
    the weights at every inference and are slower than with 8 bits.
    """
    return operator == "FULLY_CONNECTED" and columns % 2 == 0


def unsupported(layer: Layer, ops: Iterable[Op], scheme: Scheme) -> str | None:
    """Why a layer's products cannot be stored in a scheme; None where they can."""
    if scheme != INT4_DYNAMIC:
        return None
    operator = "CONV_2D" if layer.geometry.operator == "Conv" else "FULLY_CONNECTED"
    odd = next((op for op in ops if not takes_int4(operator, op.columns)), None)
    return None if odd is None else f"LiteRT has no fast 4-bit kernel for {operator} with {odd.columns} inputs"
