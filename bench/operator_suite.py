"""ONNX's own operator tests, those that a TFLite file could hold, and whether results are right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, numpy_helper

Array = npt.NDArray[Any]
NODE = "onnx.backend.test.case.node"
_TYPES = {
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BOOL, TensorProto.UINT8),
    *(TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16, TensorProto.UINT32, TensorProto.INT32),
    *(TensorProto.UINT64, TensorProto.INT64),
}
# Random numbers, files of images, and results whose shape depends on values.
_OTHERS = {"Bernoulli", "RandomUniformLike", "ImageDecoder", "NonMaxSuppression", "NonZero", "Unique", "Compress"}
_OTHERS |= {"TfIdfVectorizer", "OptionalHasElement", "OptionalGetElement"}
_LEAST_SHARE = 1e-6
"""Of the largest value of a result: what sums in another order may be off by."""


@dataclass(frozen=True)
class Case:
    """A model of one operator, or of what it is defined by, with inputs and the outputs that they must give."""

    name: str
    model: onnx.ModelProto
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    rtol: float
    atol: float

    @property
    def operators(self) -> set[str]:
        return {node.op_type for node in self.model.graph.node}

    @property
    def opset(self) -> int:
        return max(entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))


def cases(module: str | None = None) -> Iterator[Case]:
    """Those that a TFLite file could hold, without those that spell an operator out by its definition.

    Args:
        module: of the suite, which has one an operator; None for all.
    """
    for case in _every() if module is None else _of_module(module):
        if case.model is not None and case.data_sets and "_expanded" not in case.name:
            made = Case(case.name, case.model, *(tuple(each) for each in case.data_sets[0]), case.rtol, case.atol)
            if _fits(made):
                yield made


def _every() -> Sequence[Any]:
    return tuple(import_module(NODE).collect_testcases(None))


@cache
def _of_module(module: str) -> Sequence[Any]:
    """What a module adds to the suite when it is imported, which must be here."""
    gathered = import_module(NODE)._NodeTestCases
    before = len(gathered)
    import_module(f"{NODE}.{module}")
    return tuple(gathered[before:])


def _fits(case: Case) -> bool:
    values = (*case.model.graph.input, *case.model.graph.output)
    plain = all(value.type.WhichOneof("value") == "tensor_type" for value in values)
    arrays = all(isinstance(each, (np.ndarray, np.generic)) for each in (*case.inputs, *case.outputs))
    known = plain and all(value.type.tensor_type.elem_type in _TYPES for value in values)
    own = all(node.domain == "" and node.op_type not in _OTHERS for node in case.model.graph.node)
    trains = any(attribute.name == "training_mode" for node in case.model.graph.node for attribute in node.attribute)
    return arrays and known and own and not trains and "training_dropout" not in case.name


def variants(case: Case) -> Iterator[Case]:
    """The case itself, then with more and more of its inputs as constants, as models have shapes, axes and weights."""
    places = range(len(case.inputs))
    numbers = [at for at in places if case.inputs[at].dtype.kind == "f"]
    kept = [tuple(places), tuple(numbers), tuple(numbers[:1] or places[:1]), ()]
    for outside in dict.fromkeys(kept):
        yield _with_constants(case, outside)


def _with_constants(case: Case, outside: Sequence[int]) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    values = list(case.model.graph.input)
    del model.graph.input[:]
    for at, value in enumerate(values):
        if at in outside:
            model.graph.input.append(value)
        else:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(case.inputs[at]), value.name))
    return replace(case, model=model, inputs=tuple(case.inputs[at] for at in outside))


def tensors(case: Case) -> list[torch.Tensor]:
    """Its inputs."""
    return [torch.from_numpy(np.array(each)) for each in case.inputs]


def difference(case: Case, results: Sequence[torch.Tensor]) -> str | None:
    """What is wrong with the results, None if nothing is."""
    if len(results) != len(case.outputs):
        return f"{len(results)} results, {len(case.outputs)} were expected"
    for want, result in zip(map(np.asarray, case.outputs), results, strict=True):
        have = result.numpy()
        if have.shape != want.shape or have.dtype != want.dtype:
            return f"{have.dtype} {have.shape}, {want.dtype} {want.shape} was expected"
        wide = want.astype(np.float64)
        least = _LEAST_SHARE * float(np.abs(wide[np.isfinite(wide)]).max(initial=0)) if want.dtype.kind == "f" else 0.0
        # Halves are rounded at every operator: two steps of their grid.
        share = max(case.rtol, 2e-3) if want.dtype == np.float16 else case.rtol
        if not np.allclose(have.astype(np.float64), wide, share, max(case.atol, least), equal_nan=True):
            return "other values"
    return None
