"""GRUs as loops over their steps, since the runtime has no operator for them.

What cells multiply their inputs by is one product over all steps, in front of the loops. A loop holds the operators of
a single step: a file with each step of its own has a kilobyte more a step, and the runtime keeps the weights of the
state once for each of them. A loop copies all that it reads and writes at every step, so that one loop over all steps
would take time as the square of their number: there is a loop for about `BLOCK` steps, all over the same operators.
Where a step is left over, or there is but one, as in a stream, its operators stand there without a loop.
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
BLOCK, MOST_STEPS = 16, 24
"""Steps of a loop, and how many at most where that makes loops alike: beginning one takes as long as two steps."""
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
    products = _split(writing, product, 2, [len(weight) // len(ways)] * len(ways))
    units, axis = len(weight) // (GATES * len(ways)), 0 if time_major else 1
    made = [
        _Direction(writing, axis, units, writing.value(way[1]), writing.value(way[3])).outputs(
            own, way[4], turned=at > 0
        )
        for at, (own, way) in enumerate(zip(products, ways, strict=True))
    ]
    writing.writes(_joined(writing, made, 2), y)


@dataclass(frozen=True)
class _Direction:
    """The cells of one direction.

    Attributes:
        writing: the graph that they stand in.
        axis: of the steps, 0 or 1; the other one is that of sequences.
        units: numbers in the state.
        weight, bias: what the state is multiplied by, and what is added to that.
    """

    writing: Writing
    axis: int
    units: int
    weight: Array
    bias: Array

    def outputs(self, product: int, state: int, *, turned: bool) -> int:
        """What the cells give for a product over all steps, from the last to the first where they are turned."""
        writing, axis = self.writing, self.axis
        rows = [int(size) for size in writing.graph.tensors[product].shape[:2]]
        sizes = _sizes(rows[axis])
        given = _split(writing, product, axis, sizes)
        found = [0] * len(sizes)
        graphs: dict[int, dict[str, int]] = {}
        for place in reversed(range(len(sizes))) if turned else range(len(sizes)):
            size = sizes[place]
            own = _Block(tuple(size if at == axis else other for at, other in enumerate(rows)), axis, self.units)
            if size == 1:
                state = self._cells(writing, writing.reshape(given[place], own.gates, np.float32), state, own)
                found[place] = writing.reshape(state, own.outputs, np.float32)
                continue
            if size not in graphs:
                graphs[size] = self._graphs(own, turned=turned)
            state, found[place] = self._loop(own, given[place], state, graphs[size], turned=turned)
        return _joined(writing, found, axis)

    def _loop(
        self, block: _Block, product: int, state: int, graphs: dict[str, int], *, turned: bool
    ) -> tuple[int, int]:
        """The last state and all outputs."""
        writing = self.writing
        shape, zero = (
            writing.constant(np.array(each, kind)) for each, kind in ((block.outputs, np.int32), (0, np.float32))
        )
        nothing = writing.op("FILL", [shape, zero], block.outputs, np.float32)
        begin = writing.constant(np.array(block.steps - 1 if turned else 0, np.int32))
        results = block.carried(writing)
        writing.add("WHILE", [begin, state, nothing, product], results, "While", graphs)
        return results[1], results[2]

    def _graphs(self, block: _Block, *, turned: bool) -> dict[str, int]:
        """The two graphs of loops over so many steps."""
        file = self.writing.file
        condition, step = (Writing(file, file.new_graph(name)) for name in ("condition", "step"))
        inputs = condition.graph.inputs = block.carried(condition)
        end = condition.constant(np.array(-1 if turned else block.steps, np.int32))
        name, options = ("GREATER", "Greater") if turned else ("LESS", "Less")
        condition.graph.outputs = [condition.op(name, [inputs[0], end], (), np.bool_, options=options)]
        condition.finish()
        self._step(step, block, turned=turned)
        return {"condSubgraphIndex": condition.number, "bodySubgraphIndex": step.number}

    def _step(self, writing: Writing, block: _Block, *, turned: bool) -> None:
        number, state, outputs, product = writing.graph.inputs = block.carried(writing)
        given = writing.op("GATHER", [product, number], block.gates, np.float32, options="Gather", axis=self.axis)
        state = self._cells(writing, given, state, block)
        row = list(block.state)
        row.insert(self.axis, 1)
        zero = writing.constant(np.array(0, np.int32))
        place = [number if axis == self.axis else zero for axis in range(3)]
        start = writing.op("PACK", place, (3,), np.int32, options="Pack", valuesCount=3)
        written = [outputs, writing.reshape(state, row, np.float32), start]
        outputs = writing.op("DYNAMIC_UPDATE_SLICE", written, block.outputs, np.float32)
        ahead = writing.constant(np.array(-1 if turned else 1, np.int32))
        number = writing.op("ADD", [number, ahead], (), np.int32, options="Add")
        writing.graph.outputs = [number, state, outputs, product]
        writing.finish()

    def _cells(self, writing: Writing, given: int, state: int, block: _Block) -> int:
        """The next state, of what is given to all gates and of the state."""
        held = writing.tensor(block.gates, _FLOAT, "")
        writing.fully_connected([state, writing.constant(self.weight), _bias(writing, self.bias)], held)

        def op(name: str, inputs: Sequence[int], options: str | None = None) -> int:
            return writing.op(name, inputs, block.state, np.float32, options=options)

        gates = [self.units] * GATES
        (r_in, z_in, n_in), (r_own, z_own, n_own) = (_split(writing, each, 1, gates) for each in (given, held))
        reset, update = (op("LOGISTIC", [op("ADD", pair, "Add")]) for pair in ([r_in, r_own], [z_in, z_own]))
        new = op("TANH", [op("ADD", [op("MUL", [reset, n_own], "Mul"), n_in], "Add")])
        kept = op("MUL", [op("SUB", [state, new], "Sub"), update], "Mul")
        return op("ADD", [kept, new], "Add")


@dataclass(frozen=True)
class _Block:
    """Shapes of a loop over some steps.

    Attributes:
        rows: sizes of sequences and steps, in the order in which the file has them.
        axis: of the steps.
        units: numbers in the state.
    """

    rows: tuple[int, ...]
    axis: int
    units: int

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.rows[self.axis]

    @property
    def outputs(self) -> tuple[int, ...]:
        """Of what is given at all steps."""
        return (*self.rows, self.units)

    @property
    def state(self) -> tuple[int, int]:
        """Of what is given at one."""
        return self.rows[1 - self.axis], self.units

    @property
    def gates(self) -> tuple[int, int]:
        """Of what goes into all gates at one step."""
        return self.rows[1 - self.axis], GATES * self.units

    def carried(self, writing: Writing) -> list[int]:
        """What goes from one step to the next: its number, the state, all outputs, the product of all inputs."""
        shapes = self.state, self.outputs, (*self.rows, GATES * self.units)
        return [writing.tensor((), _INT32, ""), *(writing.tensor(shape, _FLOAT, "") for shape in shapes)]


def _sizes(steps: int) -> list[int]:
    """Steps of each loop; alike where there is such a number."""
    if steps <= MOST_STEPS:
        return [steps]
    even = [size for size in range(BLOCK // 2, MOST_STEPS + 1) if steps % size == 0]
    size = min(even, key=lambda each: abs(each - BLOCK), default=BLOCK)
    return [size] * (steps // size) + [steps % size] * (steps % size > 0)


def _bias(writing: Writing, bias: Array) -> int:
    return writing.constant(bias) if bias.any() else -1


def _split(writing: Writing, tensor: int, axis: int, sizes: Sequence[int]) -> list[int]:
    """Parts of these sizes along an axis; the tensor itself where it is the only one."""
    if len(sizes) == 1:
        return [tensor]
    shape = [int(size) for size in writing.graph.tensors[tensor].shape]
    parts = [writing.tensor([*shape[:axis], size, *shape[axis + 1 :]], _FLOAT, "") for size in sizes]
    place = writing.constant(np.array(axis, np.int32))
    if len(set(sizes)) == 1:
        writing.add("SPLIT", [place, tensor], parts, "Split", {"numSplits": len(sizes)})
    else:
        lengths = writing.constant(np.array(sizes, np.int32))
        writing.add("SPLIT_V", [tensor, lengths, place], parts, "SplitV", {"numSplits": len(sizes)})
    return parts


def _joined(writing: Writing, parts: Sequence[int], axis: int) -> int:
    """One behind the other along an axis."""
    if len(parts) == 1:
        return parts[0]
    shapes = [[int(size) for size in writing.graph.tensors[part].shape] for part in parts]
    shape = [sum(each[at] for each in shapes) if at == axis else size for at, size in enumerate(shapes[0])]
    return writing.op("CONCATENATION", parts, shape, np.float32, options="Concatenation", axis=axis)


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
