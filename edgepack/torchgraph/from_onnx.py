"""ONNX → torch, proved by running both."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ModelError
from edgepack.model.types import Array
from edgepack.torchgraph.onnx.node import HINT
from edgepack.torchgraph.parity import PARITY_DB, ROUNDED_DB, difference

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from edgepack.torchgraph.onnx.module import OnnxModule, Step

_TOPS = (255, 1, 0)
"""Of seeded integers, the largest first: a model may index smaller tables."""
_Run = tuple[dict[str, Array], list[Any]]
"""Inputs by name, in order, and onnxruntime's outputs."""
_LARGE = 1_900_000_000
"""Bytes of a model that does not fit into one message."""
_DTYPES = ("float32", "float64", "float16", "bool", "uint8", "int8", "int16", "int32", "int64")
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
    """A graph at static shapes with its constants folded.

    Attributes:
        model: with all its data.
        path: of the file that holds it.
        dtypes: numpy's type of each input, by name, in order.
        outputs: names of its outputs, in order.
    """

    model: ModelProto
    path: Path
    dtypes: Mapping[str, str]
    outputs: tuple[str, ...]


def onnx_to_program(
    path: Path | str, shapes: Mapping[str, Sequence[int]], samples: Sequence[Mapping[str, Array]] = ()
) -> ExportedProgram:
    """A torch program that computes what an ONNX file computes, at static shapes.

    The graph is first simplified by onnxruntime's basic optimizations at these shapes (constants folded, shape
    arithmetic gone), then its nodes become torch's operators, one by one, and every output is compared with
    onnxruntime's by signal over noise; differences of less than `LEAST_ERROR` count for nothing.

    Args:
        path: the ONNX file.
        shapes: static shape of each input, by name.
        samples: inputs of single runs on which the outputs are compared; seeded ones where there are none.

    Returns:
        The exported program; its inputs and outputs are in the order of the ONNX graph.

    Raises:
        ModelError: names the node that cannot be converted, or says how far the outputs differ and from where on.
    """
    import torch
    from torch.fx.traceback import preserve_node_meta

    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="edgepack-onnx-") as name:
        simple = _simplified(path, shapes, Path(name))
        module, runs = _built(simple, shapes, samples, path.name)
        inputs = tuple(torch.from_numpy(array) for array in runs[0][0].values())
        try:
            with warnings.catch_warnings(), torch.no_grad(), preserve_node_meta():
                warnings.simplefilter("ignore")
                program = torch.export.export(module, inputs, strict=False)
        except Exception as err:
            raise ModelError(f"{path.name}: torch cannot trace it: {err}", hint=HINT) from err
        _prove(simple, module, program.module(check_guards=False), runs, path.name)
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
        if dtypes[value.name] not in _DTYPES:
            raise ModelError(
                f"{path.name}: input {value.name!r} is {dtypes[value.name]}, one of {', '.join(_DTYPES)} was expected",
                hint=HINT,
            )
        tensor.shape.Clear()
        for size in shapes[value.name]:
            tensor.shape.dim.add().dim_value = int(size)
    # Shapes noted for other input sizes would contradict the new ones.
    del model.graph.value_info[:]
    _without_maps(model)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    fixed, simple = folder / "fixed.onnx", folder / "model.onnx"
    onnx.save(model, str(fixed), save_as_external_data=model.ByteSize() > _LARGE)
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
    return _Simplified(clean, simple, dtypes, tuple(value.name for value in clean.graph.output))


def _without_maps(model: ModelProto) -> None:
    """Scores as they are in the place of maps from class to score, which no tensor holds."""
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "ZipMap" and node.output}
    for value in model.graph.output:
        if value.name in makers:
            node = makers[value.name]
            node.op_type, node.domain = "Identity", ""
            node.ClearField("attribute")
            value.type.Clear()
            value.type.tensor_type.elem_type = 1


def _built(
    simple: _Simplified, shapes: Mapping[str, Sequence[int]], samples: Sequence[Mapping[str, Array]], name: str
) -> tuple[OnnxModule, list[_Run]]:
    """The module, and what it must answer to the samples, or to the wildest seeded inputs with which it runs."""
    import torch

    from edgepack.torchgraph.onnx.build import build_module

    session = _session(str(simple.path))
    given = [{each: np.asarray(sample[each], dtype) for each, dtype in simple.dtypes.items()} for sample in samples]
    seeded = ([_seeded(shapes, simple.dtypes, seed, top) for seed in (0, 1)] for top in _TOPS)
    failure = None
    for choice in [given] if given else seeded:
        try:
            runs = [(inputs, _answers(session, inputs, name)) for inputs in choice]
            example = [torch.from_numpy(array) for array in choice[0].values()]
            natural = [each for each in simple.dtypes if all((inputs[each] >= 0).all() for inputs in choice)]
            return build_module(simple.model, example, name, natural), runs
        except ModelError as err:
            failure = err
    assert failure is not None
    raise failure


