"""The operators of a TFLite file as LiteRT executes them.

The runtime's Python has no profiler: each operator is timed as a file of its own, on what flows into it in the whole
model, and so without what the runtime saves where it takes several of them together.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from edgepack.backends.operators import UNROLLED, Doubt, Operator, convolution, matrix_product, typical_s
from edgepack.backends.segments import Cut
from edgepack.backends.tflite import read
from edgepack.backends.tflite.file import read_file, write_file
from edgepack.backends.tflite.read import graphs, op_name, raw_bytes, shape_of
from edgepack.backends.tflite.resize import resized, stated_inputs
from edgepack.backends.tflite.runtime import interpreter, session
from edgepack.backends.tflite.schemes import FP32, INT4_DYNAMIC, INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.tflite.split import Flow, part, renamed, with_copies
from edgepack.errors import ModelError
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Op
from edgepack.model.types import Array

_WEIGHT_AT: Mapping[str, int] = {
    **dict.fromkeys(("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL"), 1)
}
"""Where products have their constant matrix."""
_FLOAT, _UINT8, _INT8, _INT4 = 0, 3, 9, read.INT4


def operators(path: Path, feed: Mapping[str, Array], *, timed: bool) -> tuple[Operator, ...]:
    """See `Backend.operators`; those that run other graphs, and what these hold, have no times."""
    content = read.read_file(path, lambda _: path.read_bytes())
    shapes = {spec.name: feed[spec.name].shape for spec in stated_inputs(content, str(path)) if None in spec.shape}
    with tempfile.TemporaryDirectory() as folder:
        if shapes:
            path = Path(folder, "resized.tflite")
            path.write_bytes(resized(content, shapes))
        found = read.read_file(path, lambda model: tuple(_operators(model)))
        seconds: dict[int, float] = {}
        with suppress(ModelError):  # it cannot be taken apart: a file of several graphs, or with state
            seconds = dict(_seconds(path, feed)) if timed else {}
    return tuple(replace(one, seconds=seconds.get(number)) for number, one in enumerate(found))


def _operators(model: Any) -> Iterator[Operator]:
    """Of the first graph, in order of execution."""
    _, graph = graphs(model)[0]
    every = [graph.Operators(position) for position in range(graph.OperatorsLength())]
    decoded = read.decoded_by(model, graph)
    weights = [_weight(model, graph, each, decoded) for each in every]
    steps = Counter(weight.Buffer() for weight in weights if weight is not None)
    kinds = [op_name(model, each) for each in every]
    floats = {each.Inputs(_given_at(kind)) for each, kind in zip(every, kinds, strict=True) if kind in _WEIGHT_AT}
    for operator, kind, weight in zip(every, kinds, weights, strict=True):
        name = (graph.Tensors(operator.Outputs(0)).Name() or b"").decode() if operator.OutputsLength() else kind
        if weight is None:
            behind = kind == "DEQUANTIZE" and operator.Outputs(0) in floats
            computed = behind and raw_bytes(model, graph.Tensors(operator.Inputs(0))) is None
            yield Operator(name, kind, doubt="float behind integers" if computed else None)
            continue
        given = graph.Tensors(operator.Inputs(_given_at(kind)))
        doubt: Doubt | None = "unsigned weights" if weight.Type() == _UINT8 else None
        if steps[weight.Buffer()] >= UNROLLED:
            doubt = "unrolled"
        direct = weight.Buffer() == graph.Tensors(operator.Inputs(_WEIGHT_AT[kind])).Buffer()
        scheme = _scheme(weight.Type(), given.Type()) if direct else FP32
        yield Operator(name, kind, _products(kind, graph, operator, shape_of(weight)), scheme, doubt)


def _given_at(kind: str) -> int:
    """Where a product has its activations."""
    return 2 if kind == "TRANSPOSE_CONV" else 0


def _weight(model: Any, graph: Any, operator: Any, decoded: Mapping[int, int]) -> Any | None:
    """The constant matrix of a product, before it is decoded; None of any other operator."""
    place = _WEIGHT_AT.get(op_name(model, operator))
    if place is None or operator.InputsLength() <= place or operator.Inputs(place) < 0:
        return None
    tensor = graph.Tensors(decoded.get(operator.Inputs(place), operator.Inputs(place)))
    return tensor if len(shape_of(tensor)) >= 2 and raw_bytes(model, tensor) is not None else None


def _scheme(weight: int, given: int) -> Scheme | None:
    if weight == _FLOAT:
        return FP32
    if weight in (_INT8, _UINT8) and given == weight:
        return INT8_STATIC
    return {_INT8: INT8_DYNAMIC, _UINT8: INT8_DYNAMIC, _INT4: INT4_DYNAMIC}.get(weight)


def _products(kind: str, graph: Any, operator: Any, shape: tuple[int, ...]) -> tuple[Op, ...]:
    out = shape_of(graph.Tensors(operator.Outputs(0)))
    if kind == "CONV_2D" and len(shape) == 4:
        channels = shape_of(graph.Tensors(operator.Inputs(0)))[-1]
        return convolution(shape[0], shape[3], shape[1:3], out[:-1], max(channels // shape[3], 1))
    if kind == "DEPTHWISE_CONV_2D" and len(shape) == 4:
        return convolution(out[-1], 1, shape[1:3], out[:-1], out[-1])
    if kind == "TRANSPOSE_CONV" and len(shape) == 4:  # of every place of its input, as many as the kernel gives
        places = prod(shape_of(graph.Tensors(operator.Inputs(2)))[:-1])
        return matrix_product(prod(shape[:3]), prod(shape), prod(shape[:3]) * places)
    rows = out[-1] if out else 0
    return matrix_product(rows, prod(shape[-2:]), prod(out))


def _seconds(path: Path, feed: Mapping[str, Array]) -> Iterator[tuple[int, float]]:
    """Of each operator that computes anything at run time, by its number."""
    model = read_file(path)
    flow, tensors = Flow(model), renamed(model)
    whole = interpreter(path, watched=True)
    session(whole).run(feed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "operator.tflite")
        for number in flow.steps:
            one = Cut(None, (number,), tuple(dict.fromkeys(flow.reads(number))), tuple(flow.writes(number)))
            write_file(model, part(with_copies([number], (), flow), one, (), tensors, flow), file)
            values = {tensors[tensor].name: whole.get_tensor(tensor) for tensor in one.inputs}
            with suppress(ModelError, ValueError):  # it does not run by itself
                yield number, _alone_s(file, values)


def _alone_s(file: Path, values: Mapping[str, Array]) -> float:
    """Of a file of one operator; its inputs are set once."""
    alone = interpreter(file)
    for given in alone.get_input_details():
        alone.set_tensor(given["index"], values[given["name"]])
    return typical_s(alone.invoke)
