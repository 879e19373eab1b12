"""Run a model file on samples in this process, whatever its format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.data import Samples, feeds, is_stacked
from edgepack.errors import ModelError
from edgepack.model.scheme import Format
from edgepack.types import Array, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort


THREADS = min(4, os.cpu_count() or 1)
"""Threads for answers and statistics; latency is measured with one."""


@dataclass(frozen=True)
class Running:
    """A loaded model file: its inputs and `run(inputs by name) -> outputs in the file's order`."""

    inputs: tuple[TensorSpec, ...]
    run: Callable[[Mapping[str, Array]], list[Array]]


def load(path: Path, fmt: Format, *, threads: int = 1, exact: bool = True) -> Running:
    """Load `path` into the runtime of its format.

    Args:
        exact: integer arithmetic as on the targets, without the saturation of x86 CPUs without VNNI; False for timing.

    Raises:
        ModelError: the runtime cannot load it.
    """
    if fmt == "onnx":
        from edgepack.onnxgraph import session as ort

        opened = _exact_session(path, threads) if exact else ort.session(path, threads=threads)
        return Running(_session_inputs(opened), lambda feed: ort.run(opened, None, feed))
    from edgepack.tfliterun import interpreter, run, signature

    loaded = interpreter(path, threads=threads)
    return Running(tuple(signature(path)[1].values()), lambda feed: run(loaded, feed))


def _exact_session(path: Path, threads: int) -> ort.InferenceSession:
    """A session without saturation, also where int8 weights are shared or stand outside of their branch.

    On x86 CPUs without VNNI the runtime widens int8 constants, but only those of the very graph that uses them, and it
    trips over those that are used twice. Copies of them, made in memory, are all that it needs.
    """
    import onnx_ir as ir

    from edgepack.onnxgraph.session import session

    opened = None
    try:
        opened = session(path, threads=threads, exact=True)
    except ModelError as err:
        if "Attempt to replace the existing tensor" not in str(err.__cause__):
            raise
    model = ir.load(path)
    if _own_int8_constants(model) or opened is None:
        opened = session(model, threads=threads, exact=True)
    return opened


def _own_int8_constants(model: ir.Model) -> bool:
    """Give every use of an int8 constant its own copy in its own graph; whether there was any to copy."""
    import onnx_ir as ir

    changed = False
    for home in model.graphs():
        for value in [v for v in home.initializers.values() if v.dtype == ir.DataType.INT8]:
            for number, (node, index) in enumerate(list(value.uses())):
                graph = node.graph
                if value.const_value is None or not isinstance(graph, ir.Graph) or (graph is home and number == 0):
                    continue
                tensor = ir.Tensor(value.const_value.numpy(), name=f"{value.name}.use{number}")
                copy = ir.Value(name=tensor.name, type=value.type, shape=value.shape, const_value=tensor)
                graph.register_initializer(copy)
                node.replace_input_with(index, copy)
                changed = True
    return changed


_ORT_DTYPES = {"float": "float32", "double": "float64"}


def _session_inputs(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    specs = []
    for value in session.get_inputs():
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(d if isinstance(d, int) and d > 0 else None for d in value.shape)
        specs.append(TensorSpec(value.name, shape, np.dtype(_ORT_DTYPES.get(kind, kind))))
    return tuple(specs)


def predict(model: Running, samples: Samples) -> Array:
    """The first output for every sample, samples on the first axis.

    Inputs are matched by name, else by order: converters rename them. Where the batch is free, samples run one by one,
    as they are timed: a grid that is chosen at run time covers all samples of a batch, and rounds each of them worse.
    """
    return np.concatenate(_outputs(model, samples))


def _outputs(model: Running, samples: Samples) -> list[Array]:
    renamed = rename(samples, model.inputs)
    stacked = any(is_stacked(renamed.inputs[spec.name], spec) for spec in model.inputs)
    outputs = []
    for feed, valid in feeds(renamed, model.inputs, dynamic_batch=1):
        first = model.run(feed)[0]
        outputs.append(first[None] if stacked else first[:valid])
    return outputs


def rename(samples: Samples, specs: Sequence[TensorSpec]) -> Samples:
    """Samples under the names of `specs`, matched by order where the names differ."""
    if {spec.name for spec in specs} == set(samples.inputs):
        return samples
    return Samples(dict(zip((s.name for s in specs), samples.inputs.values(), strict=True)), samples.labels)
