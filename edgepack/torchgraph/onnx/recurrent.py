"""LSTM, GRU and RNN: torch's own where they compute the same, else one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.model.types import Array
from edgepack.torchgraph.onnx.node import Node, Operator, operator
from edgepack.torchgraph.recurrent import ORDER

DIRECTIONS = ("forward", "reverse", "bidirectional")
_STATES: Mapping[str, int] = {"LSTM": 2, "GRU": 1, "RNN": 1}
_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "LSTM": ("sigmoid", "tanh", "tanh"),
    "GRU": ("sigmoid", "tanh"),
    "RNN": ("tanh",),
}
_ALPHA = {"leakyrelu": 0.01, "thresholdedrelu": 1.0, "hardsigmoid": 0.2, "elu": 1.0, "affine": 1.0, "scaledtanh": 1.0}
_BETA = {"hardsigmoid": 0.5, "affine": 0.0, "scaledtanh": 1.0}
_ACTIVATIONS: Mapping[str, Callable[[Tensor, float, float], Tensor]] = {
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "elu": lambda x, alpha, beta: functional.elu(x, alpha),
    "hardsigmoid": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
    "leakyrelu": lambda x, alpha, beta: functional.leaky_relu(x, alpha),
    "relu": lambda x, alpha, beta: torch.relu(x),
    "scaledtanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "sigmoid": lambda x, alpha, beta: torch.sigmoid(x),
    "softplus": lambda x, alpha, beta: torch.log1p(torch.exp(x)),
    "softsign": lambda x, alpha, beta: x / (1 + torch.abs(x)),
    "tanh": lambda x, alpha, beta: torch.tanh(x),
    "thresholdedrelu": lambda x, alpha, beta: torch.where(x > alpha, x, torch.zeros_like(x)),
}
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Cells:
    """A recurrent node: everything that is the same for each step.

    Attributes:
        operator: its name in ONNX.
        direction: one of `DIRECTIONS`.
        activations: for each direction, in ONNX' order.
        plain: whether they are the usual ones.
        clip: what goes into them is cut off here, if anywhere.
        after: whether a GRU's reset gate stands behind the product.
        coupled: whether an LSTM forgets what it does not take in.
        lengths: of the sequences, None where all are whole.
        peepholes: weights (directions, 3 · units) of an LSTM's cells for its gates.
    """

    operator: str
    direction: str
    activations: Sequence[Sequence[Activation]]
    plain: bool
    clip: float | None
    after: bool
    coupled: bool
    lengths: Tensor | None
    peepholes: Tensor | None

    @property
    def is_torch(self) -> bool:
        """Whether torch has an operator that computes the same."""
        usual = self.plain and self.clip is None and not self.coupled and self.after
        # Torch gives the cell state of an LSTM behind the last step alone.
        return usual and self.peepholes is None and (self.lengths is None or self.operator != "LSTM")


def _recurrent(node: Node, x: Tensor, w: Tensor, r: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """ONNX LSTM, GRU or RNN.

    Args:
        node: names which of them.
        x: (steps, sequences, features).
        w, r: weights of input and state (directions, gates · units, features or units).
        rest: biases, lengths of sequences, first output, first cell state, weights of the cell for its gates, if given.

    Returns:
        Outputs (steps, directions, sequences, units), last output and, of an LSTM, cell state (directions, sequences,
        units); with the sequences first where the node has them so.
    """
    b, lengths, h, c, peepholes = (*rest, *[None] * 5)[:5]
    batch_first = node.flag("layout")
    node.integer("hidden_size", 0)
    states = [h, c][: _STATES[node.operator]]
    if batch_first:
        x, states = x.swapaxes(0, 1), [None if each is None else each.swapaxes(0, 1) for each in states]
    cells = _cells(node, x, lengths, peepholes, len(r))
    b = x.new_zeros(len(r), 2 * r.shape[1]) if b is None else b
    zeros = x.new_zeros(len(r), x.shape[1], r.shape[-1])
    begin = [zeros if each is None else each for each in states]
    y, *last = (_by_torch if cells.is_torch else _by_steps)(cells, x, w, r, b, begin)
    if batch_first:
        return (y.permute(2, 0, 1, 3), *(each.swapaxes(0, 1) for each in last))
    return (y, *last)


def _cells(node: Node, x: Tensor, lengths: Tensor | Array | None, peepholes: Tensor | None, directions: int) -> _Cells:
    names = node.texts("activations", tuple(_ACTIVATIONS))
    default = [*_DEFAULTS[node.operator]] * directions
    alphas, betas = iter(node.numbers("activation_alpha", ())), iter(node.numbers("activation_beta", ()))
    each = [_activation(name, alphas, betas) for name in names or default]
    per = len(_DEFAULTS[node.operator])
    if len(each) != per * directions:
        raise node.error(f"has {len(each)} activations, {per * directions} were expected")
    if lengths is not None and not isinstance(lengths, Tensor):
        lengths = None if (lengths == x.shape[0]).all() else torch.from_numpy(lengths)
    return _Cells(
        node.operator,
        node.text("direction", "forward", DIRECTIONS),
        [each[at : at + per] for at in range(0, len(each), per)],
        names in ([], default),
        node.number("clip") if node.has("clip") else None,
        node.operator != "GRU" or node.flag("linear_before_reset"),
        node.flag("input_forget"),
        None if lengths is None else lengths.long(),
        peepholes,
    )


def _activation(name: str, alphas: Any, betas: Any) -> Activation:
    alpha = next(alphas, _ALPHA[name]) if name in _ALPHA else 0.0
    beta = next(betas, _BETA[name]) if name in _BETA else 0.0
    return lambda x: _ACTIVATIONS[name](x, alpha, beta)


def _by_torch(cells: _Cells, x: Tensor, w: Tensor, r: Tensor, b: Tensor, begin: list[Tensor]) -> tuple[Tensor, ...]:
    if cells.lengths is not None:
        return _of_lengths(replace(cells, lengths=None), cells.lengths, x, (w, r, b), begin[0])
    order = ORDER[cells.operator]
    flat = [
        torch.cat([matrix.chunk(len(order))[place] for place in order]) if len(order) > 1 else matrix
        for way in range(len(r))
        for matrix in (w[way], r[way], *b[way].chunk(2))
    ]
    turned, both = cells.direction == "reverse", cells.direction == "bidirectional"
    run = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}[cells.operator]
    states = begin if len(begin) > 1 else begin[0]
    y, *last = run(x.flip(0) if turned else x, states, flat, True, 1, 0.0, False, both, False)
    y = y.flip(0) if turned else y
    return (y.unflatten(-1, (len(r), r.shape[-1])).swapaxes(1, 2), *last)


def _of_lengths(
    cells: _Cells, lengths: Tensor, x: Tensor, weights: tuple[Tensor, ...], begin: Tensor
) -> tuple[Tensor, ...]:
    """Of a GRU or RNN, over all steps: what comes behind the end of a sequence changes nothing before it, and where it
    is read from its end, its steps are turned around for that."""
    one, steps = replace(cells, direction="forward"), torch.arange(len(x)).unsqueeze(1)
    inside = steps < lengths
    around = torch.where(inside, lengths - 1 - steps, steps).unsqueeze(2)
    ways = []
    for way in range(len(begin)):
        turned = cells.direction == "reverse" or way == 1
        given = torch.gather(x, 0, around.expand(x.shape)) if turned else x
        own = slice(way, way + 1)
        w, r, b = (each[own] for each in weights)
        y = _by_torch(one, given, w, r, b, [begin[own]])[0][:, 0]
        ends = lengths.reshape(1, -1, 1).expand(1, *y.shape[1:])
        last = torch.gather(torch.cat([begin[own], y]), 0, ends)[0]
        y = torch.where(inside.unsqueeze(2), y, torch.zeros_like(y))
        ways.append((torch.gather(y, 0, around.expand(y.shape)) if turned else y, last))
    return torch.stack([y for y, _ in ways], 1), torch.stack([last for _, last in ways])


def _by_steps(cells: _Cells, x: Tensor, w: Tensor, r: Tensor, b: Tensor, begin: list[Tensor]) -> tuple[Tensor, ...]:
    ways = []
    for way in range(len(r)):
        turned = cells.direction == "reverse" or way == 1
        ways.append(_one_way(cells, way, turned, x, (w[way], r[way], b[way]), [state[way] for state in begin]))
    return tuple(torch.stack(each, 1 if place == 0 else 0) for place, each in enumerate(zip(*ways, strict=True)))


def _one_way(
    cells: _Cells,
    way: int,
    turned: bool,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    states: list[Tensor],
) -> tuple[Tensor, ...]:
    """Outputs (steps, sequences, units) and last states of one direction."""
    w, r, b = weights
    of_input, of_state = b.chunk(2)
    steps = range(len(x))
    inputs = functional.linear(x, w, of_input)
    outputs: list[Tensor] = [torch.empty(0)] * len(x)
    for step in reversed(steps) if turned else steps:
        new = _STEPS[cells.operator](cells, way, inputs[step], states, r, of_state)
        if cells.lengths is not None:
            goes_on = (cells.lengths > step).unsqueeze(1)
            outputs[step] = torch.where(goes_on, new[0], torch.zeros_like(new[0]))
            states = [torch.where(goes_on, after, before) for after, before in zip(new, states, strict=True)]
        else:
            states, outputs[step] = new, new[0]
    return (torch.stack(outputs), *states)


def _clipped(cells: _Cells, x: Tensor) -> Tensor:
    return x if cells.clip is None else torch.clamp(x, -cells.clip, cells.clip)


def _lstm_step(cells: _Cells, way: int, x: Tensor, states: list[Tensor], r: Tensor, b: Tensor) -> list[Tensor]:
    h, c = states
    f, g, out = cells.activations[way]
    i_gate, o_gate, f_gate, c_gate = (x + functional.linear(h, r, b)).chunk(4, -1)
    if cells.peepholes is not None:
        p_i, p_o, p_f = cells.peepholes[way].chunk(3)
        i_gate, f_gate = i_gate + p_i * c, f_gate + p_f * c
    taken = f(_clipped(cells, i_gate))
    forgotten = 1 - taken if cells.coupled else f(_clipped(cells, f_gate))
    cell = forgotten * c + taken * g(_clipped(cells, c_gate))
    if cells.peepholes is not None:
        o_gate = o_gate + p_o * cell
    given = f(_clipped(cells, o_gate))
    return [given * out(cell), cell]


def _gru_step(cells: _Cells, way: int, x: Tensor, states: list[Tensor], r: Tensor, b: Tensor) -> list[Tensor]:
    (h,) = states
    f, g = cells.activations[way]
    units = h.shape[-1]
    x_z, x_r, x_h = x.chunk(3, -1)
    z_part, r_part = functional.linear(h, r[: 2 * units], b[: 2 * units]).chunk(2, -1)
    z, reset = f(_clipped(cells, x_z + z_part)), f(_clipped(cells, x_r + r_part))
    own, bias = r[2 * units :], b[2 * units :]
    inner = reset * functional.linear(h, own, bias) if cells.after else functional.linear(reset * h, own, bias)
    return [(1 - z) * g(_clipped(cells, x_h + inner)) + z * h]


def _rnn_step(cells: _Cells, way: int, x: Tensor, states: list[Tensor], r: Tensor, b: Tensor) -> list[Tensor]:
    (f,) = cells.activations[way]
    return [f(_clipped(cells, x + functional.linear(states[0], r, b)))]


_STEPS: Mapping[str, Callable[..., list[Tensor]]] = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}

RECURRENT: Mapping[str, Operator] = dict.fromkeys(_STEPS, operator(_recurrent, either=(4,)))
