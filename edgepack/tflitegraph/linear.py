"""The operators of a .tflite file that have a constant matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.tflitegraph.tables import INT4, constant, graphs, op_name, options_of, read_file, scales_of
from edgepack.types import Array

_LINEAR_OPS = {"FULLY_CONNECTED": (0, 1, 2), "CONV_2D": (0, 1, 2), "BATCH_MATMUL": (0, 1, None)}


@dataclass(frozen=True)
class TfliteLinear:
    """One operator with a constant matrix.

    Attributes:
        op: "FULLY_CONNECTED", "CONV_2D" (1×1 kernels only) or "BATCH_MATMUL" (constant right side).
        output: name of the tensor it writes.
        input, output_index: indices of the tensors it reads and writes, to follow chains of operators.
        weight: (out, in), in the file's type: float32, float16 or the stored integers.
        bits: of one weight in the file.
        scales: of the weight: (out,) or (1,) float32; empty for floats.
        axis: of `weight` along which the scales run, None if there is one for all or none.
        bias: (out,) in the file's type, None if there is none. A bias of zeros is dropped by the converter.
        subgraph: the subgraph it is in.
        stride: of a convolution, the larger of its two.
        buffer: number of the buffer that holds the weight; operators may share one.
    """

    op: str
    output: str
    input_index: int
    output_index: int
    weight: Array
    bits: int
    scales: Array
    axis: int | None
    bias: Array | None
    subgraph: int = 0
    stride: int = 1
    buffer: int = 0

    @property
    def values(self) -> Array:
        """(out, in) float32: the weights as the kernel understands them (symmetric grids)."""
        if self.scales.size == 0:
            return self.weight.astype(np.float32)
        scales = self.scales if self.axis is None else self.scales[:, None]
        return np.asarray(self.weight.astype(np.float32) * scales, dtype=np.float32)


def linear_ops(path: Path | str) -> list[TfliteLinear]:
    """The operators with a constant matrix, in order of execution.

    Raises:
        ModelError: missing, empty, truncated or foreign file.
    """
    return read_file(path, _linear_ops)


def _linear_ops(model: Any) -> list[TfliteLinear]:
    found = []
    initial = _initial_graphs(model)
    for index, graph in graphs(model):
        for position in range(graph.OperatorsLength()):
            operator = graph.Operators(position)
            name = op_name(model, operator)
            if name in _LINEAR_OPS and index not in initial:
                site = _linear_op(model, graph, operator, name, index)
                if site is not None:
                    found.append(site)
    return found


def _initial_graphs(model: Any) -> set[int]:
    """Subgraphs that run once, before the first inference: what they multiply is no layer."""
    operators = (graph.Operators(position) for _, graph in graphs(model) for position in range(graph.OperatorsLength()))
    once = (options_of(each, "CallOnceOptions") for each in operators if op_name(model, each) == "CALL_ONCE")
    return {int(options.InitSubgraphIndex()) for options in once if options is not None}


def _linear_op(model: Any, graph: Any, operator: Any, name: str, subgraph: int) -> TfliteLinear | None:
    x, w, b = _LINEAR_OPS[name]
    tensor = graph.Tensors(operator.Inputs(w))
    weight = constant(model, tensor)
    if weight is None:
        return None
    if name == "CONV_2D":
        if weight.shape[1:3] != (1, 1):
            return None
        weight = weight.reshape(weight.shape[0], weight.shape[3])
    if weight.ndim != 2:
        return None
    scales, axis = scales_of(tensor)
    if name == "BATCH_MATMUL" and not _adjoint_y(operator):
        weight, axis = weight.T, None if axis is None else 1 - axis
    bias = None
    if b is not None and operator.InputsLength() > b and operator.Inputs(b) >= 0:
        bias = constant(model, graph.Tensors(operator.Inputs(b)))
    output = operator.Outputs(0)
    return TfliteLinear(
        op=name,
        output=graph.Tensors(output).Name().decode(),
        input_index=operator.Inputs(x),
        output_index=output,
        weight=weight,
        bits=4 if tensor.Type() == INT4 else weight.dtype.itemsize * 8,
        scales=scales,
        axis=axis if scales.size > 1 else None,
        bias=bias,
        subgraph=subgraph,
        stride=_stride(operator) if name == "CONV_2D" else 1,
        buffer=int(tensor.Buffer()),
    )


def _stride(operator: Any) -> int:
    options = options_of(operator, "Conv2DOptions")
    return 1 if options is None else int(max(options.StrideH(), options.StrideW()))


def _adjoint_y(operator: Any) -> bool:
    options = options_of(operator, "BatchMatMulOptions")
    return options is not None and bool(options.AdjY())
