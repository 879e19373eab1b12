"""What each layer of a model could become in one format: the candidates that the solver chooses from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite

import numpy as np

from edgepack.backends.backend import Writer
from edgepack.backends.schemes import CONSTEXPR, CORRECTED, DENSE_INT8, FP32, SCHEMES
from edgepack.cost.sizes import (
    constexpr_size_bytes,
    dense_bytes,
    resident_bytes,
    size_bytes,
    state_bytes,
    table_bytes,
    time_over_dense,
)
from edgepack.errors import ModelError, UsageError
from edgepack.model.kinds import kind_of, sides, view_name, views_of
from edgepack.model.layer import Layer
from edgepack.model.scheme import Format, Scheme, bits_of
from edgepack.model.structure import DENSE, Structure
from edgepack.model.types import Candidate
from edgepack.pipeline.analysis import Analysis
from edgepack.pipeline.latency_estimates import LatencyEstimates
from edgepack.pipeline.losses import Losses, predict_losses
from edgepack.pipeline.method_fits import Alternatives, Fit
from edgepack.pipeline.options import BuildOptions, PrecisionChoice
from edgepack.pipeline.stages import predict_staged_losses
from edgepack.plan.candidates import AskedRank, WorthwhileRanks
from edgepack.plan.loss import Wanted
from edgepack.workspace import Workspace

NO_DATA_LOST_SHARE = 0.01
"""Output energy a layer may lose where there are no data to measure the accuracy on."""


@dataclass(frozen=True)
class SharedWay:
    """One way to write layers with one B.

    Attributes:
        candidates: of each of them; B is part of the first.
        lost: of each, the share of its output energy that is cut off.
    """

    candidates: tuple[Candidate, ...]
    lost: tuple[float, ...]


@dataclass(frozen=True)
class SharedWays:
    """What layers that multiply the same vectors could become together.

    Attributes:
        layers: their names, in graph order.
        ways: one or more.
    """

    layers: tuple[str, ...]
    ways: tuple[SharedWay, ...]


@dataclass(frozen=True)
class LayerCandidates:
    """One layer's candidates.

    Attributes:
        candidates: at least one.
        why_dense: why none of them is a pair, where that is so.
        shared: of the first of several layers, what they could become together.
    """

    layer: Layer
    candidates: tuple[Candidate, ...]
    why_dense: str | None
    shared: SharedWays | None = None


def check_losses(all_candidates: Sequence[LayerCandidates]) -> None:
    """Refuse a model of which some of them lose what is no number.

    Raises:
        ModelError: weights and samples are so large that it overflows.
    """
    for one in all_candidates:
        if not all(isfinite(candidate.loss) for candidate in one.candidates):
            largest = max((float(np.abs(weight).max()) for weight in one.layer.weights.values()), default=0.0)
            raise ModelError(
                f"{one.layer.name}: its weights, up to {largest:.3g}, times its inputs are beyond what float32 "
                "holds, so that what rounding loses of them is no number",
                hint="scale the model or its samples, or leave the layer as it is with --keep",
            )


@dataclass(frozen=True)
class Offered:
    """What a layer is offered.

    Attributes:
        structures: the dense one first.
        why_dense: why none of them has low-rank factors in the layer's place, where that is so.
        kept: whether the layer stays as it is, in fp32.
    """

    structures: tuple[Structure, ...]
    why_dense: str | None
    kept: bool = False

    @property
    def in_place(self) -> tuple[Structure, ...]:
        """Those with low-rank factors in the layer's place."""
        return tuple(one for one in self.structures if one.in_place)


@dataclass(frozen=True)
class Offer:
    """What the layers of a model could become, in every format alike, and what each way loses.

    Attributes:
        layers: what each is offered, by name.
        alternatives: by other methods.
        losses: by view name.
        unseen: views that the data never reached, for which there are no ranges.
        has_data: whether data measure the accuracy; if not, no candidate may lose more than a hundredth.
    """

    layers: Mapping[str, Offered]
    alternatives: Alternatives
    losses: Losses
    unseen: Collection[str]
    has_data: bool

    def loss(self, layer: Layer, scheme: Scheme, structure: Structure) -> float:
        """What a way to write a layer loses: the sum over its parts."""
        parts = kind_of(layer).parts(layer, structure)
        return sum(self.losses[view_name(layer.name, view)][scheme, part] for view, part in parts.items())


