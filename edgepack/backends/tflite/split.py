"""Cut a .tflite file into consecutive models, layer by layer, that run with the kernels of the whole."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.segments import (
    Cut,
    LayerShape,
    Linear,
    Placement,
    Segment,
    Step,
    cut,
    names,
    place,
    values_by_layer,
)
from edgepack.backends.tflite.file import TfliteFile, read_file, write_file
from edgepack.errors import ModelError

_MATRIX_AT: Mapping[str, tuple[int, ...]] = {"FULLY_CONNECTED": (1,), "CONV_2D": (1,), "BATCH_MATMUL": (0, 1)}
_ACTIVATIONS = frozenset({
    "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "PRELU", "ELU", "GELU", "LOGISTIC", "TANH",
    "HARD_SWISH",
})  # fmt: skip
_ADDING = frozenset({"ADD", "SUB"})
_PASSING = _ADDING | {"MUL", "RESHAPE", "TRANSPOSE", "CAST", "QUANTIZE", "DEQUANTIZE"}
"""What may stand between the two products of a factored layer."""

_RANDOM = frozenset({"RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "MULTINOMIAL", "STABLEHLO_RNG_BIT_GENERATOR"})


def split_tflite(path: Path, layers: Sequence[LayerShape], folder: Path) -> tuple[Segment, ...]:
    """Write a model as consecutive models: one per place of a layer, and one for all that lies between two of them.

    A layer's segment holds its one or two products, the quantize and dequantize operators that are its own, and a
    single activation that follows. Values between segments keep their type, int8 ones their scale and zero point.
    Operators on constants alone are repeated in every segment that needs them; operators that no output needs are left
    out.

    Running the segments in turn, with `values.update(run(segment, {name: values[name] for its inputs}))`, gives the
    whole model's outputs. Inputs and outputs have the names of the model's tensors; where two tensors have the same
    name, all but the first have their index added.

    Args:
        path: the model.
        layers: its linear layers in graph order.
        folder: where the files go: 000.tflite, 001.tflite, …; must exist.

    Returns:
        The segments in order of execution.

    Raises:
        ModelError: the file cannot be read; it has several subgraphs or state that outlives an inference; there are too
            many segments.
        OutputError: a file cannot be written.
    """
    model = read_file(path)
    flow = Flow(model)
    products = [i for i in range(len(flow.ops)) if flow.sides(i) is not None]
    placements = place([_linear(i, products, flow) for i in products], layers)
    owner = _own_operators(products, placements, flow)
    steps = [Step(tuple(flow.reads(i)), tuple(flow.writes(i))) for i in flow.steps]
    cuts = cut(steps, [owner.get(i) for i in flow.steps], [int(i) for i in model.graph.outputs])
    if not cuts:
        raise ModelError(f"{path}: no operator computes an output, there is nothing to split")
    _require_own_variables(cuts, flow, path)
    tensors = renamed(model)
    segments = []
    for number, (one, name) in enumerate(zip(cuts, names(cuts, placements, layers), strict=True)):
        extra = [int(i) for i in model.graph.outputs if flow.is_constant(int(i))] if number == len(cuts) - 1 else []
        members = with_copies([flow.steps[i] for i in one.steps], extra, flow)
        file = folder / f"{number:03}.tflite"
        write_file(model, part(members, one, extra, tensors, flow), file)
        segments.append(Segment(name, one.owner is not None, file))
    return tuple(segments)


def layer_values(path: Path, layers: Sequence[LayerShape]) -> dict[str, tuple[str, ...]]:
    """See `Backend.layer_values`."""
    model = read_file(path)
    flow = Flow(model)
    products = [i for i in range(len(flow.ops)) if flow.sides(i) is not None]
    values = [model.graph.tensors[flow.writes(i)[0]].name.decode("utf-8", "replace") for i in products]
    return values_by_layer(place([_linear(i, products, flow) for i in products], layers), layers, values)


class Flow:
    """How tensors run through the graph once constants are set apart. Operators and tensors are known by index."""

    def __init__(self, model: TfliteFile) -> None:
        self.model, self.graph = model, model.graph
        self.ops, self.names = model.graph.operators, model.operator_names
        self.maker = {int(t): i for i, op in enumerate(self.ops) for t in _indices(op.outputs)}
        self.given = {int(t) for t in _indices(self.graph.inputs)}
        self.wanted = {int(t) for t in _indices(self.graph.outputs)}
        self.readers: dict[int, list[int]] = {}
        self.copied: set[int] = set()
        """Operators on constants alone: each segment has them for itself."""
        for index, op in enumerate(self.ops):
            inputs = _indices(op.inputs)
            for tensor in dict.fromkeys(inputs):
                self.readers.setdefault(tensor, []).append(index)
            if all(self.is_constant(t) for t in inputs) and self.names[index] not in _RANDOM:
                self.copied.add(index)
        self.steps = [i for i in range(len(self.ops)) if i not in self.copied]

    def is_constant(self, tensor: int) -> bool:
        """Whether the tensor is the same in every run."""
        if tensor in self.maker:
            return self.maker[tensor] in self.copied
        return tensor not in self.given and not self.graph.tensors[tensor].isVariable

    def reads(self, op: int) -> list[int]:
        """Tensors that an earlier operator or the caller must give."""
        tensors = _indices(self.ops[op].inputs)
        return [t for t in tensors if not self.is_constant(t) and not self.graph.tensors[t].isVariable]

    def writes(self, op: int) -> list[int]:
        """Tensors that the operator computes."""
        return _indices(self.ops[op].outputs)

    def sole_reader(self, tensor: int) -> int | None:
        """The operator that reads a tensor, if it is the only one and the caller does not."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.wanted else None

    def matrix(self, op: int) -> int | None:
        """The constant factor of a product, None for any other operator."""
        inputs = [int(t) for t in self.ops[op].inputs]
        factors = [inputs[i] for i in {0, *_MATRIX_AT.get(self.names[op], ())} if i < len(inputs)]
        constant = [t for t in factors if t >= 0 and self.is_constant(t)]
        return constant[0] if len(factors) == 2 and len(constant) == 1 else None

    def sides(self, op: int) -> tuple[int, int] | None:
        """Both sides of a product's constant matrix or 1×1 kernel, None for any other operator."""
        tensor = self.matrix(op)
        shape = [] if tensor is None else _shape(self.graph.tensors[tensor])
        if self.names[op] == "CONV_2D" and len(shape) == 4:
            shape = [*shape[1:3], shape[0], shape[3]]
        if len(shape) < 2 or any(side != 1 for side in shape[:-2]):
            return None
        return shape[-2], shape[-1]

    def root(self, tensor: int) -> int:
        """The stored constant behind a constant tensor."""
        while tensor in self.maker and _indices(self.ops[self.maker[tensor]].inputs):
            tensor = _indices(self.ops[self.maker[tensor]].inputs)[0]
        return tensor


