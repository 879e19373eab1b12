"""Which function computes which operator."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack.torchgraph.onnx.classical import CLASSICAL
from edgepack.torchgraph.onnx.convolution import CONVOLUTION
from edgepack.torchgraph.onnx.elementwise import ELEMENTWISE
from edgepack.torchgraph.onnx.indexing import INDEXING
from edgepack.torchgraph.onnx.microsoft import MICROSOFT
from edgepack.torchgraph.onnx.node import Operator
from edgepack.torchgraph.onnx.normalization import NORMALIZATION
from edgepack.torchgraph.onnx.products import PRODUCTS
from edgepack.torchgraph.onnx.quantized import QUANTIZED
from edgepack.torchgraph.onnx.recurrent import RECURRENT
from edgepack.torchgraph.onnx.reductions import REDUCTIONS
from edgepack.torchgraph.onnx.resampling import RESAMPLING
from edgepack.torchgraph.onnx.shapes import SHAPES
from edgepack.torchgraph.onnx.signals import SIGNALS

ONNX = ("", "ai.onnx")
"""Names of the domain of ONNX' own operators."""

_OWN: Mapping[str, Operator] = {
    **CONVOLUTION,
    **ELEMENTWISE,
    **INDEXING,
    **NORMALIZATION,
    **PRODUCTS,
    **QUANTIZED,
    **RECURRENT,
    **REDUCTIONS,
    **RESAMPLING,
    **SHAPES,
    **SIGNALS,
}
OPERATORS: Mapping[str, Mapping[str, Operator]] = {
    **dict.fromkeys(ONNX, _OWN),
    "ai.onnx.ml": CLASSICAL,
    "com.microsoft": MICROSOFT,
}
"""By domain and name. ONNX' others are computed by the body that their own definition has, where it has one."""
