"""What methods other than the build's own decomposition make of each layer: fitted once, and kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgepack.cache import Cache, digest
from edgepack.coded import is_decoded, stored_numbers
from edgepack.executor import Workers, map_tasks
from edgepack.factorize import compress, method_version
from edgepack.factorize.whitened import shrunk_covariance
from edgepack.pipeline.covariances import Covariances
from edgepack.pipeline.parts import packed_part, unpacked_part
from edgepack.pipeline.rounding import is_per_channel_int8
from edgepack.plan.exact_loss import exact_loss, pair_losses
from edgepack.progress import Progress
from edgepack.types import CODED, Alternative, Array, Coded, Dense, Factors, LinearLayer, Replacement
from edgepack.versions import FITTERS, tool_versions

SHARES = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Of each layer's weights, where one method was asked for and no rank."""

AUTO_SHARES = (0.25, 0.125, 0.0625)
"""Where methods compete: with more bytes dense matrices in 4 bits lose less, with fewer most methods lose all."""

VERSION = 1
_Task = tuple[LinearLayer, Array | None, str, float, int, tuple[str, ...], int]


@dataclass(frozen=True)
class Fit:
    """One method at one share of one layer.

    Attributes:
        losses: by form: `CODED`, the forms of a pair, or those of a dense matrix in 8 bits.
    """

    alternative: Alternative
    part: Replacement
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Alternatives:
    """Fits by layer name, and why there are none, where that is so."""

    fits: Mapping[str, tuple[Fit, ...]] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def only_save_bytes(self) -> str | None:
        """What to say where none of them makes an inference faster; None where one does."""
        parts = [fit.part for fits in self.fits.values() for fit in fits]
        if not parts or not all(map(only_saves_bytes, parts)):
            return None
        if all(isinstance(part, Dense) for part in parts):
            return "only saves bytes on the wire: files, memory and time are those of dense layers"
        return "only saves bytes of the file: memory and time are those of dense float32 layers"

    def part(self, layer: str, alternative: Alternative) -> Replacement:
        """What is written."""
        return next(fit.part for fit in self.fits[layer] if fit.alternative == alternative)


NOTHING = Alternatives()


def shares_of(layer: LinearLayer, rank: str | int | float, *, competing: bool) -> tuple[float, ...]:
    """The shares of a layer's weights to fit at: as asked for, or a few."""
    if isinstance(rank, str):
        return AUTO_SHARES if competing else SHARES
    sides = layer.out_features + layer.in_features
    share = rank if isinstance(rank, float) else rank * sides / (layer.out_features * layer.in_features)
    return (share,) if share < 1 else ()


def fit_alternatives(
    layers: Sequence[LinearLayer],
    covariances: Covariances,
    gradients: Mapping[str, Array],
    methods: Sequence[str],
    rank: str | int | float,
    *,
    forms: tuple[str, ...],
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
        forms: of pairs and matrices that losses are wanted of.
        largest: largest weight code of per-channel int8 in ONNX.
        key: digest of the model, the data, and how layers are weighed.

    Raises:
        UsageError: a method is not installed, or gives what is no replacement.
        DeviceError: the workers failed.
    """
    tasks: list[_Task] = []
    keys: list[str] = []
    found: dict[str, dict[str, Array]] = {}
    order: dict[str, list[str]] = {layer.name: [] for layer in layers}
    for layer in layers:
        for name in methods:
            for share in shares_of(layer, rank, competing=len(methods) > 1):
                parts = (method_version(name), key, layer.name, share, seed, forms, largest)
                entry = digest("fit", VERSION, tool_versions(FITTERS), *parts)
                order[layer.name].append(entry)
                known = cache.known_arrays("fits", entry)
                if known is not None:
                    found[entry] = known
                    continue
                keys.append(entry)
                moments = covariances.of(layer.name)
                seen = moments if moments is not None and moments.variance.sum() > 0 else None
                gradient = gradients.get(layer.name)
                tasks.append((replace(layer, moments=seen), gradient, name, share, seed, forms, largest))
    costs = [20.0 * task[0].weight.size * min(task[0].weight.shape) for task in tasks]
    for done, (index, arrays) in enumerate(map_tasks(workers, _fit, tasks, costs), start=1):
        progress("fit methods", done, len(tasks))
        found[keys[index]] = cache.keep_arrays("fits", keys[index], arrays)
    return _sorted({name: [found[entry] for entry in entries] for name, entries in order.items()})


def _sorted(found: Mapping[str, Sequence[Mapping[str, Array]]]) -> Alternatives:
    fits: dict[str, tuple[Fit, ...]] = {}
    why: dict[str, str] = {}
    for name, records in found.items():
        read = [_loaded(record) for record in records]
        fits[name] = tuple(one for one in read if isinstance(one, Fit))
        reasons = [one for one in read if isinstance(one, str)]
        if not fits[name]:
            why[name] = reasons[0] if reasons else "a pair of that rank has more weights than the layer"
    return Alternatives(fits, why)


def _fit(
    layer: LinearLayer,
    gradient: Array | None,
    method: str,
    share: float,
    seed: int,
    forms: tuple[str, ...],
    largest: int,
) -> dict[str, Array]:
    """A task: may run on another machine."""
    part = compress(method, layer, share, seed=seed, gradient=gradient)
    if isinstance(part, str):
        return {"said": _text({"reason": f"{method}: {part}"})}
    covariance = None if layer.moments is None else shrunk_covariance(layer.moments)
    if isinstance(part, Factors):
        losses = pair_losses(layer, part, covariance, gradient, forms, largest=largest)
        parameters = part.A.size + part.B.size
    else:
        lost = exact_loss(layer, part.weight, covariance, gradient)
        own = (CODED,) if isinstance(part, Coded) else tuple(form for form in forms if is_per_channel_int8(form))
        losses = dict.fromkeys(own, lost)
        parameters = stored_numbers(part) if isinstance(part, Coded) else part.weight.size
    said = {"method": method, "share": share, "parameters": parameters, "losses": losses}
    return {"said": _text(said), **packed_part(part)}


def _loaded(arrays: Mapping[str, Array]) -> Fit | str:
    said = json.loads(arrays["said"].tobytes())
    if "reason" in said:
        return str(said["reason"])
    alternative = Alternative(said["method"], said["share"], said["parameters"])
    return Fit(alternative, unpacked_part(arrays), said["losses"])


def _text(value: object) -> Array:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def only_saves_bytes(part: Replacement) -> bool:
    """Whether time and memory are those of a dense layer: only bytes are saved, in the file or on the wire."""
    return isinstance(part, Dense) or (isinstance(part, Coded) and is_decoded(part))