def offered(
    layers: Sequence[Layer], options: BuildOptions, unseen: Collection[str], *, share: float | None = None
) -> dict[str, Offered]:
    """The structures to offer, by layer name.

    Args:
        unseen: views that the data never reached: they stay dense in auto mode, for nothing measures what they lose.
        share: of each layer's weights, that cross-validation chose.
    """
    corrected = any(CORRECTED[fmt] for fmt in options.chosen_formats) and options.precision in ("auto", "int4")
    grid: WorthwhileRanks | AskedRank = WorthwhileRanks(corrected=corrected and options.rank == "auto")
    if share is not None:
        grid = AskedRank(share, worthwhile=True)
    elif not isinstance(options.rank, str):
        grid = AskedRank(options.rank)
    found = {}
    kept = options.kept([layer.name for layer in layers])
    for layer in layers:
        if layer.name in kept:
            found[layer.name] = Offered((DENSE,), "left as it is, as asked", kept=True)
            continue
        if isinstance(grid, WorthwhileRanks) and not _is_seen(layer, unseen):
            found[layer.name] = Offered((DENSE,), "the data never reach it")
            continue
        one = Offered(tuple(kind_of(layer).structures(layer, grid)), None)
        found[layer.name] = one if one.in_place else replace(one, why_dense=grid.why_none(*sides(layer)))
    return found


def most_ranks(layers: Sequence[Layer], options: BuildOptions, *, share: float | None = None) -> dict[str, int]:
    """The largest rank that each view is offered, by its name; arguments as of `offered`."""
    offers = offered(layers, options, (), share=share)
    found: dict[str, int] = {}
    for layer in layers:
        for structure in offers[layer.name].structures:
            for view, part in kind_of(layer).parts(layer, structure).items():
                name = view_name(layer.name, view)
                found[name] = max(found.get(name, 0), *part.ranks, 0)
    return found


def _is_seen(layer: Layer, unseen: Collection[str]) -> bool:
    return not any(view.name in unseen for view in views_of([layer]))


def without_factors(layers: Mapping[str, Offered], alternatives: Alternatives) -> dict[str, Offered]:
    """No factors at all, because other methods take the place of the factorizer."""
    return {name: own if own.kept else Offered((DENSE,), alternatives.why.get(name)) for name, own in layers.items()}


def make_offer(
    analysis: Analysis,
    layers: Mapping[str, Offered],
    alternatives: Alternatives,
    formats: Collection[Format],
    workspace: Workspace,
    *,
    has_data: bool,
) -> Offer:
    """What every way to write a layer loses.

    Raises:
        DeviceError: the workers failed.
    """
    schemes = tuple(scheme for fmt in formats for scheme in SCHEMES[fmt])
    corrected = tuple(scheme for fmt in formats for scheme in CORRECTED[fmt])
    parts = _parts(analysis.layers, layers)
    wanted = {
        view.name: Wanted(
            schemes,
            tuple(part.ranks[0] for part in parts[view.name] if part.is_low_rank),
            tuple(part.ranks[0] for part in parts[view.name] if part.is_correction),
            corrected,
        )
        for view in analysis.views
    }
    losses = predict_losses(analysis, wanted, workspace)
    apart = {name: [part for part in own if not part.of_a_matrix] for name, own in parts.items()}
    staged = predict_staged_losses(analysis, apart, schemes, workspace)
    losses = {name: {**own, **staged.get(name, {})} for name, own in losses.items()}
    return Offer(layers, alternatives, losses, analysis.unseen, has_data)


