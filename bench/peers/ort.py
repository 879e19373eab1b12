"""ONNX Runtime's own quantizers, and onnxslim: `ort.py MODEL.onnx DATA.npz WAY OUT.onnx`.

Runs in the environment of `requirements/ort.txt`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxslim
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

CALIBRATION = 1000
"""Samples, at most."""


class Reader(CalibrationDataReader):
    """The first samples, one after another."""

    def __init__(self, path: str) -> None:
        with np.load(path) as data:
            self._samples = iter([{"x": x[None]} for x in data["x"][:CALIBRATION]])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """See onnxruntime."""
        return next(self._samples, None)


def prepared(model: str, out: str) -> str:
    """The model as onnxruntime advises to prepare it: without it what torch has noted of shapes is in the way."""
    path = f"{out}.prepared"
    quant_pre_process(model, path)
    return path


def dynamic(model: str, data: str, out: str, *, per_channel: bool) -> None:
    """Weights in int8, activations in uint8 by the ranges of each inference."""
    quantize_dynamic(prepared(model, out), out, per_channel=per_channel)


def static(model: str, data: str, out: str) -> None:
    """Weights and activations in int8, their ranges from samples."""
    quantize_static(
        prepared(model, out),
        out,
        Reader(data),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def four_bits(model: str, data: str, out: str) -> None:
    """Weights of MatMul in blocks of 4 bits; Gemm is no MatMul, and is made one first."""
    graph = onnx.load(model)
    matmuls(graph.graph)
    quantizer = MatMulNBitsQuantizer(graph, bits=4, block_size=32, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(out)


def matmuls(graph: onnx.GraphProto) -> None:
    """Every Gemm as MatMul and Add."""
    arrays = {each.name: each for each in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Gemm":
            nodes.append(node)
            continue
        if any(each.name == "transB" and each.i for each in node.attribute):
            weight = arrays[node.input[1]]
            turned = onnx.numpy_helper.to_array(weight).T.copy()
            weight.CopyFrom(onnx.numpy_helper.from_array(turned, weight.name))
        product = f"{node.output[0]}.product"
        nodes.append(onnx.helper.make_node("MatMul", node.input[:2], [product]))
        nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], node.output))
    del graph.node[:]
    graph.node.extend(nodes)


def slim(model: str, data: str, out: str) -> None:
    """Graph optimization alone."""
    onnxslim.slim(model, out)


WAYS: Mapping[str, Callable[[str, str, str], None]] = {
    "dynamic": lambda model, data, out: dynamic(model, data, out, per_channel=False),
    "dynamic-per-channel": lambda model, data, out: dynamic(model, data, out, per_channel=True),
    "static": static,
    "4-bit": four_bits,
    "slim": slim,
}

if __name__ == "__main__":
    WAYS[sys.argv[3]](sys.argv[1], sys.argv[2], sys.argv[4])
