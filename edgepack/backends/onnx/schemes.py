"""How weights are stored in ONNX files and multiplied by in ONNX Runtime.

`min_version` is the opset that brought the operators: DynamicQuantizeLinear, and QuantizeLinear with MatMulInteger.
MatMulNBits is of another domain; 7 is the oldest opset that its runtime supports.

`ram_per_byte` is what a fresh process holds at its peak (VmHWM, load and three inferences) per byte of the file: the
difference of a dense 2048x2048 layer and factors of rank 256, so that all that does not grow with the weights cancels;
median of three processes, onnxruntime 1.31 on x86_64. It says how the runtime copies weights, which other CPUs change
only where their kernels want another packing.

`instructions_per_op`: a dense and a factored layer of 16x16 on an emulated Cortex-A72, a third of their sum.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from edgepack.model.scheme import CONSTEXPR as CONSTEXPR_NAME
from edgepack.model.scheme import Scheme

DOMAIN = "com.microsoft"
"""Of the operators that ONNX Runtime has beyond the standard."""

_scheme = partial(Scheme, backend="onnx", bytes_per_op=300)

FP32 = _scheme("fp32", bits=32, granularity="tensor", activations="float", qmax=0, instructions_per_op=2800)
WEIGHTS8 = replace(
    FP32,
    name="int8-weights",
    bits=8,
    granularity="channel",
    qmax=127,
    min_version=7,
    min_sqnr_db=10.0,
    bytes_per_channel=4,  # a float32 scale
    ram_per_byte=14.7,  # decoded, and packed for the kernel
    estimated_like=FP32,
)
"""Decoded at load: a quarter of the bytes of float32, the arithmetic stays float. Of any operator with weights."""
WEIGHTS4 = replace(
    WEIGHTS8,
    name="int4-weights",
    bits=4,
    qmax=7,
    min_version=10,
    min_sqnr_db=5.0,
    bytes_per_op=400,
    ram_per_byte=29.0,
)
"""Two to a byte, and decoded at load."""
INT8_DYNAMIC = _scheme(
    "int8-dynamic",
    bits=8,
    granularity="channel",
    activations="dynamic",
    qmax=127,
    min_version=11,
    min_sqnr_db=10.0,
    bytes_per_channel=4,  # a float32 scale
    instructions_per_op=8500,
    saturates=True,
)
INT8_STATIC = _scheme(
    "int8-static-qdq",
    bits=8,
    granularity="channel",
    activations="static",
    qmax=127,
    min_version=10,
    min_sqnr_db=10.0,
    bytes_per_channel=4 + 1 + 4 + 4,  # scale, zero point; scale and zero point of the int32 bias
    ram_per_byte=3.2,  # and the graph's constants before its nodes were fused
    instructions_per_op=8500,
    saturates=True,
)
NBITS8 = _scheme(
    "nbits8",
    bits=8,
    granularity="block",
    activations="dynamic",
    qmax=127,
    min_version=7,
    min_sqnr_db=10.0,
    ram_per_byte=2.2,  # and packed for the kernel
    instructions_per_op=4000,
)
NBITS4 = _scheme(
    "nbits4",
    bits=4,
    granularity="block",
    activations="dynamic",
    qmax=7,
    min_version=7,
    min_sqnr_db=5.0,
    ram_per_byte=2.4,
    instructions_per_op=4000,
    correction=NBITS8,
)
CONSTEXPR = _scheme(CONSTEXPR_NAME, bits=8, granularity="tensor", activations="float", qmax=0)
TABLES4 = _scheme("tables4", bits=4, granularity="block", activations="float", qmax=7, min_sqnr_db=5.0)
"""Embedding tables, of which only rows that are looked up are decoded."""

TABLES: tuple[Scheme, ...] = (TABLES4,)
"""What an embedding table can have beside that of all other weights."""
SCHEMES: tuple[Scheme, ...] = (FP32, WEIGHTS8, WEIGHTS4, INT8_DYNAMIC, INT8_STATIC, NBITS8, NBITS4)
"""What a linear layer can have, dense or factored."""
DENSE_INT8: tuple[Scheme, ...] = (INT8_DYNAMIC, INT8_STATIC)
"""Of a dense model, fastest first. Source: instructions per inference of one 1024×1024 layer, counted in the runtime's
own aarch64 kernels on an emulated Cortex-A72: 399 k dynamic, 441 k static."""
