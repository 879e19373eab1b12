"""Layers that multiply the same vectors, as queries, keys and values do, with one first factor: y_i = A_i (B x).

Their weights one above the other are one taller matrix on the same input: its whitened factors are the best that one B
can do for all of them. k layers (m, n) have k r (n + m) weights at a rank each by itself, and r (n + k m) together.

In the stack each layer counts as much as the planner says that its output energy does. The factors by which it does are
powers of two, so that taking them off again leaves every weight on its integer grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from edgepack.backends.backend import THREADS, Writer
from edgepack.cost.sizes import resident_bytes, size_bytes
from edgepack.model.kinds import kind_of, linear
from edgepack.model.layer import Layer, View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Op, Structure, low_rank, shared_input
from edgepack.model.types import Array, Candidate, Moments, Spectrum
from edgepack.natives import native
from edgepack.pipeline.activations import InputMoments
from edgepack.pipeline.analysis import Analysis
from edgepack.pipeline.candidates import LayerCandidates, Offer, SharedWay, SharedWays
from edgepack.pipeline.decompositions import decompose_views
from edgepack.pipeline.latency_estimates import LatencyEstimates, as_written
from edgepack.plan.candidates import rank_choices
from edgepack.workspace import Workspace, digest

MOST_ROWS = 8192
"""Of a stack, whose basis has as many rows."""


@dataclass(frozen=True)
class Member:
    """A layer of a group, as it is by itself.

    Attributes:
        spectrum: of it alone.
        losses: of every way to write it that is looked at.
        ranks: of its own low-rank factors, ascending; at least one.
    """

    layer: Layer
    spectrum: Spectrum
    losses: Mapping[tuple[Scheme, Structure], float]
    ranks: tuple[int, ...]

    @property
    def energy(self) -> float:
        """Of its output."""
        return float(self.spectrum.energies.sum()) + self.spectrum.rest

    @property
    def worth(self) -> float:
        """Predicted loss for each unit of output energy, by its smallest rank; 0 where nothing is lost or known."""
        shares, losses = self._curve
        return losses[-1] / (shares[-1] * self.energy) if shares[-1] * self.energy > 0.0 else 0.0

    def loss(self, scheme: Scheme, rank: int, share: float) -> float:
        """Predicted: by itself at the same share of its output energy, with the noise of its own grids at about that
        rank.

        Args:
            rank: in the group.
            share: of output energy that is lost there.
        """
        shares, losses = self._curve
        cut_off = float(np.interp(share, [0.0, *shares], [0.0, *losses])) * max(1.0, share / (shares[-1] or 1.0))
        like = low_rank(min(self.ranks, key=lambda own: abs(own - rank)))
        return cut_off + max(self.losses[scheme, like] - self.losses[self._floats, like], 0.0)

    @cached_property
    def _curve(self) -> tuple[list[float], list[float]]:
        """By its own ranks in fp32, ascending: shares of its output energy that are lost, and predicted losses."""
        lost, ranks = self.spectrum.lost_share(), self.ranks[::-1]
        return [float(lost[rank]) for rank in ranks], [self.losses[self._floats, low_rank(rank)] for rank in ranks]

    @cached_property
    def _floats(self) -> Scheme:
        return next(scheme for scheme, _ in self.losses if scheme.is_float)


@dataclass(frozen=True)
class Group:
    """Layers that multiply the same vectors.

    Attributes:
        members: two or more linear layers, in graph order.
        scales: of each, what its rows in the stack are multiplied by: a power of two.
        view: the stack (sum of out, in).
        spectrum: of it, whitened.
    """

    members: tuple[Member, ...]
    scales: tuple[float, ...]
    view: View
    spectrum: Spectrum

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers."""
        return tuple(member.layer.name for member in self.members)

    def lost_shares(self, rank: int) -> tuple[float, ...]:
        """Of each layer, the share of its output energy that is lost at a rank."""
        return tuple(float(own[rank]) for own in self._curves)

    @cached_property
    def _curves(self) -> list[Array]:
        """Of each layer (k + 1,) float64: what is lost at rank 0 … k. A column of the basis carries of its energy what
        it has in the layer's rows."""
        curves = []
        for member, scale, rows in zip(self.members, self.scales, self._apart(self.spectrum.basis), strict=True):
            carried = np.einsum("ij,ij->j", rows, rows, dtype=np.float64) * self.spectrum.energies
            kept = np.concatenate([[0.0], np.cumsum(carried)]) / (scale**2 * member.energy)
            curves.append(np.clip(1.0 - kept, 0.0, 1.0))
        return curves

    def ops(self, rank: int) -> tuple[tuple[Op, ...], ...]:
        """Of each layer its products; B is one of the first layer's."""
        pairs = [kind_of(one.layer).ops(one.layer, shared_input(rank), 1) for one in self.members]
        return tuple(pair[number > 0 :] for number, pair in enumerate(pairs))

    def parts(self, stacked: Replacement) -> dict[str, Replacement]:
        """Of factors of the stack those of each layer, by name: its rows of A, and all of B.

        Raises:
            ValueError: they have no bias.
        """
        if stacked.bias is None:
            raise ValueError(f"{self.view.name}: found factors without a bias, expected one")
        rows = zip(self.names, self.scales, self._apart(stacked.A), self._apart(stacked.bias), strict=True)
        return {
            name: Replacement(
                shared_input(stacked.rank),
                {"A": (A / scale).astype(np.float32), "B": stacked.B},
                (bias / scale).astype(np.float32),
            )
            for name, scale, A, bias in rows
        }

    def _apart(self, rows: Array) -> list[Array]:
        return np.split(rows, np.cumsum([member.layer.out_features for member in self.members])[:-1])


