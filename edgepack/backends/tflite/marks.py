"""LSTMs of a torch program as the runtime's fused operators, and GRUs as loops: marked before the conversion, put in
behind it.

A converter would unroll them, step by step. So each layer goes through the conversion as one call of a stand-in that
has the right inputs and outputs, and the operator takes the place of the call.

The fused operators keep their state in tensors of their own from one inference to the next. Here another operator
writes the first state there before each of them, and what reads the last one waits for the operator's output: an
inference sees nothing of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edgepack.backends.tflite.file import File, Writing, drop_codes, drop_graphs, drop_unused, packed, text, whole
from edgepack.backends.tflite.kinds.recurrent import GATES, operator_for
from edgepack.backends.tflite.loops import put_gru
from edgepack.backends.tflite.lstm import ABSENT
from edgepack.torchgraph.factor import copied
from edgepack.torchgraph.linears import Constants

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule, Node

_Cells = Literal["lstm", "gru"]
_MARKS: Mapping[str, tuple[_Cells, bool]] = {
    f"edgepack.{cells}.{'time' if time_major else 'batch'}_major": (cells, time_major)
    for cells in get_args(_Cells)
    for time_major in (True, False)
}
"""Name of a marked call → what it stands for, and whether its steps come first."""
_OPERANDS = 5
"""Of a call, for each direction behind its input: of an LSTM weights of input and state, bias, first output, first cell
state; of a GRU see `loops`."""
_TANH = 4  # schema.fbs, ActivationFunctionType


def marked(module: GraphModule) -> GraphModule:
    """A graph whose LSTMs and GRUs are marked calls; the given one is not changed.

    Those with projections, with weights that depend on inputs, in other numbers than float32, or of which only cell
    states are read, stay as they are.
    """
    import torch

    stand_ins = {torch.ops.aten.lstm.input: _lstms, torch.ops.aten.gru.input: _grus}
    if not any(node.target in stand_ins for node in module.graph.nodes):
        return module
    copy = copied(module)
    constants = Constants(copy)
    for node in [node for node in copy.graph.nodes if node.target in stand_ins]:
        values = [value for each in node.args[2] if (value := constants.tensor(each)) is not None]
        if _fits(node, values):
            with copy.graph.inserting_before(node):
                weights = [_stored(copy, f"edgepack_{node.name}_{at}", value) for at, value in enumerate(values)]
            node.args = (*node.args[:2], weights, *node.args[3:])
            node.target = stand_ins[node.target]
    copy.graph.eliminate_dead_code()
    copy.recompile()
    return copy


def _fits(node: Node, weights: Sequence[Tensor]) -> bool:
    import torch

    x, _, _, has_biases, layers, _, _, both, _ = node.args
    # The converter crashes where nothing reads the first result of a call.
    is_read = any(result.users and result.args[1] in (0, 1) for result in node.users)
    is_float = x.meta["val"].dtype == torch.float32
    return is_float and is_read and len(weights) == layers * (2 if both else 1) * (4 if has_biases else 2)


def _stored(module: GraphModule, name: str, value: Tensor) -> Node:
    """A weight as an attribute of the graph: others would be put together at run time."""
    import torch

    module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    return module.graph.get_attr(name)


def _lstms(
    x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What `aten.lstm` gives, by a marked call for every layer."""
    import torch

    *_, bidirectional, batch_first = settings
    if batch_first and bidirectional and len(x) > 1:
        # The operator of both directions mixes up the cell states of several sequences where these come first.
        y, hidden, cells = _lstms(x.swapaxes(0, 1), states, weights, *settings[:-1], False)
        return y.swapaxes(0, 1), hidden, cells

    def operands(place: int, w: Tensor, r: Tensor, *biases: Tensor) -> tuple[Tensor, ...]:
        b = biases[0] + biases[1] if biases else torch.zeros(len(w))
        return w, r, b, states[0][place], states[1][place]

    y, hidden, cells = _layers("lstm", x, weights, operands, settings)
    return y, hidden, torch.cat(cells)


def _grus(x: Tensor, state: Tensor, weights: Sequence[Tensor], *settings: Any) -> tuple[Tensor, Tensor]:
    """What `aten.gru` gives, by a marked call for every layer."""
    import torch

    def operands(place: int, w: Tensor, r: Tensor, *biases: Tensor) -> tuple[Tensor, ...]:
        return w, r, *(biases or [torch.zeros(len(w))] * 2), state[place]

    y, hidden, _ = _layers("gru", x, weights, operands, settings)
    return y, hidden


