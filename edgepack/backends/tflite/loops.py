"""GRUs as loops over their steps, since the runtime has no operator for them.

What cells multiply their inputs by is one product over all steps, in front of the loop. The loop holds the operators of
a single step: a file with each step of its own has a kilobyte more a step, and the runtime keeps the weights of the
state once for each of them. Where there is but one step, as in a stream, its operators stand there without a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepack.backends.tflite.decoded import operator_name
from edgepack.backends.tflite.file import Writing, text
from edgepack.backends.tflite.schemes import FP32, INT8_DYNAMIC
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array

_FLOAT, _INT32 = 0, 2  # schema.fbs, TensorType
GATES = 3
"""Reset, update and new gate."""
OPERANDS = 5
"""Of a direction: weights of input and state, their biases, first output."""


def put_gru(writing: Writing, call: Any, time_major: bool) -> None:
    """The product and the loops of a marked call: of one direction, or of both, whose outputs are put side by side."""
    x, *operands = (int(tensor) for tensor in call.inputs)
    (y,) = (int(tensor) for tensor in call.outputs)
    ways = [operands[at : at + OPERANDS] for at in range(0, len(operands), OPERANDS)]
    weight, bias = (np.concatenate([writing.value(way[part]) for way in ways]) for part in (0, 2))
    rows = [int(size) for size in writing.graph.tensors[x].shape[:-1]]
    product = writing.tensor([*rows, len(weight)], _FLOAT, "")
    writing.fully_connected([x, writing.constant(weight), _bias(writing, bias)], product)
    products = _split(writing, product, 2, len(ways)) if len(ways) > 1 else [product]
    steps = _Steps(0 if time_major else 1, tuple(rows), len(weight) // (GATES * len(ways)))
    each = enumerate(zip(products, ways, strict=True))
    made = [steps.outputs(writing, own, way, turned=at > 0) for at, (own, way) in each]
    result = made[0]
    if len(made) > 1:
        shape = [*rows, steps.units * len(ways)]
        result = writing.op("CONCATENATION", made, shape, np.float32, options="Concatenation", axis=2)
    writing.writes(result, y)


@dataclass(frozen=True)
class _Steps:
    """The steps of a loop.

    Attributes:
        axis: along which they lie.
        rows: sizes of sequences and steps, in the order in which the file has them.
        units: numbers in the state.
    """

    axis: int
    rows: tuple[int, ...]
    units: int

    def outputs(self, writing: Writing, product: int, way: Sequence[int], *, turned: bool) -> int:
        """What a direction gives for a product of all steps, from the last to the first where it is turned."""
        _, weight, _, bias, first = way
        if self.rows[self.axis] == 1:
            given = writing.reshape(product, self._gates, np.float32)
            state = self._cells(writing, given, first, (writing.value(weight), writing.value(bias)))
            return writing.reshape(state, self._shapes[2], np.float32)
        return self._loop(writing, product, way, turned=turned)

    def _loop(self, writing: Writing, product: int, way: Sequence[int], *, turned: bool) -> int:
        count, file = self.rows[self.axis], writing.file
        _, weight, _, bias, first = way
        condition, step = (Writing(file, file.new_graph(name)) for name in ("condition", "step"))
        self._condition(condition, count, turned=turned)
        self._step(step, (writing.value(weight), writing.value(bias)), turned=turned)
        shape = writing.constant(np.array([*self.rows, self.units], np.int32))
        nothing = writing.op("FILL", [shape, writing.constant(np.zeros((), np.float32))], self._shapes[2], np.float32)
        begin = writing.constant(np.array(count - 1 if turned else 0, np.int32))
        given = [begin, first, nothing, product]
        results = self._carried(writing)
        fields = {"condSubgraphIndex": condition.number, "bodySubgraphIndex": step.number}
        writing.add("WHILE", given, results, "While", fields)
        return results[2]

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of what goes from one step to the next: its number, the state, all outputs, the product of all inputs."""
        sequences = self.rows[1 - self.axis]
        return (), (sequences, self.units), (*self.rows, self.units), (*self.rows, GATES * self.units)

    @property
    def _gates(self) -> tuple[int, int]:
        """Shape of what goes into all gates at one step."""
        sequences, units = self._shapes[1]
        return sequences, GATES * units

    def _carried(self, writing: Writing) -> list[int]:
        number, *values = self._shapes
        return [writing.tensor(number, _INT32, ""), *(writing.tensor(shape, _FLOAT, "") for shape in values)]

    def _condition(self, writing: Writing, count: int, *, turned: bool) -> None:
        writing.graph.inputs = self._carried(writing)
        end = writing.constant(np.array(-1 if turned else count, np.int32))
        name, options = ("GREATER", "Greater") if turned else ("LESS", "Less")
        writing.graph.outputs = [writing.op(name, [writing.graph.inputs[0], end], (), np.bool_, options=options)]
        writing.finish()

    def _step(self, writing: Writing, weights: tuple[Array, Array], *, turned: bool) -> None:
        number, state, outputs, product = writing.graph.inputs = self._carried(writing)
        given = writing.op("GATHER", [product, number], self._gates, np.float32, options="Gather", axis=self.axis)
        state = self._cells(writing, given, state, weights)
        row = list(self._shapes[1])
        row.insert(self.axis, 1)
        zero = writing.constant(np.array(0, np.int32))
        place = [number if axis == self.axis else zero for axis in range(3)]
        start = writing.op("PACK", place, (3,), np.int32, options="Pack", valuesCount=3)
        written = [outputs, writing.reshape(state, row, np.float32), start]
        outputs = writing.op("DYNAMIC_UPDATE_SLICE", written, self._shapes[2], np.float32)
        ahead = writing.constant(np.array(-1 if turned else 1, np.int32))
        number = writing.op("ADD", [number, ahead], (), np.int32, options="Add")
        writing.graph.outputs = [number, state, outputs, product]
        writing.finish()

    def _cells(self, writing: Writing, given: int, state: int, weights: tuple[Array, Array]) -> int:
        """The next state, of what is given to all gates, the state, and its weights and biases."""
        weight, bias = weights
        held = writing.tensor(self._gates, _FLOAT, "")
        writing.fully_connected([state, writing.constant(weight), _bias(writing, bias)], held)

        def op(name: str, inputs: Sequence[int], options: str | None = None) -> int:
            return writing.op(name, inputs, self._shapes[1], np.float32, options=options)

        (r_in, z_in, n_in), (r_own, z_own, n_own) = (_split(writing, each, 1, GATES) for each in (given, held))
        reset, update = (op("LOGISTIC", [op("ADD", pair, "Add")]) for pair in ([r_in, r_own], [z_in, z_own]))
        new = op("TANH", [op("ADD", [op("MUL", [reset, n_own], "Mul"), n_in], "Add")])
        kept = op("MUL", [op("SUB", [state, new], "Sub"), update], "Mul")
        return op("ADD", [kept, new], "Add")


