"""How weights are stored in TFLite files and multiplied by in LiteRT.

`ram_per_byte` is the mapped file and XNNPACK's packed copy, measured as for ONNX with ai-edge-litert 2.3 on x86_64;
`instructions_per_op` likewise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from edgepack.model.scheme import CONSTEXPR as CONSTEXPR_NAME
from edgepack.model.scheme import Scheme

_scheme = partial(Scheme, backend="tflite", bytes_per_op=300)

FP32 = _scheme("fp32", bits=32, granularity="tensor", activations="float", qmax=0, instructions_per_op=300)
WEIGHTS8 = replace(
    FP32,
    name="int8-weights",
    bits=8,
    granularity="channel",
    qmax=127,
    min_sqnr_db=10.0,
    bytes_per_channel=4 + 8,  # a float32 scale, an int64 zero point
    ram_per_byte=9.0,  # decoded, and packed for the kernel
    estimated_like=FP32,
)
"""Behind DEQUANTIZE, which XNNPACK runs once, at load: the arithmetic stays float."""
INT8_DYNAMIC = _scheme(
    "int8-dynamic-range",
    bits=8,
    granularity="channel",
    activations="dynamic",
    qmax=127,
    min_sqnr_db=10.0,
    bytes_per_channel=4 + 8,  # a float32 scale, an int64 zero point
    instructions_per_op=600,
)
INT8_STATIC = _scheme(
    "int8-static",
    bits=8,
    granularity="channel",
    activations="static",
    qmax=127,
    scope="file",
    min_sqnr_db=10.0,
    bytes_per_channel=4 + 8 + 4 + 8,  # likewise, and those of the int32 bias
    instructions_per_op=500,
)
INT4_DYNAMIC = _scheme(
    "int4-dynamic-range",
    bits=4,
    granularity="channel",
    activations="dynamic",
    qmax=7,
    min_sqnr_db=5.0,
    bytes_per_channel=4 + 8,
    instructions_per_op=600,
)
TABLES4 = _scheme("tables4", bits=4, granularity="channel", activations="float", qmax=7, min_sqnr_db=5.0)
"""Embedding tables, of which only rows that are looked up are decoded."""
CONSTEXPR = _scheme(CONSTEXPR_NAME, bits=8, granularity="tensor", activations="float", qmax=0)

SCHEMES: tuple[Scheme, ...] = (FP32, WEIGHTS8, INT8_DYNAMIC, INT8_STATIC, INT4_DYNAMIC)
"""What the linear layers of a file can have, dense or factored."""
DENSE_INT8: tuple[Scheme, ...] = (INT8_DYNAMIC, INT8_STATIC)
"""Of a dense model, fastest first; source as in ONNX: 444 k dynamic-range."""
