"""What methods other than the build's own decomposition make of each layer: fitted once, and kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from edgepack.backends.schemes import CONSTEXPR, scheme_of_key
from edgepack.errors import OutputError
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.methods.registry import compress, method_version
from edgepack.model.constexpr import is_decoded, stored_numbers
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.model.serialize import packed_part, unpacked_part
from edgepack.model.types import Alternative, Array
from edgepack.pipeline.analysis import Analysis
from edgepack.plan.loss import exact_loss, pair_losses
from edgepack.sealed import unsealed
from edgepack.workspace import DAMAGED, FITTERS, Keyed, Step, Store, Workspace, load_arrays

SHARES = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Of each layer's weights, where one method was asked for and no rank."""

AUTO_SHARES = (0.25, 0.125, 0.0625)
"""Where methods compete: with more bytes dense matrices in 4 bits lose less, with fewer most methods lose all."""

Saves = Literal["all", "file", "wire"]
_SAID = "said"


@dataclass(frozen=True)
class Fit:
    """One method at one share of one layer. What it made is read from the cache whenever it is asked for.

    Attributes:
        losses: by scheme: that of layers in code, those of a pair, or those of a dense matrix in 8 bits.
        saves: what it saves, beside bytes on the wire: "all" is bytes of the file, memory and time.
        path: of the cache entry that holds what it made.
    """

    alternative: Alternative
    losses: Mapping[Scheme, float]
    saves: Saves
    path: Path

    @property
    def part(self) -> Replacement:
        """What is written.

        Raises:
            OutputError: the cache lost it.
        """
        try:
            return unpacked_part(
                {name: array for name, array in load_arrays(BytesIO(unsealed(self.path))).items() if name != _SAID}
            )
        except DAMAGED as err:
            raise _lost(self.path) from err


@dataclass(frozen=True)
class Alternatives:
    """Fits by layer name, and why there are none, where that is so."""

    fits: Mapping[str, tuple[Fit, ...]] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def only_save_bytes(self) -> str | None:
        """What to say where none of them makes an inference faster; None where one does."""
        saved = {fit.saves for fits in self.fits.values() for fit in fits}
        if not saved or "all" in saved:
            return None
        if saved == {"wire"}:
            return "only saves bytes on the wire: files, memory and time are those of dense layers"
        return "only saves bytes of the file: memory and time are those of dense float32 layers"

    def part(self, layer: str, alternative: Alternative) -> Replacement:
        """What is written."""
        return next(fit.part for fit in self.fits[layer] if fit.alternative == alternative)


NOTHING = Alternatives()


def shares_of(layer: View, rank: str | int | float, *, competing: bool) -> tuple[float, ...]:
    """The shares of a layer's weights to fit at: as asked for, or a few."""
    if isinstance(rank, str):
        return AUTO_SHARES if competing else SHARES
    sides = layer.out_features + layer.in_features
    share = rank if isinstance(rank, float) else rank * sides / (layer.out_features * layer.in_features)
    return (share,) if share < 1 else ()


def fit_alternatives(
    analysis: Analysis,
    methods: Sequence[str],
    rank: str | int | float,
    schemes: tuple[Scheme, ...],
    workspace: Workspace,
) -> Alternatives:
    """Fits of every method to every layer that is one matrix; what is in the cache already is not fitted again.

    Args:
        methods: names of methods that are functions.
        rank: as in the options of a build.
        schemes: of pairs and matrices that losses are wanted of.

    Raises:
        UsageError: a method is not installed, or gives what is no replacement.
        DeviceError: the workers failed.
    """
    if not methods:
        return NOTHING
    fits: dict[str, tuple[Fit, ...]] = {}
    why: dict[str, str] = {}
    names = {layer.name for layer in analysis.layers}
    whole = [view for view in analysis.views if view.name in names]
    for number, layer in enumerate(whole):
        workspace.progress("fit methods", number, len(whole))
        shares = shares_of(layer, rank, competing=len(methods) > 1)
        every = [(name, share) for name in methods for share in shares]
        read = _fitted(analysis, layer, every, schemes, workspace)
        fits[layer.name] = tuple(one for one in read if isinstance(one, Fit))
        reasons = [one for one in read if isinstance(one, str)]
        if not fits[layer.name]:
            why[layer.name] = reasons[0] if reasons else "factors of that rank have more weights than the layer"
    return Alternatives(fits, why)


