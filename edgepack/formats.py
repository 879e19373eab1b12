"""The file formats, and the forms in which they hold a linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Format = Literal["onnx", "tflite"]
Precision = Literal["fp32", "int8", "int4"]
Aim = Literal["latency", "size"]
"""What is least in a plan."""

FORMATS: tuple[Format, ...] = ("onnx", "tflite")
FORMS: Mapping[Format, tuple[str, ...]] = {
    "onnx": ("fp32", "int8-dynamic", "int8-static-qdq", "nbits8", "nbits4"),
    "tflite": ("fp32", "int8-dynamic-range", "int8-static", "int4-dynamic-range"),
}
"""How a linear layer is written. Every layer of a file has its own, but `int8-static` of TFLite is the whole file's."""

CODED = "coded"
"""The form of layers that are stored in code, of both formats: numbers of 8 bits, computed with in float32."""

WEIGHT_BITS: Mapping[str, int] = {
    "fp32": 32,
    CODED: 8,
    "int8-dynamic": 8,
    "int8-static-qdq": 8,
    "nbits8": 8,
    "nbits4": 4,
    "int8-dynamic-range": 8,
    "int8-static": 8,
    "int4-dynamic-range": 4,
    "nbits4-residual": 4,
}
"""Bits per weight of a form; of the dense matrix where a pair stands beside it."""

RESIDUAL_FORMS: Mapping[str, tuple[str, str]] = {"nbits4-residual": ("nbits4", "nbits8")}
"""Forms of ONNX that only a layer can take, with a rank: a dense matrix and a thin pair beside it, y = W x + A (B x).
The values are the forms of the matrix and of the pair."""


def plain_form(file_form: str) -> str:
    """A file's form without the variant of its weights beside linear layers."""
    return file_form.partition("+")[0]


def matrices(form: str | None, sides: tuple[int, int], rank: int | None) -> tuple[tuple[str | None, int, int], ...]:
    """(form, outputs, inputs) of each matrix that stands for a layer, in the order of its file: B, A, the dense one.

    A layer stored in code has none that an operator takes as it is stored.

    Args:
        form: of the layer.
        sides: its outputs and inputs.
        rank: None for the dense layer.
    """
    if form == CODED:
        return ()
    if rank is None:
        return ((form, *sides),)
    dense, thin = RESIDUAL_FORMS.get(form or "", (None, form))
    pair = ((thin, rank, sides[1]), (thin, sides[0], rank))
    return pair if dense is None else (*pair, (dense, *sides))
