"""What each layer of a model could become in one format: the candidates that the solver chooses from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgepack.backends.schemes import CONSTEXPR, DENSE_INT8, FP32
from edgepack.backends.tflite.schemes import INT4_DYNAMIC
from edgepack.errors import UsageError
from edgepack.model.layer import Layer
from edgepack.model.scheme import BITS, Scheme
from edgepack.pipeline.alternatives import NOTHING, Alternatives, Fit
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.losses import Losses
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.pricing import Prices
from edgepack.plan.candidates import asked_rank, rank_choices, residual_ranks, shared_rank, too_small
from edgepack.plan.coded_cost import coded_size_bytes, time_over_dense
from edgepack.plan.sizes import resident_bytes, size_bytes
from edgepack.types import Candidate

UNGUARDED_LOST_SHARE = 0.01
"""Output energy a layer may lose where no data stand guard over the accuracy."""


@dataclass(frozen=True)
class Menu:
    """One layer's candidates; at least one. `why_dense` says why none of them is a pair, where that is so."""

    layer: Layer
    candidates: tuple[Candidate, ...]
    why_dense: str | None


def ranks_of(
    layers: Sequence[Layer], options: BuildOptions, unseen: Collection[str], *, share: float | None = None
) -> dict[str, tuple[tuple[int, ...], str | None]]:
    """By layer name: the ranks to offer beside or instead of the dense layer, and why there are none.

    Args:
        unseen: layers that the data never reached: they stay dense in auto mode, for nothing guards what they lose.
        share: of each layer's weights, that cross-validation chose.
    """
    return {layer.name: _ranks(layer, options, share, seen=layer.name not in unseen) for layer in layers}


def residuals_of(layers: Sequence[Layer], options: BuildOptions, unseen: Collection[str]) -> dict[str, tuple[int, ...]]:
    """By layer name: the ranks to offer of a pair beside the dense matrix in 4 bits; none where that is not wanted."""
    wanted = "onnx" in options.formats and options.rank == "auto" and options.precision in ("auto", "int4")
    return {
        layer.name: residual_ranks(layer.out_features, layer.in_features) if wanted and layer.name not in unseen else ()
        for layer in layers
    }


def make_menus(
    files: ModelFiles,
    layers: Sequence[Layer],
    ranks: Mapping[str, tuple[tuple[int, ...], str | None]],
    losses: Losses,
    prices: Prices,
    options: BuildOptions,
    unseen: Collection[str],
    *,
    alternatives: Alternatives = NOTHING,
    residual: Mapping[str, tuple[int, ...]],
    guarded: bool,
) -> tuple[Menu, ...]:
    """One menu per layer: every scheme that the options allow, dense and at every rank worth trying.

    Args:
        ranks: of `ranks_of`.
        losses: by layer name.
        unseen: layers that the data never reached, for which there are no ranges.
        alternatives: by other methods.
        residual: of `residuals_of`.
        guarded: whether data stand guard over the accuracy; if not, no candidate may lose more than a hundredth.

    Raises:
        UsageError: the source of costs has nothing on the precision that was asked for.
    """
    menus = []
    for layer in layers:
        own, why_dense = ranks[layer.name]
        offered = own if options.rank != "auto" and own else (None, *own)
        schemes = _schemes(files, layer, offered, options, seen=layer.name not in unseen)
        ways = [(scheme, rank) for scheme in schemes for rank in offered]
        ways += [(scheme, rank) for scheme in files.corrected_schemes() for rank in residual[layer.name]]
        fits = alternatives.fits.get(layer.name, ())
        others = tuple(each for fit in fits for each in _others(files, layer, fit, schemes, prices))
        if fits and not others and why_dense is None:
            why_dense = "by this method it would take more bytes than dense in 8 bits"
        if others and options.rank != "auto":
            ways = [way for way in ways if way[1] is not None]
        found = (*_candidates(layer, ways, losses[layer.name], prices), *others)
        if not found:
            source = prices.source_name(files.fmt)
            raise UsageError(
                f"--precision {options.precision}: the {source} has no figures for {' or '.join(map(str, schemes))}"
            )
        if not guarded and options.rank == "auto":
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
    files: ModelFiles, layer: Layer, offered: Sequence[int | None], options: BuildOptions, *, seen: bool
) -> list[Scheme]:
    """Those of the precision that was asked for; of the next wider one where the layer has none with a kernel."""
    schemes = [scheme for scheme in files.layer_schemes() if seen or not scheme.is_static]
    if options.precision == "auto":
        return schemes
    suited = [scheme for scheme in schemes if any(_suits(scheme, layer, rank) for rank in offered)]
    widths = [bits for bits in sorted(BITS.values()) if bits >= BITS[options.precision]]
    return next(own for bits in widths if (own := [scheme for scheme in suited if scheme.bits == bits]))


def _candidates(
    layer: Layer,
    ways: Sequence[tuple[Scheme, int | None]],
    losses: Mapping[tuple[Scheme, int | None], float],
    prices: Prices,
) -> Iterator[Candidate]:
    sides = layer.out_features, layer.in_features
    for scheme, rank in ways:
        price = prices.price(layer.name, rank, scheme) if _suits(scheme, layer, rank) else None
        if price is None:
            continue
        size = size_bytes(scheme, *sides, rank, bias=layer.bias is not None)
        ram = resident_bytes(scheme, size)
        yield Candidate(scheme, rank, losses[scheme, rank], size, ram, price.latency_s, price.source)


def _others(
    files: ModelFiles, layer: Layer, fit: Fit, schemes: Sequence[Scheme], prices: Prices
) -> Iterator[Candidate]:
    """What another method made of a layer: in code, or in each scheme that a pair or a matrix can take."""
    fmt, part, sides = files.fmt, fit.part, (layer.out_features, layer.in_features)
    bias = layer.bias is not None
    if not files.takes({layer.name: part}):
        return
    if part.structure.is_constexpr:
        dense = prices.price(layer.name, None, FP32[fmt])
        if dense is not None:
            size = coded_size_bytes(fmt, part, bias=bias)
            if size >= size_bytes(DENSE_INT8[fmt][0], *sides, None, bias=bias):
                return
            ram = size + resident_bytes(FP32[fmt], size_bytes(FP32[fmt], *sides, None, bias=bias))
            latency_s = dense.latency_s * time_over_dense(fmt, part)
            coded = CONSTEXPR[fmt]
            yield Candidate(coded, None, fit.losses[coded], size, ram, latency_s, dense.source, fit.alternative)
        return
    rank = part.rank if part.structure.ranks else None
    for scheme in schemes:
        price = prices.price(layer.name, rank, scheme) if scheme in fit.losses and _suits(scheme, layer, rank) else None
        if price is not None:
            size = size_bytes(scheme, *sides, rank, bias=bias)
            ram = resident_bytes(scheme, size)
            yield Candidate(scheme, rank, fit.losses[scheme], size, ram, price.latency_s, price.source, fit.alternative)


def _suits(scheme: Scheme, layer: Layer, rank: int | None) -> bool:
    """LiteRT has fast kernels for int4 only in fully connected layers of an even number of inputs."""
    if scheme != INT4_DYNAMIC:
        return True
    return layer.geometry.operator != "Conv" and layer.in_features % 2 == 0 and (rank or 0) % 2 == 0


def _careful(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Those that lose at most a hundredth of the output energy; there is always the one that loses least."""
    least = min(candidates, key=lambda one: one.loss)
    return tuple(one for one in candidates if one.loss <= UNGUARDED_LOST_SHARE) or (least,)