@dataclass(frozen=True)
class WithStacks:
    """Moments of the inputs of layers and of stacks of them, as `InputMoments`.

    Attributes:
        covariances: of the layers.
        groups: whose stacks there are.
    """

    covariances: InputMoments
    groups: Mapping[tuple[str, ...], Group]

    @property
    def key(self) -> str:
        """See `InputMoments.key`. What else a stack depends on stands in the name of its view."""
        return self.covariances.key

    def of(self, name: str) -> Moments | None:
        """See `InputMoments.of`."""
        first = next((group.names[0] for group in self.groups.values() if group.view.name == name), name)
        return self.covariances.of(first)


def find_groups(analysis: Analysis, offer: Offer, workspace: Workspace) -> dict[tuple[str, ...], Group]:
    """Groups of layers that multiply the same vectors and are each offered low-rank factors, by their layers' names.

    A layer whose weight has several places is in none.

    Raises:
        DeviceError: the workers failed.
    """
    found = [(members, scales) for members in _of_one_input(analysis, offer) if (scales := _scales(members))]
    views = [_stack(analysis, members, scales) for members, scales in found]
    spectra = decompose_views(views, [rank_choices(*view.weight.shape)[-1] for view in views], analysis.key, workspace)
    groups = [Group(*own, view, spectrum) for own, view, spectrum in zip(found, views, spectra, strict=True)]
    return {group.names: group for group in groups}


def _of_one_input(analysis: Analysis, offer: Offer) -> list[tuple[Member, ...]]:
    able: dict[str, Member] = {}
    for layer in analysis.layers:
        ranks = tuple(one.ranks[0] for one in offer.layers[layer.name].structures if one.is_low_rank)
        if ranks and layer.kind == linear.NAME and layer.uses == 1 and not (layer.tied or layer.shared):
            able[layer.name] = Member(layer, analysis.spectra[layer.name], offer.losses[layer.name], ranks)
    if len(able) < 2:
        return []
    opened = analysis.subject.opened
    keys = native(opened.native).observe(opened.content, able, threads=THREADS).keys
    by_key: dict[tuple[str, ...], list[Member]] = {}
    for name, member in able.items():
        if name in keys:
            by_key.setdefault(keys[name], []).append(member)
    return [tuple(own) for own in by_key.values() if len(own) > 1 and _pays(own)]


def _pays(members: Sequence[Member]) -> bool:
    rows = sum(member.layer.out_features for member in members)
    return rows <= MOST_ROWS and bool(rank_choices(rows, members[0].layer.in_features))


