"""What a runtime holds in memory of a layer's weights, from what they take in the file."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack.formats import RESIDUAL_FORMS, Format

RESIDENT_PER_BYTE: Mapping[tuple[Format, str], float] = {
    ("onnx", "fp32"): 2.0,  # the file as it was parsed, and the initializers made of it
    ("onnx", "int8-dynamic"): 2.0,
    ("onnx", "int8-static-qdq"): 3.2,  # and the graph's constants before its nodes were fused
    ("onnx", "nbits8"): 2.2,  # and packed for the kernel
    ("onnx", "nbits4"): 2.4,
    ("tflite", "fp32"): 2.0,  # the mapped file, and XNNPACK's packed copy
    ("tflite", "int8-dynamic-range"): 2.0,
    ("tflite", "int8-static"): 2.0,
    ("tflite", "int4-dynamic-range"): 2.0,
}
"""Bytes that a fresh process holds at its peak (VmHWM, load and three inferences) per byte of the file: the
difference of a dense 2048x2048 layer and a pair of rank 256, so that all that does not grow with the weights cancels.
Median of three processes; onnxruntime 1.31 and ai-edge-litert 2.3 on x86_64. It says how the runtimes copy weights,
which other CPUs change only where their kernels want another packing."""


def resident_bytes(fmt: Format, form: str, size_bytes: int) -> int:
    """Bytes of memory, at the peak, that weights of `size_bytes` in the file take in the runtime of a format.

    A pair beside a dense matrix is a small part of the two: both count as the matrix does.
    """
    most, _ = RESIDUAL_FORMS.get(form, (form, None))
    return round(RESIDENT_PER_BYTE[fmt, most] * size_bytes)
