"""Bytes and time of layers stored in code."""

from __future__ import annotations

from edgepack.coded import is_decoded, stored_bytes
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Format

STEP_BYTES: dict[Format, int] = {"onnx": 110, "tflite": 130}
"""Of one step, names included; a hash is twenty operators."""
OPERATORS_OF = {"bucket": 20}

_Times = dict[Format, float]
DECODED_TIME: _Times = {"onnx": 1.0, "tflite": 3.5}
"""ONNX Runtime folds the decoded matrix into its graph; LiteRT keeps it in a variable, which it copies at every
inference."""
DIRECT_TIME: _Times = {"onnx": 0.5, "tflite": 0.75}
"""Of products in float32 with smaller matrices, at a quarter of the bytes."""
CONVOLVED_TIME: _Times = {"onnx": 6.0, "tflite": 4.0}
"""Of a convolution, from whose results numbers are gathered and summed."""


def coded_size_bytes(fmt: Format, part: Replacement, *, bias: bool) -> int:
    """Bytes of the constants, the operators that read them, and the bias."""
    operators = sum(OPERATORS_OF.get(step.op, 1) for step in part.program)
    return stored_bytes(part) + STEP_BYTES[fmt] * operators + (4 * len(part.weight) if bias else 0)


def time_over_dense(fmt: Format, part: Replacement) -> float:
    """Time of an inference of the layer over that of the dense layer in fp32.

    One number for each kind, measured on 784-512-10 at a quarter of its bytes, batch 1, on an AMD EPYC: what is built
    for this machine is measured as a whole in the end.
    """
    if is_decoded(part):
        return DECODED_TIME[fmt]
    return (CONVOLVED_TIME if any(step.op == "conv1d" for step in part.program) else DIRECT_TIME)[fmt]
