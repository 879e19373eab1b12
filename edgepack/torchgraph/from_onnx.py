"""ONNX → torch through pnnx, proved by running both."""

from __future__ import annotations

import re
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ModelError
from edgepack.model.types import Array
from edgepack.torchgraph import pnnx_input, pnnx_recurrent
from edgepack.torchgraph.pnnx_operators import HINT
from edgepack.torchgraph.pnnx_source import build_module

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto
    from torch.export import ExportedProgram
    from torch.nn import Module

PARITY_TOLERANCE = 1e-4
"""Largest difference from onnxruntime, relative to the largest output value: fp32 sums in another order stay below."""
LEAST_ERROR = 1.2e-7
"""Of float32 beside 1: runtimes cut the tails of a sigmoid off far below it."""
_TIMEOUT_S = 600
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_PNNX_DTYPES = {"float32": "f32", "float64": "f64", "float16": "f16", "uint8": "u8"}
_PNNX_DTYPES |= {"int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64"}
# Fusions that change weights: the layers must keep the values that they have in the ONNX file.
_KEEP_WEIGHTS = [
    "ConvAddFusion",
    "ConvMulFusion",
    "ConvBNFusion",
    "MatMulBNFusion",
    "DivMulFusion",
    "MatMulScaleFusion",
]


@dataclass(frozen=True)
class _Simplified:
    """A graph that pnnx may see.

    Attributes:
        path: of the file in which inputs, weights and results have neutral names.
        dtypes: numpy's type of each input, by the name that the original gives it.
        inputs: the neutral name of each input, in the same order.
        outputs: the original's names of its outputs, in order.
    """

    path: Path
    dtypes: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def onnx_to_program(path: Path | str, shapes: Mapping[str, Sequence[int]]) -> ExportedProgram:
    """A torch program that computes what an ONNX file computes, at static shapes.

    The graph is first simplified by onnxruntime's basic optimizations at these shapes (constants folded, shape
    arithmetic gone) and its names and strings made neutral, then converted by pnnx in a temporary folder, then compared
    with onnxruntime on seeded inputs.

    Args:
        path: the ONNX file.
        shapes: static shape of each input, by name.

    Returns:
        The exported program; its inputs and outputs are in the order of the ONNX graph.

    Raises:
        ModelError: names the node or operator that cannot be converted, or says how far the outputs differ.
    """
    import torch

    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="edgepack-pnnx-") as name:
        folder = Path(name)
        simple = _simplified(path, shapes, folder)
        module = _converted(simple, shapes, folder)
        inputs = tuple(torch.from_numpy(a) for a in _seeded(shapes, simple.dtypes, 0, 1).values())
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = torch.export.export(module, inputs, strict=False)
        except Exception as err:
            raise ModelError(f"{path.name}: torch cannot trace what pnnx made of it: {err}", hint=HINT) from err
        _prove(simple, program.module(check_guards=False), shapes, path.name)
    return program