def _parts(layers: Sequence[Layer], offered: Mapping[str, Offered]) -> dict[str, list[Structure]]:
    """What each view may become, by its name, in the order in which its layer is offered it."""
    found: dict[str, list[Structure]] = {view.name: [] for view in views_of(layers)}
    for layer in layers:
        for structure in offered[layer.name].structures:
            for view, part in kind_of(layer).parts(layer, structure).items():
                own = found[view_name(layer.name, view)]
                if part not in own:
                    own.append(part)
    return found


def make_candidates(
    files: Writer, layers: Sequence[Layer], offer: Offer, estimates: LatencyEstimates, options: BuildOptions
) -> tuple[LayerCandidates, ...]:
    """The candidates of each layer: every scheme that the options allow, dense and at every rank worth trying.

    Raises:
        UsageError: the source of costs has nothing on the precision that was asked for.
    """
    all_candidates = []
    for layer in layers:
        own = _held(files, layer, offer.layers[layer.name])
        if own.kept:
            kept = [(files.kept_scheme, DENSE)]
            all_candidates.append(
                LayerCandidates(layer, tuple(_candidates(files, layer, kept, offer, estimates)), own.why_dense)
            )
            continue
        structures, why_dense = list(own.structures), own.why_dense
        if options.rank != "auto" and own.in_place:
            structures = [min(own.in_place, key=partial(offer.loss, layer, FP32[files.fmt]))]
        schemes = _schemes(files, layer, structures, options, seen=_is_seen(layer, offer.unseen))
        ways = [(scheme, structure) for scheme in schemes for structure in structures if not structure.is_correction]
        corrected = [structure for structure in structures if structure.is_correction]
        ways += [(scheme, structure) for scheme in files.corrected_schemes() for structure in corrected]
        fits = offer.alternatives.fits.get(layer.name, ())
        others = tuple(each for fit in fits for each in _others(files, layer, fit, schemes, estimates))
        if fits and not others and why_dense is None:
            why_dense = "by this method it would take more bytes than dense in 8 bits"
        if others and options.rank != "auto":
            ways = [way for way in ways if way[1].ranks]
        found = (*_candidates(files, layer, ways, offer, estimates), *others)
        if options.precision != "fp32":  # all that is no layer has 8 bits
            found = tuple(_with_states(files.fmt, layer, one) for one in found)
        if not found:
            source = estimates.source_name(files.fmt)
            raise UsageError(
                f"--precision {options.precision}: the {source} has no figures for {' or '.join(map(str, schemes))}"
            )
        if not offer.has_data and options.rank == "auto":
            found = _careful(found, options.precision)
        all_candidates.append(LayerCandidates(layer, found, why_dense))
    return tuple(all_candidates)


def _held(files: Writer, layer: Layer, own: Offered) -> Offered:
    """What the format can hold of it in some scheme: it may have no factors for layers of this kind."""
    schemes = files.layer_schemes()
    refused = [one for one in own.in_place if all(files.supports(layer, one, scheme) is not None for scheme in schemes)]
    held = replace(own, structures=tuple(one for one in own.structures if one not in refused))
    if held.in_place or not refused:
        return held
    return replace(held, why_dense=files.supports(layer, refused[0], schemes[0]))


def _schemes(
    files: Writer, layer: Layer, structures: Sequence[Structure], options: BuildOptions, *, seen: bool
) -> list[Scheme]:
    """Those of the precision that was asked for; of the next wider one where the layer has none with a kernel."""
    schemes = [
        scheme for scheme in files.layer_schemes() if seen or not scheme.is_static or scheme == files.kept_scheme
    ]
    if options.precision == "auto":
        return schemes
    offered = [structure for structure in structures if not structure.is_correction]
    suited = [
        scheme for scheme in schemes if any(files.supports(layer, structure, scheme) is None for structure in offered)
    ]
    width = min(scheme.bits for scheme in suited if scheme.bits >= bits_of(options.precision))
    return [scheme for scheme in suited if scheme.bits == width]


def _candidates(
    files: Writer,
    layer: Layer,
    ways: Sequence[tuple[Scheme, Structure]],
    offer: Offer,
    estimates: LatencyEstimates,
) -> Iterator[Candidate]:
    for scheme, structure in ways:
        loss = 0.0 if structure.is_dense and scheme == files.kept_scheme else offer.loss(layer, scheme, structure)
        found = _candidate(files, layer, structure, scheme, loss, estimates)
        if found is not None:
            yield found