def _indices(tensors: Any) -> list[int]:
    """Tensor indices without the ones left out (−1)."""
    return [int(t) for t in (() if tensors is None else tensors) if t >= 0]


def _shape(tensor: Any) -> list[int]:
    return [int(side) for side in (() if tensor.shape is None else tensor.shape)]


def _linear(op: int, products: Sequence[int], flow: Flow) -> Linear:
    sides, matrix = flow.sides(op), flow.matrix(op)
    if sides is None or matrix is None:
        raise ValueError(f"the operator {op} is not a product")
    tensor = flow.graph.tensors[flow.root(matrix)]
    digest = hashlib.blake2b(flow.model.constant(tensor.buffer).data).digest()
    path = _path_back(op, products, flow)
    return Linear(sides, (sides, digest), None if not path else products.index(path[0]))


def _path_back(op: int, products: Sequence[int], flow: Flow) -> list[int]:
    """Operators from the product that feeds this one, that one included, if nothing else takes what is between."""
    path: list[int] = []
    while len(reads := flow.reads(op)) == 1 and flow.sole_reader(reads[0]) == op and reads[0] in flow.maker:
        op = flow.maker[reads[0]]
        path.insert(0, op)
        if op in products:
            return path
        if flow.names[op] not in _PASSING:
            break
    return []


def _own_operators(products: Sequence[int], placements: Sequence[Placement], flow: Flow) -> dict[int, int]:
    """The operators of each placement, as operator → index of its placement."""
    owner: dict[int, int] = {}
    for number, placement in enumerate(placements):
        ops = [products[i] for i in placement.linears]
        between = [op for i in placement.linears[1:] for op in _path_back(products[i], products, flow)]
        for op in (*ops, *between, *_tail(ops[-1], flow)):
            owner.setdefault(op, number)
    for op, number in list(owner.items()):
        for tensor in flow.reads(op):
            maker = flow.maker.get(tensor)
            alone = {owner.get(reader) for reader in flow.readers[tensor]} == {number} and tensor not in flow.wanted
            if maker is not None and alone and flow.names[maker] == "QUANTIZE":
                owner.setdefault(maker, number)
    return owner