def _scales(members: Sequence[Member]) -> tuple[float, ...]:
    """Of the members' rows; none where one of them loses nothing, or nothing is known of it."""
    worths = np.array([member.worth for member in members])
    if not (worths > 0.0).all():
        return ()
    return tuple(2.0 ** float(step) for step in np.rint(np.log2(worths / worths[0]) / 2))


def _stack(analysis: Analysis, members: Sequence[Member], scales: Sequence[float]) -> View:
    layers = [member.layer for member in members]
    biases = [np.zeros(layer.out_features, np.float32) if layer.bias is None else layer.bias for layer in layers]
    weight, bias = (
        np.concatenate([rows * np.float32(scale) for rows, scale in zip(parts, scales, strict=True)])
        for parts in ([layer.weight for layer in layers], biases)
    )
    names = [layer.name for layer in layers]
    moments = analysis.covariances.of(names[0])
    return View(f"{' + '.join(names)} #{digest(names, scales)[:8]}", weight, bias, moments)


def with_shared_input(
    all_candidates: Sequence[LayerCandidates],
    files: Writer,
    groups: Mapping[tuple[str, ...], Group],
    estimates: LatencyEstimates,
) -> tuple[LayerCandidates, ...]:
    """The candidates, those of the first layer of a group with what its layers could become together in this format."""
    by_name = {layer_candidates.layer.name: layer_candidates for layer_candidates in all_candidates}
    for names, group in groups.items():
        ways = tuple(_ways(files, group, [by_name[name] for name in names], estimates)) if files.shares(names) else ()
        if ways:
            by_name[names[0]] = replace(by_name[names[0]], shared=SharedWays(names, ways))
    return tuple(by_name.values())


def _ways(
    files: Writer, group: Group, all_candidates: Sequence[LayerCandidates], estimates: LatencyEstimates
) -> Iterator[SharedWay]:
    """At every rank worth trying, in every scheme in which each of the layers could have factors of its own."""
    own = [
        {one.scheme: None for one in layer_candidates.candidates if one.structure.is_low_rank}
        for layer_candidates in all_candidates
    ]
    for scheme in (scheme for scheme in own[0] if all(scheme in schemes for schemes in own)):
        for rank in rank_choices(*group.view.weight.shape):
            way = _way(files, group, scheme, rank, estimates)
            if way is not None:
                yield way


def _way(files: Writer, group: Group, scheme: Scheme, rank: int, estimates: LatencyEstimates) -> SharedWay | None:
    """None where the format cannot hold it, or the source of costs has nothing on it."""
    parts, lost = [], group.lost_shares(rank)
    for member, ops, share in zip(group.members, group.ops(rank), lost, strict=True):
        layer, structure = member.layer, shared_input(rank)
        latency_s = _latency_s(layer, scheme, ops, estimates)
        if latency_s is None or files.supports(layer, structure, scheme) is not None:
            return None
        size = size_bytes(scheme, ops, layer.bias)
        loss, source = member.loss(scheme, rank, share), estimates.source_name(scheme.backend)
        ram = resident_bytes(scheme, size)
        parts.append(Candidate(scheme, structure, ops, loss, size, ram, latency_s, source))
    return SharedWay(tuple(parts), lost)


def _latency_s(layer: Layer, scheme: Scheme, ops: Sequence[Op], estimates: LatencyEstimates) -> float | None:
    """Of both factors; of A alone what is left of that without B, and no smaller a share of it than A's of the
    multiplications: what was measured of one product and of two need not fit to the last, and of one nothing may be
    known. None where nothing is known of both."""
    rank, uses = ops[-1].columns, estimates.uses.get(layer.name)
    pair = estimates.estimate(layer.name, low_rank(rank), scheme)
    if pair is None or len(ops) > 1 or uses is None:
        return None if pair is None else pair.latency_s
    share = layer.out_features / (layer.out_features + layer.in_features)
    first = estimates.of_product(scheme, as_written(layer, Op("B", "matmul", rank, layer.in_features, uses.rows)))
    return max(pair.latency_s - (pair.latency_s if first is None else first.latency_s), share * pair.latency_s)
