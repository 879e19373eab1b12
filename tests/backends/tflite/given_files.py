"""Small TFLite files as people have them, written with the schema alone: no converter, and no reader of edgepack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgepack.model.types import Array

Storage = Literal["float32", "float16", "int8", "hybrid"]
"""Of weights: as they are, behind DEQUANTIZE, or as int8 that the operator itself takes beside float32 activations."""
RELU = 1


class GivenFile:
    """A graph that grows operator by operator."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.model = schema.ModelT()
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []
        self.model.version, self.model.subgraphs, self.model.operatorCodes = 3, [self.graph], []
        self.model.buffers = [schema.BufferT()]

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "float32", value: Array | None = None) -> int:
        """A new tensor, constant where it has a value; its number."""
        made = self.schema.TensorT()
        made.name, made.shape, made.buffer = name.encode(), list(shape), 0
        made.type = getattr(self.schema.TensorType, dtype.upper())
        if value is not None:
            made.buffer = len(self.model.buffers)
            self.model.buffers.append(self.schema.BufferT())
            self.model.buffers[-1].data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def scaled(self, tensor: int, scales: Array, zero: int = 0) -> int:
        """The tensor on a grid."""
        grid = self.schema.QuantizationParametersT()
        grid.scale, grid.zeroPoint, grid.quantizedDimension = list(map(float, scales)), [zero] * len(scales), 0
        self.graph.tensors[tensor].quantization = grid
        return tensor

    def op(self, name: str, inputs: Sequence[int], output: int, options: str | None = None, **fields: int) -> int:
        """A new operator; returns what it writes."""
        number = getattr(self.schema.BuiltinOperator, name)
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 5
        made = self.schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(self.model.operatorCodes), list(inputs), [output]
        self.model.operatorCodes.append(code)
        if options is not None:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, f"{options}Options")
            made.builtinOptions = getattr(self.schema, f"{options}OptionsT")()
            for field, value in fields.items():
                setattr(made.builtinOptions, field, value)
        self.graph.operators.append(made)
        return output

    def weight(self, name: str, value: Array, storage: Storage) -> int:
        """A constant that an operator multiplies by, float32 for it, or int8 where it is hybrid."""
        if storage == "float32":
            return self.tensor(name, value.shape, "float32", value)
        if storage == "float16":
            held = self.tensor(name, value.shape, "float16", value.astype(np.float16))
        else:
            scales = np.abs(value.reshape(len(value), -1)).max(axis=1) / 127
            along = scales.reshape(-1, *(1,) * (value.ndim - 1))
            held = self.tensor(name, value.shape, "int8", np.rint(value / along).astype(np.int8))
            self.scaled(held, scales)
        if storage == "hybrid":
            return held
        return self.op("DEQUANTIZE", [held], self.tensor(f"{name}_dequantize", value.shape), "Dequantize")

    def save(self, path: Path, change: Callable[[Any], None] | None = None) -> Path:
        """Write it, once `change` has had the schema's model."""
        import flatbuffers

        if change is not None:
            change(self.model)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path


def mlp(weights: Sequence[tuple[Array, Array]], storage: Storage = "float32", x: str = "pixels") -> GivenFile:
    """FULLY_CONNECTED operators in a row, all but the last with a fused ReLU; layers are called fc0, fc1, …"""
    file = GivenFile()
    value = file.tensor(x, (1, weights[0][0].shape[1]))
    file.graph.inputs = [value]
    for number, (weight, bias) in enumerate(weights):
        w = file.weight(f"fc{number}", weight, storage)
        b = file.tensor(f"fc{number}/bias", bias.shape, "float32", bias)
        y = file.tensor(f"fc{number}/out;and;more", (1, len(weight)))
        last = number == len(weights) - 1
        fused = {"fusedActivationFunction": 0 if last else RELU}
        value = file.op("FULLY_CONNECTED", [value, w, b], y, "FullyConnected", **fused)
    file.graph.outputs = [value]
    return file


def convnet(
    first: Array, second: Array, biases: tuple[Array, Array], *, stride: int = 1, storage: Storage = "float32"
) -> GivenFile:
    """Two CONV_2D operators over a 6×6 image with SAME padding, the first strided and with a fused ReLU."""
    file = GivenFile()
    size = -(-6 // stride)
    x = file.tensor("image", (1, 6, 6, first.shape[-1]))
    file.graph.inputs = [x]
    sizes = {"strideW": stride, "strideH": stride, "fusedActivationFunction": RELU}
    middle = file.tensor("conv0/out", (1, size, size, len(first)))
    inputs = [x, file.weight("conv0", first, storage), file.tensor("b0", biases[0].shape, "float32", biases[0])]
    file.op("CONV_2D", inputs, middle, "Conv2D", **sizes)
    y = file.tensor("conv1/out", (1, size, size, len(second)))
    inputs = [middle, file.weight("conv1", second, storage), file.tensor("b1", biases[1].shape, "float32", biases[1])]
    file.op("CONV_2D", inputs, y, "Conv2D", strideW=1, strideH=1)
    file.graph.outputs = [y]
    return file


def stateful(cells: int, coupled: bool = False) -> GivenFile:
    """A fused LSTM over four steps of 8 numbers whose states nothing resets, and a FULLY_CONNECTED of 5 behind it."""
    file, rng = GivenFile(), np.random.default_rng(0)

    def held(name: str, *shape: int) -> int:
        return file.tensor(name, shape, "float32", (rng.standard_normal(shape) / 2).astype(np.float32))

    x = file.tensor("x", (1, 4, 8))
    gates = [
        [held(f"{role}{gate}", *shape) for gate in range(4)]
        for role, shape in (("w", (cells, 8)), ("r", (cells, cells)), ("b", (cells,)))
    ]
    if coupled:
        for each in gates:
            each[0] = -1
    states = [file.tensor(name, (1, cells)) for name in ("h", "c")]
    for state in states:
        file.graph.tensors[state].isVariable = True
    inputs = [x, *gates[0], *gates[1], -1, -1, -1, *gates[2], -1, -1, *states, -1, -1, -1, -1]
    y = file.op(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        inputs,
        file.tensor("y", (1, 4, cells)),
        "UnidirectionalSequenceLSTM",
        fusedActivationFunction=4,
    )
    file.model.operatorCodes[-1].version = 1
    out = file.op("FULLY_CONNECTED", [y, held("head", 5, cells), -1], file.tensor("out", (4, 5)), "FullyConnected")
    file.graph.inputs, file.graph.outputs = [x], [out]
    return file


def integer_layer(weight: Array) -> GivenFile:
    """One FULLY_CONNECTED in int8 throughout, without a bias."""
    file = GivenFile()
    x = file.scaled(file.tensor("x", (1, weight.shape[1]), "int8"), np.array([0.05]), -3)
    scale = float(np.abs(weight).max()) / 127
    w = file.scaled(file.tensor("fc", weight.shape, "int8", np.rint(weight / scale).astype(np.int8)), np.array([scale]))
    y = file.scaled(file.tensor("y", (1, len(weight)), "int8"), np.array([0.1]), 4)
    file.op("FULLY_CONNECTED", [x, w, -1], y, "FullyConnected")
    file.graph.inputs, file.graph.outputs = [x], [y]
    return file
