"""Algorithms that make a layer smaller, chosen by name: built in, registered by a program, or entry points of others.

A factorizer turns a layer into two thin ones, at any rank of one decomposition. Every other method is a function of a
layer and of a share of its weights (`edgepack.methods.registry`).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edgepack.errors import UsageError
from edgepack.factorize import fisher, svd, two_sided, whitened
from edgepack.factorize.leastsquares import with_corrected_bias
from edgepack.methods import (
    cp,
    dct,
    deepthin,
    dictionary,
    hashednet,
    input_projection,
    jpeg,
    kmeans,
    projection,
    pruning,
    registered,
    simhash,
)
from edgepack.methods.budget import in_8_bits, pair_rank
from edgepack.model.kinds.stages import composed
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array, Spectrum

ENTRY_POINT_GROUP = "edgepack.factorizers"


class Factorizer(Protocol):
    """A module or object with these two functions and one fact is a factorizer."""

    needs_moments: bool
    """Whether layers must carry `moments`."""

    def spectrum(self, layer: View) -> Spectrum:
        """Decompose once: the error curve over all ranks."""

    def factors(self, layer: View, spectrum: Spectrum, rank: int) -> Replacement:
        """Factors at one rank, 1 ≤ rank ≤ len(spectrum.energies), cheap after `spectrum`."""


@runtime_checkable
class GradientFactorizer(Protocol):
    """A factorizer that weighs outputs by their gradients: it has one fact more, and its `spectrum` one argument."""

    needs_gradients: bool
    """Whether `spectrum` must be given G."""

    def spectrum(self, layer: View, gradient: Array | None = None) -> Spectrum:
        """Decompose once; `gradient` is G, (out, out) float64, the second moment of the loss gradient at the output."""


FACTORIZERS: Mapping[str, Factorizer] = {"svd": svd, "whitened": whitened, "two-sided": two_sided, "fisher": fisher}
DEFAULT = "whitened"


AUTO_METHOD = "auto"


def factorizer(name: str) -> Factorizer:
    """The factorizer called `name`: built in, registered, or from the entry-point group `edgepack.factorizers`.

    Raises:
        UsageError: there is none of that name, or it is another kind of method.
    """
    if name in FACTORIZERS:
        return FACTORIZERS[name]
    loaded = None if name in METHODS or name == AUTO_METHOD else _loaded(name)
    if loaded is None or not hasattr(loaded, "spectrum"):
        raise UsageError(f"{name} has no error curve over ranks; there are {', '.join(FACTORIZERS)}")
    found: Factorizer = loaded
    return found


def is_factorizer(name: str) -> bool:
    """Whether the method of that name gives pairs at every rank of one decomposition.

    Raises:
        UsageError: there is no method of that name.
    """
    return name in FACTORIZERS or (name not in METHODS and hasattr(_loaded(name), "spectrum"))


def method(name: str) -> Method:
    """Any method by its name, as a function of a layer and a share of its weights.

    Raises:
        UsageError: there is none of that name.
    """
    if name in METHODS:
        return METHODS[name]
    if is_factorizer(name):
        return _by_rank(name)
    found: Method = _loaded(name)
    return found


def compress(
    name: str, layer: View, share: float, *, seed: int = 0, gradient: Array | None = None
) -> Replacement | str:
    """What the method called `name` makes of a layer, as it is written: the numbers of layers in code in 8 bits.

    Raises:
        UsageError: there is none of that name, it is not installed, or it gives what does not fit the layer.
    """
    part = method(name)(layer, share, seed=seed, gradient=gradient)
    if isinstance(part, str):
        return part
    _check(name, layer, part)
    return with_corrected_bias(layer, in_8_bits(part)) if part.structure.is_constexpr else part


def _check(name: str, layer: View, part: Replacement) -> None:
    sides = layer.weight.shape
    if not part.structure.of_a_matrix:
        try:
            arrays, wanted = [composed(part)], [sides]
        except (KeyError, ValueError) as err:
            raise UsageError(f"--method {name}: {layer.name}: found no {part.structure}: {err}") from err
    elif part.structure.ranks:
        rank = max(part.rank, 1)
        arrays, wanted = [part.A, part.B], [(sides[0], rank), (rank, sides[1])]
    else:
        arrays, wanted = [part.weight], [sides]
    shapes = [array.shape for array in arrays]
    if shapes != wanted:
        raise UsageError(f"--method {name}: {layer.name}: found {shapes}, expected {wanted}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise UsageError(f"--method {name}: {layer.name}: found NaN or infinity")


def method_version(name: str) -> str:
    """Tells results of a method apart from those of its other versions."""
    return " of ".join((name, *outside_version(name)))


def outside_version(name: str) -> tuple[str, ...]:
    """What a method is beside its name: the digest of the file that a registered one is in, or the version of a
    distribution; nothing of one that is built in."""
    if name in FACTORIZERS or name in METHODS:
        return ()
    if name in registered.names():
        return (registered.source_digest(name),)
    distribution = _plugins()[name].dist
    return () if distribution is None else (f"{distribution.name} {distribution.version}",)


def _by_rank(name: str) -> Method:
    def by_rank(layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
        rank = pair_rank(share, *layer.weight.shape)
        if rank < 1:
            return f"{share:.1%} of its weights are less than rank 1"
        return factorizer(name).factors(layer, spectrum_of(name, layer, gradient), rank)

    return by_rank


def _plugins() -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _loaded(name: str) -> Any:
    if name in registered.names():
        return registered.load(name)
    plugins = _plugins()
    if name not in plugins:
        known = [*FACTORIZERS, AUTO_METHOD, *METHODS, *registered.names(), *plugins]
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else None
        raise UsageError(f"unknown method {name!r}; there are {', '.join(known)}", hint=hint)
    return plugins[name].load()


def register_method(name: str, method: str | Method | Factorizer) -> None:
    """Have `method=name` mean a method of your own, in this program and in the processes that work for it.

    These import it again, so it must stand in a module that they can import: a file beside the script or an installed
    package, not a notebook or the script itself.

    Args:
        name: of the method. One that was registered before means the new method from now on.
        method: a function as `Method`, an object or a module as `Factorizer`, or where it is found:
            "my_module:my_function".

    Raises:
        UsageError: there is a method of that name, or other processes could not import this one.
    """
    if name in FACTORIZERS or name in METHODS or name == AUTO_METHOD or name in _plugins():
        raise UsageError(f"there is a method {name!r} already", hint="give another name")
    registered.register(name, method)


def needs_gradients(name: str) -> bool:
    """Whether the spectra of this factorizer are weighed by output gradients.

    Raises:
        UsageError: there is none of that name.
    """
    chosen = factorizer(name)
    return isinstance(chosen, GradientFactorizer) and chosen.needs_gradients


def usable(name: str, gradient: Array | None) -> str:
    """The factorizer, or the default one where it weighs by a gradient that is not known."""
    return DEFAULT if gradient is None and needs_gradients(name) else name


def spectrum_of(name: str, layer: View, gradient: Array | None = None) -> Spectrum:
    """The layer's spectrum by the factorizer called `name`, which is given `gradient` if it asks for it.

    Raises:
        UsageError: there is none of that name.
        DataError: the layer, or `gradient`, lacks what the factorizer needs.
    """
    chosen = factorizer(name)
    if isinstance(chosen, GradientFactorizer) and chosen.needs_gradients:
        return chosen.spectrum(layer, gradient)
    return chosen.spectrum(layer)


class Method(Protocol):
    """The one protocol of all methods: built in, or of another distribution.

    A `Factorizer` has the error curve over all ranks as well, from one decomposition.
    """

    def __call__(self, layer: View, share: float, *, seed: int = 0, gradient: Array | None = None) -> Replacement | str:
        """What is written for the layer, or why it stays dense.

        Args:
            layer: with its moments where data are known: then what the layer loses is E‖(W − M)(x − μ)‖², and its bias
                makes up for (W − M) μ.
            share: of the layer's weights, 0 … 1: with its numbers in 8 bits the result takes at most that many bytes
                per weight, biases apart.
            seed: of all that is drawn; the same arguments give the same bits.
            gradient: (out, out) float64, the second moment of the loss gradient at the output, where it is known.
        """


METHODS: Mapping[str, Method] = {
    "kmeans": kmeans.kmeans,
    "pruning": pruning.pruning,
    "rank-pruning": pruning.rank_pruning,
    "dictionary": dictionary.dictionary,
    "hashednet": hashednet.hashednet,
    "deepthin": deepthin.deepthin,
    "deepthin-conv": deepthin.deepthin_conv,
    "dct": dct.dct,
    "jpeg": jpeg.jpeg,
    "simhash": simhash.simhash,
    "random-projection": projection.random_projection,
    "output-projection": projection.output_projection,
    "input-projection": input_projection.input_projection,
    "cp": cp.cp,
}
"""By name."""

PATENTS: Mapping[str, str] = dict.fromkeys(("deepthin", "deepthin-conv"), "US 11429849")
"""Patents that cover a method."""

RISKS: Mapping[str, str] = {
    "cp": "its fit may settle far from the best one, and nothing trains it here; its terms cancel one another in part, "
    "so that what is between its convolutions has wide ranges, and integers lose more; and many runtimes are slow at "
    "convolutions of single channels, for the few multiplications of these: measure the pack on the device"
}
"""What speaks against a method that is only used where it is asked for by name."""

AUTO: tuple[str, ...] = ("kmeans", "pruning", "dictionary", "input-projection", "hashednet")
"""What `--method auto` offers beside the pairs of the default factorizer. No pair by another method is among them: at
equal rank, and so at equal bytes and time, centred whitening loses least (Eckart and Young). DeepThin's re-layout is
patented (US 11429849) and only ever used where it is asked for by name. JPEG makes no file smaller."""
