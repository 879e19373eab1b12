"""What an error at the output of a linear layer costs the whole model, by gradients that need no labels and no loss.

One forward and a few backward passes per run of the model, from random directions at its first output (`draws`) to the
outputs of its linear layers, give two things:

- G, the second moment of the gradient g at the layer's output. With C, the covariance of the layer's input, an error
  ΔW costs tr(G ΔW C ΔWᵀ) if gradients and inputs are independent, and independent from row to row (Martens and Grosse,
  ICML 2015).
- The cost of truncating the layer to each rank without these assumptions: the squares of Σ_rows gᵀ ΔW (x − μ), sample
  by sample. Rows of one sample (tokens that are averaged in the end) err alike, which G does not know of: on a
  sentence encoder G puts the cost of single layers at 0.2 … 1.5 of 1 − cosine, this at 1.2 … 2.7, where 2 is exact.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ModelError
from edgepack.model.layer import Layer
from edgepack.model.types import Array, Curvature, Spectrum
from edgepack.torchgraph.archive import load_program
from edgepack.torchgraph.draws import Kind, draws, samples_of
from edgepack.torchgraph.flat import flat_module
from edgepack.torchgraph.linears import TorchLinear
from edgepack.torchgraph.match import match_layers
from edgepack.torchgraph.run import arguments, first_line, torch_threads
from edgepack.workers.threads import one_thread

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule, Node

SAMPLES = 256
BUDGET_S = 120.0
FLUSH_ROWS = 1024


@dataclass(frozen=True)
class Sampling:
    """How gradients are sampled. The same feeds and seed give the same figures, as long as the time suffices.

    Attributes:
        kind: "classes": the last axis of the first output holds logits, or probabilities; "vector": anything else.
        samples: take feeds until so many samples have been seen; samples are the first axis of the first output.
        budget_s: no further run begins after so many seconds; the first is always made.
    """

    kind: Kind
    seed: int
    samples: int = SAMPLES
    budget_s: float = BUDGET_S


def gradient_moments(
    program_path: Path, layers: Sequence[Layer], feeds: Iterable[Mapping[str, Array]], sampling: Sampling
) -> dict[str, Array]:
    """G alone of `curvatures`, by layer name."""
    return {name: one.moment for name, one in curvatures(program_path, layers, {}, feeds, sampling).items()}


def curvatures(
    program_path: Path,
    layers: Sequence[Layer],
    spectra: Mapping[str, Spectrum],
    feeds: Iterable[Mapping[str, Array]],
    sampling: Sampling,
    *,
    moments: Mapping[str, Array] | None = None,
) -> dict[str, Curvature]:
    """What errors at the layers' outputs cost, by layer name.

    Places where one layer is used again count as further rows. Layers that no gradient reaches are absent. A run in
    which a gradient overflows is left out.

    Args:
        program_path: a `.pt2` file.
        layers: by their weights and names, as `match_layers` finds them.
        spectra: by layer name, those of the layers whose truncation is to be looked at.
        feeds: inputs of one run each, by input name or in the order of the program's inputs, in its fixed shapes.
        sampling: how many of them, and what directions are drawn.
        moments: G by layer name, where it is known already: taken as it is, and layers without it are left out.

    Raises:
        ModelError: the program cannot be read, run on the feeds, or differentiated.
    """
    module = flat_module(load_program(program_path))
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    sites = match_layers(module, layers).nodes
    if moments is not None:
        sites = {name: found for name, found in sites.items() if name in moments}
    sums = {} if moments is not None else {name: _Sum(found[0].weight.shape[0]) for name, found in sites.items()}
    curves = {name: _Curve(found, spectra[name]) for name, found in sites.items() if name in spectra}
    seen, deadline = 0, time.monotonic() + sampling.budget_s
    # One sample's matrices are too small to share, and the last bits must not depend on the number of cores.
    with torch_threads(1), one_thread(), ThreadPoolExecutor(os.cpu_count()) as threads:
        for index, feed in enumerate(feeds):
            if seen >= sampling.samples or (index and time.monotonic() > deadline):
                break
            try:
                run = _run(module, feed, sites, sampling.kind, np.random.default_rng([sampling.seed, index]))
            except (RuntimeError, TypeError, IndexError) as err:  # what torch raises for shapes and missing derivatives
                raise ModelError(
                    f"{program_path}: gradients cannot be computed: {first_line(err)}",
                    hint="an operator may have no derivative; the plan can do without gradients",
                ) from err
            if run is None:
                return {}
            seen += run.samples
            added = [threads.submit(sums[name].add, rows) for name, rows in run.gradients.items() if name in sums]
            added += [
                threads.submit(curves[name].add, rows, run.outputs[name])
                for name, rows in run.gradients.items()
                if name in curves
            ]
            for one in added:
                one.result()
    if moments is None:
        moments = {name: total.mean(seen) for name, total in sums.items() if total.reached}
    return {
        name: Curvature(moments[name], curves[name].mean(seen) if name in curves else None)
        for name in sites
        if name in moments
    }


class _Sum:
    """Σ g gᵀ of one layer. Rows are gathered first: one large product instead of many rank-one updates."""

    def __init__(self, features: int) -> None:
        self.total = np.zeros((features, features))
        self.waiting: list[Array] = []
        self.rows_waiting = 0
        self.reached = False

    def add(self, draws: Sequence[Array]) -> None:
        for rows in draws:
            self.reached = self.reached or bool(rows.any())
            self.waiting.append(rows / np.float32(len(draws) ** 0.5))
            self.rows_waiting += len(rows)
        if self.rows_waiting >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self.waiting:
            rows = np.concatenate(self.waiting)
            self.total += rows.T @ rows  # in float32: sums of so few squares lose nothing that a sample would tell
            self.waiting, self.rows_waiting = [], 0

    def mean(self, samples: int) -> Array:
        self._flush()
        return self.total / samples


class _Curve:
    """Cost of each rank of one layer: t_i = Σ_rows (a_iᵀ g)(d_iᵀ W (x − μ)), and rank r costs E (Σ_{i≥r} t_i)².

    a_i and d_i are the columns of the spectrum's basis and of its dual; what lies beyond these is one more component.

    The samples of one run need not be told apart: their draws are independent, so what is between them averages out.
    """

    def __init__(self, places: Sequence[TorchLinear], spectrum: Spectrum) -> None:
        weight, bias = places[0].weight, places[0].bias
        still = np.zeros(len(weight)) if spectrum.mean is None else weight @ spectrum.mean
        self.still = (still if bias is None else still + bias).astype(np.float32)
        self.known = all(_adds(place, bias) for place in places)
        self.basis = spectrum.basis
        self.dual = spectrum.projection
        self.whole = spectrum.rest == 0.0
        self.total = np.zeros(spectrum.basis.shape[1] + 1)

    def add(self, draws: Sequence[Array], outputs: Array) -> None:
        if not self.known:
            return
        moved = outputs - self.still
        components = moved @ self.dual
        for rows in draws:
            lost = ((rows @ self.basis) * components).sum(axis=0, dtype=np.float64)
            rest = 0.0 if self.whole else float((rows * moved).sum(dtype=np.float64) - lost.sum())
            self.total += np.square(np.concatenate([np.cumsum(lost[::-1])[::-1], [0.0]]) + rest) / len(draws)

    def mean(self, samples: int) -> Array | None:
        # Samples say now and then that one component less costs less: by chance, nothing to build on.
        return np.maximum.accumulate(self.total[::-1])[::-1] / samples if self.known else None


@dataclass(frozen=True)
class _Run:
    """One run of the model: gradients of each draw (rows, out) and outputs (rows, out) by layer name.

    `samples` is 0 and there is nothing else where a gradient overflows.
    """

    samples: int
    gradients: Mapping[str, Sequence[Array]]
    outputs: Mapping[str, Array]


def _run(
    module: GraphModule,
    feed: Mapping[str, Array],
    sites: Mapping[str, Sequence[TorchLinear]],
    kind: Kind,
    rng: np.random.Generator,
) -> _Run | None:
    """None where the output has no gradient at all: whole numbers, or nothing that the layers have a part in."""
    import torch

    output, probes, values = _probed(module, feed, {site.node for places in sites.values() for site in places})
    if not output.requires_grad:
        return None
    found: list[dict[Node, Tensor]] = []
    for draw in list(draws(output.detach().double().numpy(), kind, rng)):
        direction = torch.from_numpy(np.ascontiguousarray(draw)).to(output.dtype).reshape(output.shape)
        gradients = torch.autograd.grad(
            output, list(probes.values()), direction, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        found.append(dict(zip(probes, gradients, strict=True)))
    if not all(bool(torch.isfinite(gradient).all()) for by_node in found for gradient in by_node.values()):
        return _Run(0, {}, {})
    met = {name: [site for site in places if site.node in probes] for name, places in sites.items()}
    met = {name: places for name, places in met.items() if places}
    return _Run(
        samples_of(output),
        {n: [np.concatenate([_rows(by[s.node], s) for s in p]) for by in found] for n, p in met.items()},
        {n: np.concatenate([_rows(values[s.node], s) for s in p]) for n, p in met.items()},
    )


def _probed(
    module: GraphModule, feed: Mapping[str, Array], nodes: set[Node]
) -> tuple[Tensor, dict[Node, Tensor], dict[Node, Tensor]]:
    """The first output; zeros added to each node's value, where alone gradients begin; and these values."""
    import torch

    probes: dict[Node, Tensor] = {}
    values: dict[Node, Tensor] = {}

    class Probed(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in nodes:
                probes[n] = torch.zeros_like(value, requires_grad=True)
                # An operator that works in place would change both.
                values[n] = value.detach().clone()
                value = value + probes[n]
            return value

    with torch.enable_grad():
        results = Probed(module).run(*arguments(module, feed))
    return results[0], probes, values


def _rows(value: Tensor, site: TorchLinear) -> Array:
    """(rows, out) float32."""
    rows: Array = value.movedim(site.axis, -1).reshape(-1, site.weight.shape[0]).float().numpy()
    return rows


def _adds(site: TorchLinear, bias: Array | None) -> bool:
    """Whether the node adds this constant, or nothing for None, to W x."""
    if bias is None or site.bias is None:
        return bias is None and site.bias_input is None
    return np.array_equal(site.bias, bias)