def graph_names(path: Path | str) -> tuple[list[str], list[str]]:
    """Names of an ONNX graph's inputs and outputs, in order, without initializers that are listed as inputs."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {value.name for value in graph.initializer}
    return [v.name for v in graph.input if v.name not in constants], [v.name for v in graph.output]


def _simplified(path: Path, shapes: Mapping[str, Sequence[int]], folder: Path) -> _Simplified:
    """The graph at static shapes with its constants folded."""
    import onnx
    import onnxruntime as ort

    model = onnx.load(str(path))
    inputs = {value.name for value in model.graph.initializer}
    dtypes: dict[str, str] = {}
    for value in model.graph.input:
        if value.name in inputs:
            continue
        if value.name not in shapes:
            raise ModelError(f"{path.name}: no shape was given for input {value.name!r}")
        tensor = value.type.tensor_type
        dtypes[value.name] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        if dtypes[value.name] not in _PNNX_DTYPES:
            raise ModelError(
                f"{path.name}: input {value.name!r} is {dtypes[value.name]}, which pnnx does not take", hint=HINT
            )
        tensor.shape.Clear()
        for size in shapes[value.name]:
            tensor.shape.dim.add().dim_value = int(size)
    # Shapes noted for other input sizes would contradict the new ones.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    fixed, simple = folder / "fixed.onnx", folder / "model.onnx"
    big = model.ByteSize() > 1_900_000_000
    onnx.save(model, str(fixed), save_as_external_data=big)
    del model  # a whole copy of the weights that onnxruntime's own would come on top of
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(simple)
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(str(fixed), options, providers=["CPUExecutionProvider"], disabled_optimizers=_KEEP_WEIGHTS)
    except Exception as err:
        raise ModelError(f"{path.name}: onnxruntime cannot load it at shapes {dict(shapes)}: {err}") from err
    clean = onnx.load(str(simple))
    _refuse_foreign(clean, path.name)
    _drop_idle_slices(clean)
    _drop_saturate(clean)
    pnnx_recurrent.complete(clean, path.name, HINT)
    outputs = tuple(value.name for value in clean.graph.output)
    names = pnnx_input.neutral(clean, path.name)
    onnx.save(clean, str(simple), save_as_external_data=big)
    return _Simplified(simple, dtypes, tuple(names[name] for name in dtypes), outputs)


def _drop_saturate(model: ModelProto) -> None:
    """Remove `saturate` from casts: it matters to 8-bit floats alone, and pnnx knows no Cast that has it."""
    for node in model.graph.node:
        if node.op_type == "Cast":
            kept = [attribute for attribute in node.attribute if attribute.name != "saturate"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _drop_idle_slices(model: ModelProto) -> None:
    """Remove slices that keep everything, as tf2onnx writes them: pnnx mistakes several axes in one of them."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {v.name: list(v.dims) for v in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    idle: dict[str, str] = {}
    for node in list(model.graph.node):
        for place, name in enumerate(node.input):
            node.input[place] = idle.get(name, name)
        if node.op_type != "Slice" or node.output[0] in outputs:
            continue
        before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
        if before and before == after and all(size > 0 for size in before) and not _reverses(node, model):
            idle[node.output[0]] = node.input[0]
            model.graph.node.remove(node)


def _reverses(node: NodeProto, model: ModelProto) -> bool:
    """Whether a slice may have negative steps (its shape is kept then, its order is not)."""
    import onnx

    if len(node.input) < 5 or not node.input[4]:
        return False
    steps = [onnx.numpy_helper.to_array(v) for v in model.graph.initializer if v.name == node.input[4]]
    return not steps or bool((steps[0] < 0).any())


def _refuse_foreign(model: ModelProto, name: str) -> None:
    """Refuse nodes that pnnx would drop or crash on.

    Raises:
        ModelError: names the node.
    """
    graphs: list[GraphProto] = [model.graph]
    for node in (n for graph in graphs for n in graph.node):
        label = f"{name}: node {node.name or node.output[0]!r}"
        if node.domain not in pnnx_input.DOMAINS:
            raise ModelError(f"{label} is {node.domain}.{node.op_type}, an operator outside of ONNX", hint=HINT)
        if node.op_type in _CONTROL_FLOW:
            raise ModelError(f"{label} is {node.op_type}: control flow cannot go into the TFLite file", hint=HINT)


def _converted(simple: _Simplified, shapes: Mapping[str, Sequence[int]], folder: Path) -> Module:
    """Run pnnx and build the module from its source.

    pnnx goes on to write files for another runtime and may crash there, after the ones needed here are complete: what
    counts is whether they parse and, later, whether the outputs agree.
    """
    sizes = ",".join(f"[{','.join(map(str, shapes[n]))}]{_PNNX_DTYPES[d]}" for n, d in simple.dtypes.items())
    # Level 1 translates node by node; level 2 would fuse attention and repack its weights, which then match no layer.
    command = [str(_executable()), simple.path.name, f"inputshape={sizes}", "fp16=0", "optlevel=1"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise ModelError(f"pnnx did not run: {err}", hint=HINT) from err
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode("utf-8", "replace"))
    source, weights = folder / "model_pnnx.py", folder / "model.pnnx.bin"
    if not source.is_file() or not weights.is_file():
        stopped = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise ModelError(f"pnnx stopped with {stopped}: {_complaint(log)}", hint=HINT)
    return build_module(source, weights)