def _tail(op: int, flow: Flow) -> Iterator[int]:
    """The operators after a product that belong to it: bias, activation and dequantize, each at most once."""
    allowed = _ADDING | _ACTIVATIONS | {"DEQUANTIZE"}
    while (reader := flow.sole_reader(flow.writes(op)[0])) is not None and flow.names[reader] in allowed:
        name = flow.names[reader]
        constants = [flow.graph.tensors[t] for t in _indices(flow.ops[reader].inputs) if flow.is_constant(t)]
        if name in _ADDING and not (constants and all(_is_vector(tensor) for tensor in constants)):
            return
        allowed -= _ADDING | _ACTIVATIONS if name in _ACTIVATIONS else (_ADDING if name in _ADDING else {name})
        op = reader
        yield op


def _is_vector(tensor: Any) -> bool:
    return sum(side != 1 for side in _shape(tensor)) <= 1


def _require_own_variables(cuts: Sequence[Cut[int]], flow: Flow, path: Path) -> None:
    """A variable tensor must live in one segment."""
    users: dict[int, set[int]] = {}
    for number, one in enumerate(cuts):
        for tensor in (t for i in one.steps for t in _indices(flow.ops[flow.steps[i]].inputs)):
            if flow.graph.tensors[tensor].isVariable:
                users.setdefault(tensor, set()).add(number)
    if any(len(found) > 1 for found in users.values()):
        raise ModelError(f"{path}: a variable is used on both sides of a cut", hint="count the whole model only")


def with_copies(members: Sequence[int], tensors: Sequence[int], flow: Flow) -> list[int]:
    """The operators and all operators on constants that they or the given tensors need, in order of execution."""
    found = set(members)
    waiting = [*tensors, *(t for op in members for t in _indices(flow.ops[op].inputs))]
    while waiting:
        maker = flow.maker.get(waiting.pop())
        if maker in flow.copied and maker is not None and maker not in found:
            found.add(maker)
            waiting.extend(_indices(flow.ops[maker].inputs))
    return sorted(found)


def renamed(model: TfliteFile) -> list[Any]:
    """The tensors under names that are unique in the file."""
    tensors = [copy.copy(tensor) for tensor in model.graph.tensors]
    first = [int(t) for t in (*_indices(model.graph.inputs), *_indices(model.graph.outputs))]
    taken: set[str] = set()
    for index in dict.fromkeys([*first, *range(len(tensors))]):
        name = (tensors[index].name or b"").decode(errors="replace")
        while name in taken or not name:
            name = f"{name or 'tensor'}.{index}"
        taken.add(name)
        tensors[index].name = name
    return tensors


def part(members: Sequence[int], one: Cut[int], extra: Sequence[int], tensors: Sequence[Any], flow: Flow) -> Any:
    """A subgraph of these operators; tensors keep the buffers that they have in the model."""
    from ai_edge_litert import schema_py_generated as schema

    used: dict[int, None] = dict.fromkeys((*one.inputs, *one.outputs, *extra))
    for op in members:
        used.update(dict.fromkeys([*_indices(flow.ops[op].inputs), *_indices(flow.ops[op].outputs)]))
        used.update(dict.fromkeys(_indices(flow.ops[op].intermediates)))
    place_of = {tensor: position for position, tensor in enumerate(used)} | {-1: -1}
    operators = []
    for op in members:
        made = copy.copy(flow.ops[op])
        for field in ("inputs", "outputs", "intermediates"):
            old = getattr(made, field)
            setattr(made, field, None if old is None else np.array([place_of[int(t)] for t in old], np.int32))
        operators.append(made)
    return schema.SubGraphT(
        tensors=[copy.copy(tensors[t]) for t in used],
        inputs=np.array([place_of[t] for t in one.inputs], np.int32),
        outputs=np.array([place_of[t] for t in (*one.outputs, *extra)], np.int32),
        operators=operators,
        name=flow.graph.name,
    )
