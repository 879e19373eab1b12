"""LSTMs of a torch program as the runtime's fused operators: marked before the conversion, put in behind it.

A converter would unroll them, step by step. So each layer goes through the conversion as one call of a stand-in that
has the right inputs and outputs, and the operator takes the place of the call.

The operators keep their state in tensors of their own from one inference to the next. Here another operator writes the
first state there before each of them, and what reads the last one waits for the operator's output: an inference sees
nothing of the one before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.backends.tflite.file import File, Writing, drop_codes, drop_graphs, drop_unused, packed, text, whole
from edgepack.backends.tflite.kinds.recurrent import GATES, operator_for
from edgepack.backends.tflite.lstm import ABSENT
from edgepack.torchgraph.factor import copied
from edgepack.torchgraph.linears import Constants

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule, Node

_TIME_MAJOR: Mapping[str, bool] = {"edgepack.lstm.time_major": True, "edgepack.lstm.batch_major": False}
"""Name of a marked call → whether its steps come first."""
_OPERANDS = 5
"""Of a call, for each direction behind its input: weights of input and state, bias, first output, first cell state."""
_TANH = 4  # schema.fbs, ActivationFunctionType


def marked(module: GraphModule) -> GraphModule:
    """A graph whose LSTMs are marked calls; the given one is not changed.

    Those with projections, with weights that depend on inputs, in other numbers than float32, or of which only cell
    states are read, stay as they are.
    """
    import torch

    lstms = [node.name for node in module.graph.nodes if node.target is torch.ops.aten.lstm.input]
    if not lstms:
        return module
    copy = copied(module)
    constants = Constants(copy)
    for node in [node for node in copy.graph.nodes if node.name in lstms]:
        values = [value for each in node.args[2] if (value := constants.tensor(each)) is not None]
        if _fits(node, values):
            with copy.graph.inserting_before(node):
                weights = [_stored(copy, f"edgepack_{node.name}_{at}", value) for at, value in enumerate(values)]
            node.args = (*node.args[:2], weights, *node.args[3:])
            node.target = _layers
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


def _layers(
    x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What `aten.lstm` gives, by a marked call for every layer."""
    import torch

    has_biases, num_layers, _, _, bidirectional, batch_first = settings
    if batch_first and bidirectional and len(x) > 1:
        # The operator of both directions mixes up the cell states of several sequences where these come first.
        y, hidden, cells = _layers(x.swapaxes(0, 1), states, weights, *settings[:-1], False)
        return y.swapaxes(0, 1), hidden, cells
    directions, each = (2 if bidirectional else 1), (4 if has_biases else 2)
    time = 1 if batch_first else 0
    last_hidden, last_cells = [], []
    for layer in range(num_layers):
        operands = []
        for place in range(layer * directions, (layer + 1) * directions):
            w, r, *biases = weights[place * each : (place + 1) * each]
            b = biases[0] + biases[1] if biases else torch.zeros(len(w))
            operands += [w, r, b, states[0][place], states[1][place]]
        x, cells = _call(x, operands, batch_first)
        units = x.shape[-1] // directions
        last_hidden += [x.select(time, -1)[:, :units], x.select(time, 0)[:, units:]][:directions]
        last_cells.append(cells)
    return x, torch.stack(last_hidden), torch.cat(last_cells)


def _call(x: Tensor, operands: Sequence[Tensor], batch_first: bool) -> tuple[Tensor, Tensor]:
    """A marked call: the outputs of all directions side by side, the last cell states one behind the other."""
    import torch
    from litert_torch.backend.composite.stablehlo_composite_builder import StableHLOCompositeBuilder

    name = next(name for name, time_major in _TIME_MAJOR.items() if time_major != batch_first)
    call = StableHLOCompositeBuilder(name)
    x, *operands = call.mark_inputs(x, *operands)
    steps, cells = [], []
    for at in range(0, len(operands), _OPERANDS):
        w, r, b, hidden, cell = operands[at : at + _OPERANDS]
        # Anything of these shapes that depends on all of them: it is never computed.
        steps.append((x @ w.T + b)[..., : r.shape[1]] @ r[: r.shape[1]] + hidden.sum() + cell.sum())
        cells.append(cell + hidden)
    results: tuple[Tensor, Tensor] = call.mark_outputs(torch.cat(steps, dim=-1), torch.stack(cells))
    return results


def fuse(path: Path) -> None:
    """Put the fused operator in the place of every marked call of a file, in place."""
    model = whole(path)
    calls = [op for graph in model.subgraphs for op in graph.operators if _mark(op) is not None]
    if not calls:
        return
    file = File(model)
    for number in range(len(model.subgraphs)):
        writing = Writing(file, number)
        read = {int(tensor) for op in writing.graph.operators for tensor in op.inputs} | set(writing.graph.outputs)
        for op in writing.graph.operators:
            if (time_major := _mark(op)) is None:
                writing.made.append(op)
            else:
                _put(writing, op, time_major, read)
        writing.graph.operators = writing.made
    drop_graphs(model, {call.builtinOptions2.decompositionSubgraphIndex for call in calls})
    drop_codes(model)
    drop_unused(model)
    path.write_bytes(packed(model))


def _mark(op: Any) -> bool | None:
    """Whether steps come first in a marked call; None for any other operator."""
    name = getattr(op.builtinOptions2, "name", None)
    return None if name is None else _TIME_MAJOR.get(text(name))


def _put(writing: Writing, call: Any, time_major: bool, read: Collection[int]) -> None:
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