def _executable() -> Path:
    """pnnx' program file, found without importing its package, which imports more than it needs."""
    import importlib.util

    spec = importlib.util.find_spec("pnnx")
    if spec is None or spec.origin is None:
        raise ModelError("an ONNX model needs pnnx to become a TFLite file", hint="pip install 'edgepack[tflite]'")
    folder = Path(spec.origin).parent
    return next((p for p in (folder / "pnnx", folder / "pnnx.exe") if p.is_file()), folder / "pnnx")


def _complaint(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [
        line for line in lines if re.search(r"not supported|unsupported|unknown|ignore|failed|error", line, re.I)
    ]
    return (telling or lines or ["no message"])[-1]


def _seeded(shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str], seed: int, top: int) -> dict[str, Array]:
    """Normal floats; integers from 0 … top, but from {0, 1} for masks and segment ids, told by their names."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for name, dtype in dtypes.items():
        if np.dtype(dtype).kind == "f":
            inputs[name] = rng.standard_normal(tuple(shapes[name])).astype(dtype)
        else:
            high = 1 if re.search(r"mask|type|segment", name, re.IGNORECASE) else top
            inputs[name] = np.asarray(rng.integers(0, high, tuple(shapes[name]), endpoint=True)).astype(dtype)
    return inputs


def _prove(simple: _Simplified, module: Any, shapes: Mapping[str, Sequence[int]], name: str) -> None:
    """Compare torch with onnxruntime on two sets of seeded inputs.

    Raises:
        ModelError: an output differs by more than `PARITY_TOLERANCE`.
    """
    import onnxruntime as ort
    import torch

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(simple.path), options, providers=["CPUExecutionProvider"])
    for seed in (0, 1):
        inputs, expected = _reference(session, simple, shapes, seed, name)
        try:
            with torch.no_grad():
                got = module(*[torch.from_numpy(array) for array in inputs])
        except (RuntimeError, TypeError, IndexError) as err:
            raise ModelError(f"{name}: what pnnx made of it does not run in torch: {err}", hint=HINT) from err
        results = [got] if isinstance(got, torch.Tensor) else list(got)
        if len(results) != len(expected):
            raise ModelError(
                f"{name}: pnnx gives {len(results)} outputs, the ONNX graph has {len(expected)}", hint=HINT
            )
        for output, want, have in zip(simple.outputs, expected, results, strict=True):
            _compare(f"{name}: output {output!r}", np.asarray(want), torch.as_tensor(have).numpy())


def _reference(
    session: Any, simple: _Simplified, shapes: Mapping[str, Sequence[int]], seed: int, name: str
) -> tuple[list[Array], list[Any]]:
    """(seeded inputs, onnxruntime's outputs): integers to 255, or to 1 where the model indexes smaller tables."""
    for top in (255, 1):
        inputs = list(_seeded(shapes, simple.dtypes, seed, top).values())
        try:
            return inputs, session.run(None, dict(zip(simple.inputs, inputs, strict=True)))
        except Exception as err:
            if top == 1:
                raise ModelError(f"{name}: onnxruntime cannot run it on random inputs: {err}") from err
    raise AssertionError("unreachable")


def _compare(label: str, want: Array, have: Array) -> None:
    if want.shape != have.shape:
        raise ModelError(f"{label} has shape {have.shape} in torch, {want.shape} in onnxruntime", hint=HINT)
    if want.size == 0:
        return
    want, have = want.astype(np.float64), have.astype(np.float64)
    scale = float(np.nanmax(np.abs(want), initial=0.0)) or 1.0
    if not np.array_equal(np.isnan(want), np.isnan(have)):
        raise ModelError(f"{label} is NaN in only one of torch and onnxruntime", hint=HINT)
    error = max(float(np.nanmax(np.abs(want - have), initial=0.0)) - LEAST_ERROR, 0.0) / scale
    if not error <= PARITY_TOLERANCE:
        raise ModelError(
            f"{label} differs from onnxruntime's by {error:.2g} of its largest value, "
            f"at most {PARITY_TOLERANCE:g} was expected",
            hint=HINT,
        )