def _bias(writing: Writing, bias: Array) -> int:
    return writing.constant(bias) if bias.any() else -1


def _split(writing: Writing, tensor: int, axis: int, count: int) -> list[int]:
    """Equal parts along an axis."""
    shape = [int(size) for size in writing.graph.tensors[tensor].shape]
    shape[axis] //= count
    parts = [writing.tensor(shape, _FLOAT, "") for _ in range(count)]
    place = writing.constant(np.array(axis, np.int32))
    writing.add("SPLIT", [place, tensor], parts, "Split", {"numSplits": count})
    return parts


def in_loops(model: Any) -> dict[str, Scheme]:
    """By the names of what they write, the operators within loops, whose ranges cannot be met from outside: products
    that round their inputs at run time, all others in floats."""
    found = {}
    graphs = {number for graph in model.subgraphs for each in graph.operators for number in _bodies(model, each)}
    for graph in (model.subgraphs[number] for number in sorted(graphs)):
        for each in graph.operators:
            name = ";".join(text(graph.tensors[tensor].name) for tensor in each.outputs)
            found[name] = INT8_DYNAMIC if operator_name(model, each) == "FULLY_CONNECTED" else FP32
    return found


def _bodies(model: Any, operator: Any) -> tuple[int, ...]:
    if operator_name(model, operator) != "WHILE":
        return ()
    options = operator.builtinOptions
    return int(options.condSubgraphIndex), int(options.bodySubgraphIndex)


def with_all_results(model: Any) -> None:
    """Let graphs give all that loops in them do, in place: the runtime keeps no results that nobody reads."""
    for graph in model.subgraphs:
        results = [int(each) for op in graph.operators if _bodies(model, op) for each in op.outputs]
        graph.outputs = [*graph.outputs, *(each for each in results if each not in graph.outputs)]
