"""What each layer of a model could become in one format: the candidates that the solver chooses from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgepack.backends.backend import Writer
from edgepack.backends.schemes import CONSTEXPR, CORRECTED, DENSE_INT8, FP32, SCHEMES
from edgepack.cost.sizes import coded_size_bytes, resident_bytes, size_bytes, time_over_dense
from edgepack.errors import UsageError
from edgepack.model.kinds import kind_of
from edgepack.model.layer import Layer
from edgepack.model.scheme import Format, Scheme, bits_of
from edgepack.model.structure import DENSE, Structure
from edgepack.model.types import Candidate
from edgepack.pipeline.analysis import Analysis
from edgepack.pipeline.losses import Losses, predict_losses
from edgepack.pipeline.method_fits import Alternatives, Fit
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.prices import Prices
from edgepack.plan.candidates import GivenRanks, asked_rank, rank_choices, residual_ranks, shared_rank, too_small
from edgepack.plan.loss import Wanted
from edgepack.workspace import Workspace

UNGUARDED_LOST_SHARE = 0.01
"""Output energy a layer may lose where no data stand guard over the accuracy."""


@dataclass(frozen=True)
class Menu:
    """One layer's candidates; at least one. `why_dense` says why none of them is a pair, where that is so."""

    layer: Layer
    candidates: tuple[Candidate, ...]
    why_dense: str | None


@dataclass(frozen=True)
class Ranks:
    """What ranks a layer is offered at.

    Attributes:
        own: of low-rank factors beside or instead of the dense layer.
        why_none: why there are none, where that is so.
        residual: of factors beside the dense matrix in 4 bits.
    """

    own: tuple[int, ...]
    why_none: str | None
    residual: tuple[int, ...]


@dataclass(frozen=True)
class Offer:
    """What the layers of a model could become, in every format alike, and what each way loses.

    Attributes:
        ranks: by layer name.
        alternatives: by other methods.
        losses: by layer name.
        unseen: layers that the data never reached, for which there are no ranges.
        guarded: whether data stand guard over the accuracy; if not, no candidate may lose more than a hundredth.
    """

    ranks: Mapping[str, Ranks]
    alternatives: Alternatives
    losses: Losses
    unseen: Collection[str]
    guarded: bool


def ranks_of(
    layers: Sequence[Layer], options: BuildOptions, unseen: Collection[str], *, share: float | None = None
) -> dict[str, Ranks]:
    """The ranks to offer, by layer name.

    Args:
        unseen: layers that the data never reached: they stay dense in auto mode, for nothing guards what they lose.
        share: of each layer's weights, that cross-validation chose.
    """
    offered = any(CORRECTED[fmt] for fmt in options.chosen_formats)
    corrected = offered and options.rank == "auto" and options.precision in ("auto", "int4")
    found = {}
    for layer in layers:
        seen = layer.name not in unseen
        own, why_none = _ranks(layer, options, share, seen=seen)
        residual = residual_ranks(layer.out_features, layer.in_features) if corrected and seen else ()
        found[layer.name] = Ranks(own, why_none, residual)
    return found


def without_factors(ranks: Mapping[str, Ranks], alternatives: Alternatives) -> dict[str, Ranks]:
    """No ranks at all, because other methods take the place of the factorizer."""
    return {name: Ranks((), alternatives.why.get(name), ()) for name in ranks}


def make_offer(
    analysis: Analysis,
    ranks: Mapping[str, Ranks],
    alternatives: Alternatives,
    formats: Collection[Format],
    workspace: Workspace,
    *,
    guarded: bool,
) -> Offer:
    """What every way to write a layer loses.

    Raises:
        DeviceError: the workers failed.
    """
    schemes = tuple(scheme for fmt in formats for scheme in SCHEMES[fmt])
    corrected = tuple(scheme for fmt in formats for scheme in CORRECTED[fmt])
    wanted = {name: Wanted(schemes, own.own, own.residual, corrected) for name, own in ranks.items()}
    losses = predict_losses(analysis, wanted, workspace)
    return Offer(ranks, alternatives, losses, analysis.unseen, guarded)


