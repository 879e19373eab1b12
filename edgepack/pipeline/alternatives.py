"""What methods other than the build's own decomposition make of each layer: fitted once, and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from edgepack.backends.schemes import CONSTEXPR, scheme_of_key
from edgepack.coded import is_decoded, stored_numbers
from edgepack.errors import OutputError
from edgepack.executor import Workers, map_tasks
from edgepack.factorize import compress, method_version
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import Scheme
from edgepack.pipeline.covariances import Covariances
from edgepack.pipeline.parts import packed_part, unpacked_part
from edgepack.plan.exact_loss import exact_loss, pair_losses
from edgepack.types import Alternative, Array
from edgepack.workspace import FITTERS, Cache, Progress, digest, tool_versions

SHARES = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Of each layer's weights, where one method was asked for and no rank."""

AUTO_SHARES = (0.25, 0.125, 0.0625)
"""Where methods compete: with more bytes dense matrices in 4 bits lose less, with fewer most methods lose all."""

VERSION = 4
Saves = Literal["all", "file", "wire"]
_Task = tuple[View, Array | None, str, float, int, tuple[Scheme, ...], int]


@dataclass(frozen=True)
class Fit:
    """One method at one share of one layer. What it made is read from the cache whenever it is asked for.

    Attributes:
        losses: by scheme: that of layers in code, those of a pair, or those of a dense matrix in 8 bits.
        saves: what it saves, beside bytes on the wire: "all" is bytes of the file, memory and time.
    """

    alternative: Alternative
    losses: Mapping[Scheme, float]
    saves: Saves
    _read: Callable[[], Replacement]

    @property
    def part(self) -> Replacement:
        """What is written."""
        return self._read()


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
    layers: Sequence[View],
    covariances: Covariances,
    gradients: Mapping[str, Array],
    methods: Sequence[str],
    rank: str | int | float,
    *,
    schemes: tuple[Scheme, ...],
    seed: int,
    largest: int,
    key: str,
    cache: Cache,
    workers: Workers,
    progress: Progress,
) -> Alternatives:
    """Fits of every method to every layer; what is in the cache already is not fitted again.

    Args:
        gradients: G by layer name; empty where losses are shares of output energy.
        methods: names of methods that are functions.
        rank: as in the options of a build.
        schemes: of pairs and matrices that losses are wanted of.
        largest: largest weight code of per-channel int8 in ONNX.
        key: digest of the model, the data, and how layers are weighed.

    Raises:
        UsageError: a method is not installed, or gives what is no replacement.
        DeviceError: the workers failed.
    """
    if not methods:
        return NOTHING
    fitters, own = tool_versions(FITTERS), {name: method_version(name) for name in methods}
    kept = Cache(cache.root)  # what was fitted in this build is good even where nothing older is to be read
    fits: dict[str, tuple[Fit, ...]] = {}
    why: dict[str, str] = {}
    for number, layer in enumerate(layers):
        progress("fit methods", number, len(layers))
        shares = shares_of(layer, rank, competing=len(methods) > 1)
        every = [(name, share) for name in methods for share in shares]
        parts = (fitters, key, layer.name, seed, [scheme.key for scheme in schemes], largest)
        wanted = {digest("fit", VERSION, *parts, own[name], share): (name, share) for name, share in every}
        _fill(layer, wanted, covariances, gradients.get(layer.name), schemes, seed, largest, cache, workers)
        read = [_known(kept, entry) for entry in wanted]
        fits[layer.name] = tuple(one for one in read if isinstance(one, Fit))
        reasons = [one for one in read if isinstance(one, str)]
        if not fits[layer.name]:
            why[layer.name] = reasons[0] if reasons else "a pair of that rank has more weights than the layer"
    return Alternatives(fits, why)


def _fill(
    layer: View,
    wanted: Mapping[str, tuple[str, float]],
    covariances: Covariances,
    gradient: Array | None,
    schemes: tuple[Scheme, ...],
    seed: int,
    largest: int,
    cache: Cache,
    workers: Workers,
) -> None:
    """Fits what the cache lacks. One layer at a time: its covariance may be as large as its weight."""
    missing = [entry for entry in wanted if cache.known("fits", entry) is None]
    if not missing:
        return
    moments = covariances.of(layer.name)
    seen = replace(layer, moments=moments if moments is not None and moments.variance.sum() > 0 else None)
    tasks: list[_Task] = [(seen, gradient, *wanted[entry], seed, schemes, largest) for entry in missing]
    costs = [20.0 * layer.weight.size * min(layer.weight.shape)] * len(tasks)
    for index, (said, arrays) in map_tasks(workers, _fit, tasks, costs):
        cache.keep_arrays("fits", missing[index], arrays)
        cache.keep("fits", missing[index], said)  # last: it says that the arrays are there


def _known(cache: Cache, entry: str) -> Fit | str:
    said = cache.known("fits", entry)
    if said is None:
        raise _lost(cache, entry)
    if "reason" in said:
        return str(said["reason"])
    alternative = Alternative(said["method"], said["share"], said["parameters"])
    losses = {scheme_of_key(name): loss for name, loss in said["losses"].items()}
    return Fit(alternative, losses, said["saves"], partial(_part, cache, entry))


def _part(cache: Cache, entry: str) -> Replacement:
    arrays = cache.known_arrays("fits", entry)
    if arrays is None:
        raise _lost(cache, entry)
    return unpacked_part(arrays)


def _lost(cache: Cache, entry: str) -> OutputError:
    return OutputError(f"the cache lost what was fitted: {cache.path('fits', entry, '.npz')}", hint="build again")


def _fit(
    layer: View,
    gradient: Array | None,
    method: str,
    share: float,
    seed: int,
    schemes: tuple[Scheme, ...],
    largest: int,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """What is said of a fit, and its arrays. A task: may run on another machine."""
    part = compress(method, layer, share, seed=seed, gradient=gradient)
    if isinstance(part, str):
        return {"reason": f"{method}: {part}"}, {}
    covariance = None if layer.moments is None else shrunk_covariance(layer.moments)
    if part.structure.ranks:
        losses = pair_losses(layer, part, covariance, gradient, schemes, largest=largest)
        parameters = part.A.size + part.B.size
    else:
        lost = exact_loss(layer, part.weight, covariance, gradient)
        int8 = [scheme for scheme in schemes if scheme.per_channel_int8]
        own = [CONSTEXPR[scheme.backend] for scheme in schemes] if part.structure.is_constexpr else int8
        losses = dict.fromkeys(own, lost)
        parameters = stored_numbers(part) if part.structure.is_constexpr else part.weight.size
    named = {scheme.key: loss for scheme, loss in losses.items()}
    said = {"method": method, "share": share, "parameters": parameters, "losses": named, "saves": saves(part)}
    return said, packed_part(part)


def saves(part: Replacement) -> Saves:
    """What a layer saves, beside bytes on the wire; time and memory of a decoded one are those of a dense one."""
    if part.structure.is_dense:
        return "wire"
    return "file" if part.structure.is_constexpr and is_decoded(part) else "all"