def _fitted(
    analysis: Analysis,
    layer: View,
    every: Sequence[tuple[str, float]],
    schemes: tuple[Scheme, ...],
    workspace: Workspace,
) -> list[Fit | str]:
    """Fits of one layer, or why there is none: its covariance may be as large as its weight, so one layer at a time."""
    seed, qmax = workspace.seed, analysis.qmax

    @cache
    def seen() -> View:
        moments = analysis.covariances.of(layer.name)
        return replace(layer, moments=moments if moments is not None and moments.variance.sum() > 0 else None)

    def entry(method: str, share: float) -> Keyed[_Asked]:
        def make() -> _Asked:
            curvature = analysis.sensitivity.curvatures.get(layer.name)
            gradient = None if curvature is None else curvature.moment
            return _Asked(seen(), gradient, method, share, seed, schemes, qmax)

        settings = [seed, schemes, qmax, analysis.sensitivity.by]
        return Keyed([analysis.key, layer.name, method, method_version(method), share, settings], make)

    entries = [entry(method, share) for method, share in every]
    workspace.map(FIT, entries)
    return [_read(workspace, one) for one in entries]


def _read(workspace: Workspace, entry: Keyed[_Asked]) -> Fit | str:
    """What a fit came to, without its arrays."""
    path = workspace.cache.path(FIT.name, workspace.key(FIT, entry), FITS.suffix)
    made = workspace.known(FIT, entry)
    if made is None:
        raise _lost(path)
    said = made.said
    if "reason" in said:
        return str(said["reason"])
    alternative = Alternative(said["method"], said["share"], said["parameters"])
    losses = {scheme_of_key(name): loss for name, loss in said["losses"].items()}
    return Fit(alternative, losses, said["saves"], path)


def _lost(path: Path) -> OutputError:
    return OutputError(f"the cache lost what was fitted: {path}", hint="build again")


@dataclass(frozen=True)
class _Asked:
    """A method to be fitted to a layer.

    Attributes:
        layer: with its moments, where its input was seen.
        gradient: G; None where losses are shares of output energy.
        schemes: of pairs and matrices that losses are wanted of.
        qmax: largest weight code of per-channel int8 in ONNX.
    """

    layer: View
    gradient: Array | None
    method: str
    share: float
    seed: int
    schemes: tuple[Scheme, ...]
    qmax: int


@dataclass(frozen=True)
class _Made:
    """What is said of a fit, as plain data, and its arrays; from the cache only what is said, for there are many."""

    said: Mapping[str, Any]
    arrays: Mapping[str, Array]


def _fit(asked: _Asked) -> _Made:
    layer, gradient, method, schemes = asked.layer, asked.gradient, asked.method, asked.schemes
    part = compress(method, layer, asked.share, seed=asked.seed, gradient=gradient)
    if isinstance(part, str):
        return _Made({"reason": f"{method}: {part}"}, {})
    covariance = None if layer.moments is None else shrunk_covariance(layer.moments)
    if part.structure.ranks:
        losses = pair_losses(layer, part, covariance, gradient, schemes, qmax=asked.qmax)
        parameters = sum(factor.size for factor in part.tensors.values())
    else:
        lost = exact_loss(layer, part.weight, covariance, gradient)
        int8 = [scheme for scheme in schemes if scheme.per_channel_int8]
        own = [CONSTEXPR[scheme.backend] for scheme in schemes] if part.structure.is_constexpr else int8
        losses = dict.fromkeys(own, lost)
        parameters = stored_numbers(part) if part.structure.is_constexpr else part.weight.size
    named = {scheme.key: loss for scheme, loss in losses.items()}
    said = {"method": method, "share": asked.share, "parameters": parameters, "losses": named, "saves": saves(part)}
    return _Made(said, packed_part(part))


def _write(made: _Made, path: Path) -> None:
    text = np.frombuffer(json.dumps(made.said).encode(), np.uint8)
    with path.open("wb") as stream:
        np.savez(stream, **{_SAID: text, **made.arrays})  # type: ignore[arg-type]


def _said(stream: IO[bytes]) -> _Made:
    with np.load(stream, allow_pickle=False) as archive:
        return _Made(json.loads(archive[_SAID].tobytes()), {})


def _cost(asked: _Asked) -> float:
    return 20.0 * asked.layer.weight.size * float(min(asked.layer.weight.shape))


FITS: Store[_Made] = Store(".npz", _write, _said)
FIT: Step[_Asked, _Made] = Step("fits", 5, _fit, FITS, cost=_cost, tools=FITTERS)


def saves(part: Replacement) -> Saves:
    """What a layer saves, beside bytes on the wire; time and memory of a decoded one are those of a dense one."""
    if part.structure.is_dense:
        return "wire"
    return "file" if part.structure.is_constexpr and is_decoded(part) else "all"