def _candidate(
    files: Writer, layer: Layer, structure: Structure, scheme: Scheme, loss: float, estimates: LatencyEstimates
) -> Candidate | None:
    """None where the format cannot hold it, or the source of costs has nothing on it."""
    if files.supports(layer, structure, scheme) is not None:
        return None
    estimate = estimates.estimate(layer.name, structure, scheme)
    if estimate is None:
        return None
    ops = kind_of(layer).ops(layer, structure, 1)
    table = _table_bytes(files.fmt, layer, structure, scheme)
    decoded = size_bytes(scheme, ops, layer.bias) + table
    size = dense_bytes(scheme, layer, ops) + table if structure.is_dense else decoded
    ram = resident_bytes(scheme, decoded)
    return Candidate(scheme, structure, ops, loss, size, ram, estimate.latency_s, estimate.source)


def _with_states(fmt: Format, layer: Layer, candidate: Candidate) -> Candidate:
    """The candidate with what it makes of the weights of a recurrent layer's states."""
    more = state_bytes(fmt, layer, candidate.scheme)
    ram = candidate.ram_bytes + resident_bytes(candidate.scheme, more)
    return replace(candidate, size_bytes=candidate.size_bytes + more, ram_bytes=ram) if more else candidate


def _table_bytes(fmt: Format, layer: Layer, structure: Structure, scheme: Scheme) -> int:
    """What a file holds of a tied weight beside the layer: all of it, where the layer has no codes of its rows."""
    if not layer.tied or structure.is_dense:
        return 0
    return table_bytes(scheme if scheme.is_float else DENSE_INT8[fmt][0], layer)


def _others(
    files: Writer, layer: Layer, fit: Fit, schemes: Sequence[Scheme], estimates: LatencyEstimates
) -> Iterator[Candidate]:
    """What another method made of a layer: in code, or in each scheme that a pair or a matrix can take."""
    part = fit.part
    if not files.takes({layer.name: part}):
        return
    if part.structure.is_constexpr:
        found = _constexpr(files.fmt, layer, fit, estimates)
        if found is not None:
            yield found
        return
    for scheme in schemes:
        if scheme in fit.losses:
            candidate = _candidate(files, layer, part.structure, scheme, fit.losses[scheme], estimates)
            if candidate is not None:
                yield replace(candidate, alternative=fit.alternative)


def _constexpr(fmt: Format, layer: Layer, fit: Fit, estimates: LatencyEstimates) -> Candidate | None:
    """A layer in code; None where it would be larger than dense int8, or nothing is known of the dense one's cost."""
    dense = estimates.estimate(layer.name, DENSE, FP32[fmt])
    if dense is None:
        return None
    part, scheme = fit.part, CONSTEXPR[fmt]
    ops = kind_of(layer).ops(layer, DENSE, 1)
    size = constexpr_size_bytes(fmt, part, bias=layer.bias is not None) + _table_bytes(
        fmt, layer, part.structure, scheme
    )
    if size >= size_bytes(DENSE_INT8[fmt][0], ops, layer.bias):
        return None
    ram = size + resident_bytes(FP32[fmt], size_bytes(FP32[fmt], ops, layer.bias))
    latency_s = dense.latency_s * time_over_dense(fmt, part)
    loss = fit.losses[scheme]
    return Candidate(scheme, part.structure, (), loss, size, ram, latency_s, dense.source, fit.alternative)


def _careful(candidates: tuple[Candidate, ...], precision: PrecisionChoice) -> tuple[Candidate, ...]:
    """Those that lose at most a hundredth of the output energy, in 8 bits or more unless fewer were asked for; there is
    always the one that loses least."""
    wide = tuple(one for one in candidates if one.scheme.bits >= bits_of("int8") or precision == "int4") or candidates
    least = min(wide, key=lambda one: one.loss)
    return tuple(one for one in wide if one.loss <= NO_DATA_LOST_SHARE) or (least,)