def make_menus(
    files: Writer, layers: Sequence[Layer], offer: Offer, prices: Prices, options: BuildOptions
) -> tuple[Menu, ...]:
    """One menu per layer: every scheme that the options allow, dense and at every rank worth trying.

    Raises:
        UsageError: the source of costs has nothing on the precision that was asked for.
    """
    menus = []
    for layer in layers:
        offered = offer.ranks[layer.name]
        own, why_dense = offered.own, offered.why_none
        structures = list(kind_of(layer).structures(layer, GivenRanks(own, offered.residual)))
        if options.rank != "auto" and own:
            structures = [structure for structure in structures if structure.ranks]
        schemes = _schemes(files, layer, structures, options, seen=layer.name not in offer.unseen)
        ways = [(scheme, structure) for scheme in schemes for structure in structures if not structure.is_correction]
        corrected = [structure for structure in structures if structure.is_correction]
        ways += [(scheme, structure) for scheme in files.corrected_schemes() for structure in corrected]
        fits = offer.alternatives.fits.get(layer.name, ())
        others = tuple(each for fit in fits for each in _others(files, layer, fit, schemes, prices))
        if fits and not others and why_dense is None:
            why_dense = "by this method it would take more bytes than dense in 8 bits"
        if others and options.rank != "auto":
            ways = [way for way in ways if way[1].ranks]
        found = (*_candidates(files, layer, ways, offer.losses[layer.name], prices), *others)
        if not found:
            source = prices.source_name(files.fmt)
            raise UsageError(
                f"--precision {options.precision}: the {source} has no figures for {' or '.join(map(str, schemes))}"
            )
        if not offer.guarded and options.rank == "auto":
            found = _careful(found)
        menus.append(Menu(layer, found, why_dense))
    return tuple(menus)


def _ranks(
    layer: Layer, options: BuildOptions, share: float | None, *, seen: bool
) -> tuple[tuple[int, ...], str | None]:
    sides = layer.out_features, layer.in_features
    asked: int | str | None = None
    if share is not None:
        asked = shared_rank(*sides, share)
    elif not isinstance(options.rank, str):
        asked = asked_rank(*sides, options.rank)
    if asked is not None:
        return ((), asked) if isinstance(asked, str) else ((asked,), None)
    if not seen:
        return (), "the data never reach it"
    choices = rank_choices(*sides)
    return choices, None if choices else too_small(*sides)


def _schemes(
    files: Writer, layer: Layer, structures: Sequence[Structure], options: BuildOptions, *, seen: bool
) -> list[Scheme]:
    """Those of the precision that was asked for; of the next wider one where the layer has none with a kernel."""
    schemes = [scheme for scheme in files.layer_schemes() if seen or not scheme.is_static]
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
    losses: Mapping[tuple[Scheme, Structure], float],
    prices: Prices,
) -> Iterator[Candidate]:
    for scheme, structure in ways:
        found = _candidate(files, layer, structure, scheme, losses[scheme, structure], prices)
        if found is not None:
            yield found


def _candidate(
    files: Writer, layer: Layer, structure: Structure, scheme: Scheme, loss: float, prices: Prices
) -> Candidate | None:
    """None where the format cannot hold it, or the source of costs has nothing on it."""
    if files.supports(layer, structure, scheme) is not None:
        return None
    price = prices.price(layer.name, structure, scheme)
    if price is None:
        return None
    ops = kind_of(layer).ops(layer, structure, 1)
    size = size_bytes(scheme, ops, layer.bias)
    ram = resident_bytes(scheme, size)
    return Candidate(scheme, structure, ops, loss, size, ram, price.latency_s, price.source)


def _others(files: Writer, layer: Layer, fit: Fit, schemes: Sequence[Scheme], prices: Prices) -> Iterator[Candidate]:
    """What another method made of a layer: in code, or in each scheme that a pair or a matrix can take."""
    part = fit.part
    if not files.takes({layer.name: part}):
        return
    if part.structure.is_constexpr:
        found = _constexpr(files.fmt, layer, fit, prices)
        if found is not None:
            yield found
        return
    for scheme in schemes:
        if scheme in fit.losses:
            candidate = _candidate(files, layer, part.structure, scheme, fit.losses[scheme], prices)
            if candidate is not None:
                yield replace(candidate, alternative=fit.alternative)


def _constexpr(fmt: Format, layer: Layer, fit: Fit, prices: Prices) -> Candidate | None:
    """A layer in code; None where it would be larger than dense int8, or nothing is known of the dense one's cost."""
    dense = prices.price(layer.name, DENSE, FP32[fmt])
    if dense is None:
        return None
    part, scheme = fit.part, CONSTEXPR[fmt]
    ops = kind_of(layer).ops(layer, DENSE, 1)
    size = coded_size_bytes(fmt, part, bias=layer.bias is not None)
    if size >= size_bytes(DENSE_INT8[fmt][0], ops, layer.bias):
        return None
    ram = size + resident_bytes(FP32[fmt], size_bytes(FP32[fmt], ops, layer.bias))
    latency_s = dense.latency_s * time_over_dense(fmt, part)
    loss = fit.losses[scheme]
    return Candidate(scheme, part.structure, (), loss, size, ram, latency_s, dense.source, fit.alternative)


def _careful(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Those that lose at most a hundredth of the output energy; there is always the one that loses least."""
    least = min(candidates, key=lambda one: one.loss)
    return tuple(one for one in candidates if one.loss <= UNGUARDED_LOST_SHARE) or (least,)
