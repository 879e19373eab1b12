"""Put layers that are stored in code into a .tflite file.

LiteRT computes what depends on constants alone at every inference. What a layer decodes is therefore computed in an
initialisation subgraph, which CALL_ONCE runs before the first inference, and kept in resource variables; an inference
copies them from there (READ_VARIABLE).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.tflite.constexpr_ops import product, write_step
from edgepack.backends.tflite.file import File, Writing, drop_unused, packed, text, whole
from edgepack.backends.tflite.matching import Fold
from edgepack.errors import ModelError
from edgepack.model.constexpr import X, at_load, is_decoded, values
from edgepack.model.replacement import Instruction, Replacement
from edgepack.model.types import Array

_SMALL = 2048
"""Bytes up to which a decoded value is stored as it is: the operators that decode it and keep it in a variable take
about as many, and kernels are faster with a constant (a convolution's filters by a third)."""
_FLOAT32 = 0


def encode(source: Path, path: Path, parts: Mapping[str, Replacement], folds: Mapping[str, Sequence[Fold]]) -> None:
    """Write the file with code in the place of the named layers' dense operators, whose biases and activations stay.

    All places of a layer share what it decodes; they differ in what the converter folded into them.

    Args:
        source: a file in which the operators stand as `tflite_thin.thin` left them, in float32; others in any
            scheme.
        path: where to write; may be the source.
        parts: by layer name.
        folds: by layer name, all operators of the layer, none of which `rewrite.refuses` its part.

    Raises:
        ModelError: an operator is not in the file, not in float32, or not of a kind that can be written in code.
    """
    model = whole(source)
    file = File(model)
    loading = _Loading(file)
    layers = {name: _Layer(name, part) for name, part in sorted(parts.items())}
    main = range(len(model.subgraphs))
    for number in main:
        places = {fold.op.output: (fold, layers[name]) for name in layers for fold in folds[name]}
        here = {output: place for output, place in places.items() if place[0].op.subgraph == number}
        if here:
            _rewrite(Writing(file, number), here, loading)
    if loading.number is not None:
        starts = {0, *(each.subgraphIndex for each in model.signatureDefs or [])}
        for number in sorted(starts):
            head = Writing(file, number)
            head.add("CALL_ONCE", [], [], "CallOnce", {"initSubgraphIndex": loading.number})
            head.graph.operators[:0] = head.made
    drop_unused(model)
    path.write_bytes(packed(model))


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer and what its steps come to without an input."""

    name: str
    part: Replacement
    known: Mapping[str, Array] = field(init=False)
    steps: Mapping[str, Instruction] = field(init=False)
    loaded: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", values(self.part.tensors, self.part.program))
        object.__setattr__(self, "steps", {step.output: step for step in self.part.program})
        object.__setattr__(self, "loaded", at_load(self.part))

    def stored_under(self, name: str) -> int:
        """Bytes of the constants that a value is made of."""
        found, left = set(), [name]
        while left:
            each = left.pop()
            if each in self.part.tensors:
                found.add(each)
            else:
                left += self.steps[each].inputs
        return sum(self.part.tensors[each].nbytes for each in found)


class _Loading:
    """The initialisation subgraph, which is made when the first variable is; a variable is filled once."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._writing: Writing | None = None
        self._scopes: dict[str, _Scope] = {}
        self._variables: dict[tuple[str, str, bool, bytes], str] = {}
        self.number: int | None = None

    def variable(self, layer: _Layer, name: str, turned: bool, scales: tuple[Array, Array] | None = None) -> str:
        """The resource that holds a value of a layer, transposed and times scales of its rows and columns or not."""
        content = b"" if scales is None else b"".join(each.tobytes() for each in scales)
        key = layer.name, name, turned, content
        if key not in self._variables:
            self._variables[key] = f"{layer.name}/{name}/{len(self._variables)}"
            self._fill(self._variables[key], layer, name, turned, scales)
        return self._variables[key]

    def _fill(self, resource: str, layer: _Layer, name: str, turned: bool, scales: tuple[Array, Array] | None) -> None:
        if self._writing is None:
            self.number = self._file.new_graph("decode")
            self._writing = Writing(self._file, self.number)
            self._writing.made = self._writing.graph.operators
        graph = self._writing
        if layer.name not in self._scopes:
            self._scopes[layer.name] = _Scope(graph, layer, layer.known)
        scope = self._scopes[layer.name]
        tensor = scope.turned(name) if turned else scope.get(name)
        shape = tuple(graph.graph.tensors[tensor].shape)
        for scale in scales or ():
            if not (scale == 1).all():
                tensor = graph.op("MUL", [tensor, graph.constant(scale)], shape, np.float32, options="Mul")
        graph.add("ASSIGN_VARIABLE", [graph.variable(resource), tensor], [], "AssignVariable")


class _Scope:
    """A layer's values in one subgraph, each written when it is first asked for."""

    def __init__(self, graph: Writing, layer: _Layer, found: Mapping[str, Array]) -> None:
        self.graph = graph
        self._layer, self._found = layer, found
        self.written: dict[str, int] = {}
        self._turned: dict[str, int] = {}

    def get(self, name: str) -> int:
        if name not in self.written:
            constant = self.value(name)
            if constant is not None:
                self.written[name] = self.graph.constant(constant, name)
            else:
                self.written[name] = self._computed(name)
        return self.written[name]

    def turned(self, name: str) -> int:
        if name not in self._turned:
            self._turned[name] = self._transposed(name)
        return self._turned[name]

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return self._found[name].shape, self._found[name].dtype

    def value(self, name: str) -> Array | None:
        return self._layer.part.tensors.get(name)

    def _computed(self, name: str) -> int:
        return write_step(self, self._layer.steps[name])

    def _transposed(self, name: str) -> int:
        constant = self.value(name)
        if constant is not None:
            return self.graph.constant(np.ascontiguousarray(constant.T), name)
        step = self._layer.steps[name]
        if step.op == "transpose" and step.attributes["perm"] == (1, 0):
            return self.get(step.inputs[0])
        shape, dtype = self.spec(name)
        perm = self.graph.constant(np.array((1, 0), np.int32))
        return self.graph.op("TRANSPOSE", [self.get(name), perm], shape[::-1], dtype, options="Transpose")


class _Main(_Scope):
    """In a subgraph that inferences run: what was decoded at load is read."""

    def __init__(self, graph: Writing, layer: _Layer, found: Mapping[str, Array], loading: _Loading, read: _Reads):
        super().__init__(graph, layer, found)
        self._loading, self._read = loading, read

    def value(self, name: str) -> Array | None:
        """Of constants, and of what takes no more bytes than the constants that it is made of."""
        if name in self._layer.loaded and self._found[name].nbytes <= max(_SMALL, self._layer.stored_under(name)):
            return self._found[name]
        return super().value(name)

    def _computed(self, name: str) -> int:
        if name not in self._layer.loaded:
            return super()._computed(name)
        return self._read(self._loading.variable(self._layer, name, False), *self.spec(name))

    def _transposed(self, name: str) -> int:
        if self.value(name) is not None or name not in self._layer.loaded:
            return super()._transposed(name)
        shape, dtype = self.spec(name)
        return self._read(self._loading.variable(self._layer, name, True), shape[::-1], dtype)


class _Reads:
    """The one reading of every variable in a subgraph."""

    def __init__(self, graph: Writing) -> None:
        self._graph = graph
        self._tensors: dict[str, int] = {}

    def __call__(self, resource: str, shape: Sequence[int], dtype: np.dtype[Any] | type[np.float32]) -> int:
        if resource not in self._tensors:
            handle = self._graph.variable(resource)
            self._tensors[resource] = self._graph.op("READ_VARIABLE", [handle], shape, dtype, options="ReadVariable")
        return self._tensors[resource]


def _rewrite(graph: Writing, places: Mapping[str, tuple[Fold, _Layer]], loading: _Loading) -> None:
    """Replace the operators of a subgraph that write these."""
    read = _Reads(graph)
    kept: list[Any] = []
    left = set(places)
    linear = {graph.file.model.operatorCodes.index(code) for code in graph.file.model.operatorCodes if _linear(code)}
    for operator in graph.graph.operators:
        output = text(graph.graph.tensors[operator.outputs[0]].name) if len(operator.outputs) else ""
        if output not in left or operator.opcodeIndex not in linear:
            kept.append(operator)
            continue
        left.remove(output)
        fold, layer = places[output]
        graph.made, graph.prefix = [], f"{layer.name}/"
        _write_layer(graph, operator, fold, layer, loading, read)
        kept += graph.made
    if left:
        raise ModelError(f"no linear operator writes {', '.join(map(repr, sorted(left)))} in the TFLite file")
    graph.graph.operators = kept


def _linear(code: Any) -> bool:
    from ai_edge_litert import schema_py_generated as schema

    kinds = (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.CONV_2D)
    return max(code.builtinCode, code.deprecatedBuiltinCode) in kinds


def _write_layer(graph: Writing, operator: Any, fold: Fold, layer: _Layer, loading: _Loading, read: _Reads) -> None:
    tensors = graph.graph.tensors
    x, weight, bias = [*operator.inputs, -1][:3]
    output = operator.outputs[0]
    sizes = tuple(int(n) for n in tensors[output].shape)
    out, size = layer.part.weight.shape
    if any(tensors[each].type != _FLOAT32 for each in (x, weight, output)):
        raise ModelError(f"{layer.name}: its operator is not in float32")
    count = int(np.prod(tensors[x].shape))
    rows = count // size
    if rows * size != count or rows * out != int(np.prod(sizes)):
        raise ModelError(f"{layer.name}: (out, in) is {out, size}, its operator has {list(tensors[x].shape)} → {sizes}")
    columns, factors = fold.columns.astype(np.float32), fold.rows.astype(np.float32)
    flat = graph.reshape(x, (rows, size), np.float32)
    activation = operator.builtinOptions.fusedActivationFunction if operator.builtinOptions is not None else 0
    if is_decoded(layer.part):
        name = layer.part.program[-1].inputs[1]
        matrix = read(loading.variable(layer, name, True, (factors[:, None], columns)), (out, size), np.float32)
        if rows == 1:
            y = _fused(graph, flat, matrix, bias, activation, out)
            graph.writes(graph.reshape(y, sizes, np.float32), output)
            return
        y = product(graph, flat, matrix, (rows, out))
    else:
        if not (columns == 1).all():
            flat = graph.op("MUL", [flat, graph.constant(columns)], (rows, size), np.float32, options="Mul")
        y = _direct(graph, flat, rows, layer, loading, read)
        if not (factors == 1).all():
            y = graph.op("MUL", [y, graph.constant(factors)], (rows, out), np.float32, options="Mul")
    if bias >= 0 or activation:
        other = bias if bias >= 0 else graph.constant(np.zeros(1, np.float32))
        fields = {"fusedActivationFunction": activation}
        y = graph.op("ADD", [y, other], (rows, out), np.float32, options="Add", **fields)
    graph.writes(graph.reshape(y, sizes, np.float32), output)


def _fused(graph: Writing, x: int, weight: int, bias: int, activation: int, out: int) -> int:
    fields = {"fusedActivationFunction": activation}
    return graph.op("FULLY_CONNECTED", [x, weight, bias], (1, out), np.float32, options="FullyConnected", **fields)


def _direct(graph: Writing, x: int, rows: int, layer: _Layer, loading: _Loading, read: _Reads) -> int:
    """The steps that compute from x."""
    size = layer.part.weight.shape[1]
    probe = np.zeros((rows, size), np.float32)
    found = values(layer.part.tensors, layer.part.program, probe)
    scope = _Main(graph, layer, found, loading, read)
    scope.written[X] = x
    return scope.get(layer.part.program[-1].output)
