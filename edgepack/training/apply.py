"""The door to the training-time API: swap layers in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from edgepack.errors import UsageError
from edgepack.training.compression import Compression
from edgepack.training.compressors import ByShare, Compressor, method
from edgepack.training.schedule import Schedule, ScheduleOptions
from edgepack.training.selection import Layers, Rank, choose

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer


def apply_compression(
    model: Module,
    *,
    compressor: str | Compressor | ByShare = "low-rank",
    rank: Rank = 0.25,
    layers: Layers = None,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    **schedule: Unpack[ScheduleOptions],
) -> Compression:
    """Compress linear layers while the model trains.

    The layers are swapped in place. Up to `begin_step` the model trains as if nothing had happened, to the bit. Then
    the compressor makes factors A (out, r) and B (r, in) of every weight, the layers compute with
    α W + (1 − α) A B, and α sinks from 1 to 0, where the dense weights are dropped (the matrix compression
    operator of Google Research, 2020). Dense weights and factors are trained together meanwhile.

    Args:
        model: changed in place. Layers that are left alone keep their names and parameters; compressed ones keep theirs
            until `begin_step`.
        compressor: "low-rank" (truncated SVD), "whitened" (least error of the layer's output on the inputs of the last
            training steps before `begin_step`), the name of another method, or a function
            `(weight, bias, rank) -> (A, B)` or `(A, B, bias)` on float32 arrays. Methods that are no factorizers, and
            functions wrapped in `by_share`, store layers in code (f(x) takes the place of A B x): their float numbers
            are trained, codes and hashes stay as they were at `begin_step`. Layers that such a method then leaves dense
            are put back and join `Compression.skipped`.
        rank: a rank, or the share of a layer's weights that the pair may have, or either by layer name. A method by
            share is given the share of its bytes in 8 bits; of a rank, that of the pair.
        layers: names, or a predicate on name and module; None takes every linear layer. Unless they were named, layers
            that are not fit, or where a pair would not have fewer weights, are left out: see `Compression.skipped`.
        optimizer: what trains the model; others by `Compression.attach`.
        seed: of what a method by share draws.
        **schedule: the fields of `Schedule`: `begin_step`, optimizer steps before the factors are made; `frequency`,
            steps between two decrements (10); `alpha_decrement`, how much α sinks at each (0.01).

    Raises:
        UsageError: arguments out of range; a layer that was named does not exist or cannot be compressed (another
            type than `torch.nn.Linear`, tied, parametrized, with hooks, the rank does not pay); no layer is left.
    """
    when = Schedule(**schedule)
    chosen = method(compressor, seed)
    if chosen.needs_moments and when.begin_step == 0:
        if not chosen.by_share:
            raise UsageError(f"compressor={chosen.name!r} needs training steps to see inputs in", hint="begin later")
        chosen = replace(chosen, needs_moments=False)
    selected, skipped = choose(model, layers, rank, by_share=chosen.by_share)
    return Compression(model, when, chosen, selected, skipped, optimizer)
