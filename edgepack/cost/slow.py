"""Which operators of a model file run in a slow kernel on a target, why, and what a build makes of them.

Instructions were counted in the runtimes' own aarch64 kernels, on an emulated Cortex-A72 (without dot product) and
Cortex-A76 (with it), products of 4 vectors of 256 numbers by 256x256 weights, and a 3x3 convolution of 32 channels at
14x14 places; times are of the first product, of 16 vectors of 512 numbers, on x86 with AVX2:

- ConvInteger over Conv in float32: 2.24 and 0.65;
- MatMulInteger with uint8 weights over int8 ones: 1.37 and 1.00, on x86 1.1 to 1.3; with int8 inputs over uint8 ones
  1.00 and 1.00, on x86 10;
- FULLY_CONNECTED in uint8 over int8: 1.28 and 3.3, on x86 1.7.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edgepack.backends.operators import Doubt, Operator
from edgepack.cost.roofline import roofline
from edgepack.model.scheme import Format
from edgepack.targets.target import Target

DOT_PRODUCTS = frozenset({"dotprod", "i8mm", "avx-vnni", "avx512-vnni"})
"""Of the instruction sets, those with products of four bytes at once."""
X86 = ("x86_64", "i686")


@dataclass(frozen=True)
class Slow:
    """Why an operator is slow, and what a build does about it; sentences for people."""

    why: str
    build: str


STAYS = "build leaves it as it is: give it the model from before it was quantized"
BY_FORM = (
    "build decodes its weights and plans them anew where the file itself has this operator; where the runtime made it "
    "of quantizers around one in float, they stay: give it the model from before it was quantized"
)
DECODED = "build decodes its weights and plans them anew, unless they are among what it keeps"

WHY: Mapping[Doubt, str] = {
    "blocks": "its weights are decoded to float32 at every inference: the CPU has no kernel for blocks",
    "integer convolution": "ConvInteger takes longer than Conv in float32 on a CPU without dot products",
    "signed inputs": "x86 CPUs without dot products have no fast kernel for int8 inputs",
    "unsigned weights": "kernels are made for int8 weights, these are uint8",
    "float behind integers": "its integers are decoded for an operator in float32: the pair of quantizers around that "
    "was not fused",
    "decoded": "weights are decoded at every inference, and multiplied in float32",
    "unrolled": "one of many products with the same matrix: a recurrence that was unrolled into its steps",
}
_OF_WEIGHTS: Collection[Doubt] = ("blocks", "integer convolution", "unsigned weights", "decoded")
_UNROLLED = "build finds a smaller matrix for all of them, and leaves them apart: export the cell as one operator"


def slow(operator: Operator, fmt: Format, target: Target) -> Slow | None:
    """Why an operator is slow on a target; None where nothing says that it is."""
    doubt = operator.doubt
    if doubt is None:
        return None
    dots = bool(DOT_PRODUCTS & set(target.isa))
    fine = {
        "blocks": roofline(target).kernels.nbits is not None,
        "integer convolution": dots,
        "signed inputs": dots or target.arch not in X86,
        "unsigned weights": dots and fmt == "onnx",
    }
    return None if fine.get(doubt, False) else Slow(WHY[doubt], _by_build(operator, doubt, fmt))


def _by_build(operator: Operator, doubt: Doubt, fmt: Format) -> str:
    """What a build does about it: where activations are floats, weights in integers are layers."""
    if doubt == "unrolled":
        return _UNROLLED
    if fmt == "onnx" and operator.kind in ("QLinearMatMul", "QGemm"):  # the runtime's own name for both
        return BY_FORM
    in_floats = operator.scheme is None or not operator.scheme.is_static
    return DECODED if fmt == "onnx" and in_floats and doubt in _OF_WEIGHTS else STAYS