def _layers(
    cells: _Cells,
    x: Tensor,
    weights: Sequence[Tensor],
    operands: Callable[..., Sequence[Tensor]],
    settings: Sequence[Any],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Outputs, last outputs, and what the calls of the layers give beside their outputs.

    Args:
        operands: of a direction, from its place among all of them and from its weights.
        settings: what the operators take behind their weights.
    """
    import torch

    has_biases, num_layers, _, _, bidirectional, batch_first = settings
    directions, each = (2 if bidirectional else 1), (4 if has_biases else 2)
    time = 1 if batch_first else 0
    last, beside = [], []
    for layer in range(num_layers):
        places = range(layer * directions, (layer + 1) * directions)
        given = [one for place in places for one in operands(place, *weights[place * each : (place + 1) * each])]
        x, *others = _call(cells, x, given, batch_first)
        units = x.shape[-1] // directions
        last += [x.select(time, -1)[:, :units], x.select(time, 0)[:, units:]][:directions]
        beside += others
    return x, torch.stack(last), beside


def _call(cells: _Cells, x: Tensor, operands: Sequence[Tensor], batch_first: bool) -> tuple[Tensor, ...]:
    """A marked call: the outputs of all directions side by side, and the last cell states one behind the other."""
    import torch
    from litert_torch.backend.composite.stablehlo_composite_builder import StableHLOCompositeBuilder

    name = next(name for name, mark in _MARKS.items() if mark == (cells, not batch_first))
    call = StableHLOCompositeBuilder(name)
    x, *operands = call.mark_inputs(x, *operands)
    steps, states = [], []
    for at in range(0, len(operands), _OPERANDS):
        w, r, b, one, other = operands[at : at + _OPERANDS]
        # Anything of these shapes that depends on all of them: it is never computed.
        steps.append((x @ w.T + b)[..., : r.shape[1]] @ r[: r.shape[1]] + one.sum() + other.sum())
        if cells == "lstm":
            states.append(other + one)
    y = torch.cat(steps, dim=-1)
    return call.mark_outputs(y, torch.stack(states)) if states else (call.mark_outputs(y),)


def fuse(path: Path) -> None:
    """Put the fused operator or the loop in the place of every marked call of a file, in place."""
    model = whole(path)
    calls = [op for graph in model.subgraphs for op in graph.operators if _mark(op) is not None]
    if not calls:
        return
    file = File(model)
    for number in range(len(model.subgraphs)):
        writing = Writing(file, number)
        read = {int(tensor) for op in writing.graph.operators for tensor in op.inputs} | set(writing.graph.outputs)
        for op in writing.graph.operators:
            if (mark := _mark(op)) is None:
                writing.made.append(op)
            elif mark[0] == "gru":
                put_gru(writing, op, time_major=mark[1])
            else:
                _put_lstm(writing, op, mark[1], read)
        writing.finish()
    drop_graphs(model, {call.builtinOptions2.decompositionSubgraphIndex for call in calls})
    drop_codes(model)
    drop_unused(model)
    path.write_bytes(packed(model))


def _mark(op: Any) -> tuple[_Cells, bool] | None:
    """What a marked call stands for, and whether its steps come first; None for any other operator."""
    name = getattr(op.builtinOptions2, "name", None)
    return None if name is None else _MARKS.get(text(name))


def _put_lstm(writing: Writing, call: Any, time_major: bool, read: Collection[int]) -> None:
    """The fused operator of a call, behind what writes its first states and before what reads its last ones.

    Args:
        read: the tensors that anything reads.
    """
    x, *operands = (int(tensor) for tensor in call.inputs)
    y, *last = (int(tensor) for tensor in call.outputs)
    ways = [operands[at : at + _OPERANDS] for at in range(0, len(operands), _OPERANDS)]
    states = [_first_state(writing, state) for way in ways for state in way[3:]]
    weights = [tensor for way in ways for tensor in _weights(writing, *way[:3])]
    operator = operator_for(len(ways))
    fields = {"fusedActivationFunction": _TANH, "timeMajor": time_major, **operator.fields}
    writing.add(operator.name, [x, *weights, *states, *[ABSENT] * operator.more], [y], operator.options, fields)
    if last and last[0] in read:
        _last_states(writing, states[1::2], y, last[0])


def _weights(writing: Writing, w: int, r: int, b: int) -> list[int]:
    """Weights of input and state, none of the cell for its gates, biases; no projection."""
    of_input, of_state, biases = (
        [writing.constant(np.ascontiguousarray(gate)) for gate in np.split(writing.value(each), GATES)]
        for each in (w, r, b)
    )
    return [*of_input, *of_state, *[ABSENT] * 3, *biases, *[ABSENT] * 2]


def _first_state(writing: Writing, given: int) -> int:
    """A state of the operator, which each inference sets anew."""
    shape = [int(size) for size in writing.graph.tensors[given].shape]
    if writing.holds(given) and not writing.value(given).any():
        zero = writing.constant(np.zeros((), np.float32))
        state = writing.op("FILL", [writing.constant(np.array(shape, np.int32)), zero], shape, np.float32)
    else:
        # Most operators that copy do so once, at load, what is constant.
        state = writing.op("SELECT_V2", [_always(writing), given, given], shape, np.float32)
    writing.graph.tensors[state].isVariable = True
    return state


def _always(writing: Writing) -> int:
    return writing.constant(np.ones((), np.bool_))


def _last_states(writing: Writing, states: Sequence[int], y: int, target: int) -> None:
    """Read states once the operator has written its output, of which nothing is taken."""
    shape = [int(size) for size in writing.graph.tensors[target].shape]
    first, one = (writing.constant(np.array(each, np.int32)) for each in ([0, 0, 0], [1, 1, 1]))
    behind = writing.op("SLICE", [y, first, one], [1, 1, 1], np.float32)
    last = [writing.op("SELECT_V2", [_always(writing), each, behind], [1, *shape[1:]], np.float32) for each in states]
    result = last[0]
    if len(last) > 1:
        result = writing.op("CONCATENATION", last, shape, np.float32, options="Concatenation", axis=0)
    writing.writes(result, target)