def _answers(session: Any, inputs: dict[str, Array], name: str) -> list[Any]:
    try:
        return list(session.run(None, inputs))
    except Exception as err:
        raise ModelError(f"{name}: onnxruntime cannot run it: {err}") from err


def _seeded(shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str], seed: int, top: int) -> dict[str, Array]:
    """Normal floats; integers from 0 … top, but from {0, 1} for masks and segment ids, told by their names. Where the
    top is 0, floats are zeros as well: a model may index tables by them."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for name, dtype in dtypes.items():
        if np.dtype(dtype).kind == "f":
            inputs[name] = np.asarray(rng.standard_normal(tuple(shapes[name])) * (top > 0), dtype)
        else:
            high = min(top, 1) if re.search(r"mask|type|segment", name, re.IGNORECASE) else top
            inputs[name] = np.asarray(rng.integers(0, high, tuple(shapes[name]), endpoint=True), dtype)
    return inputs


def _prove(simple: _Simplified, module: OnnxModule, program: Any, runs: Sequence[_Run], name: str) -> None:
    """Compare torch with onnxruntime.

    Args:
        module: what `program` was traced from, to look into.
        runs: inputs and the outputs that they must give.

    Raises:
        ModelError: an output has too much noise; the first node whose result does is named.
    """
    import torch

    least = ROUNDED_DB if _rounds(simple.model) else PARITY_DB
    for inputs, expected in runs:
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        try:
            with torch.no_grad():
                results = program(*tensors)
        except (RuntimeError, TypeError, IndexError) as err:
            raise ModelError(f"{name}: what was made of it does not run in torch: {err}", hint=HINT) from err
        for output, want, have in zip(simple.outputs, expected, results, strict=True):
            if (how := _differs(np.asarray(want), have, least)) is not None:
                first = _first_difference(simple.model, module, inputs, least)
                raise ModelError(f"{name}: output {output!r} {how}{first}", hint=HINT)


def _session(model: str | bytes) -> Any:
    """One that sums 8-bit products as they are, also on CPUs whose instructions cut sums off, if it can be had so."""
    try:
        return _opened(model, exact=True)
    except Exception:  # noqa: BLE001
        # Some operators on 8 bits have no kernel for it.
        pass
    try:
        return _opened(model, exact=False)
    except Exception:  # noqa: BLE001
        # Fusions may fail on a graph that was simplified before: two of them call a weight alike.
        return _opened(model, exact=False, fused=False)


def _opened(model: str | bytes, *, exact: bool, fused: bool = True) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _first_difference(model: ModelProto, module: OnnxModule, inputs: Mapping[str, Array], least: float) -> str:
    """Which node's result is the first to differ, in words; nothing where none does or the model is too large."""
    import torch

    if model.ByteSize() > _LARGE:
        return ""
    made = {name for node in model.graph.node for name in node.output}
    steps = [(step, name) for step in module.steps for name in step.names if name in made]
    names = list(dict.fromkeys(name for _, name in steps))
    watched = type(model)()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in names:
        watched.graph.output.add().name = name
    try:
        expected = dict(zip(names, _session(watched.SerializeToString()).run(None, inputs), strict=True))
    except Exception:  # noqa: BLE001
        # The difference is reported without its place.
        return ""
    found: list[str] = []

    def look(step: Step, values: Sequence[Any]) -> None:
        for name, value in zip(step.names, values, strict=False):
            if name in expected and _differs(np.asarray(expected[name]), value, least) is not None:
                found.append(step.node.label)

    with torch.no_grad():
        module.watched([torch.from_numpy(array) for array in inputs.values()], look)
    return f"; the first result that differs is that of {found[0].partition(': ')[2]}" if found else ""


def _rounds(model: ModelProto) -> bool:
    """Whether a model rounds what it computes to integers."""
    return any(re.search("Quantize|QLinear|QGemm|Integer", node.op_type) for node in model.graph.node)


def _differs(want: Array, result: Any, least: float) -> str | None:
    return difference(want, result.numpy(), least, "torch", "onnxruntime")
