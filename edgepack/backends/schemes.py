"""The schemes of every backend, and how to find one by its name."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack.backends.registry import FACTS
from edgepack.model.scheme import Format, Scheme

SCHEMES: Mapping[Format, tuple[Scheme, ...]] = {fmt: facts.schemes.layers for fmt, facts in FACTS.items()}
"""What a linear layer can have, dense or factored."""
TABULATED: Mapping[Format, tuple[Scheme, ...]] = {
    fmt: tuple(scheme for scheme in schemes if scheme.estimated_like is None) for fmt, schemes in SCHEMES.items()
}
"""Those of them that tables of costs are filled with; all others are estimated by one of these."""
CONVOLVED: Mapping[Format, tuple[Scheme, ...]] = {
    fmt: (facts.schemes.fp32, *facts.schemes.dense_int8) for fmt, facts in FACTS.items()
}
"""Those of convolutions: what a runtime has kernels of patches for."""
CORRECTED: Mapping[Format, tuple[Scheme, ...]] = {
    backend: tuple(scheme for scheme in schemes if scheme.correction) for backend, schemes in SCHEMES.items()
}
"""What a dense matrix with low-rank factors beside it can have."""
DENSE_INT8: Mapping[Format, tuple[Scheme, ...]] = {fmt: facts.schemes.dense_int8 for fmt, facts in FACTS.items()}
"""Of a dense model in 8 bits, in the stated order of preference; the first needs no data."""
FP32: Mapping[Format, Scheme] = {fmt: facts.schemes.fp32 for fmt, facts in FACTS.items()}
CONSTEXPR: Mapping[Format, Scheme] = {fmt: facts.schemes.constexpr for fmt, facts in FACTS.items()}


def layer_schemes(backend: Format) -> dict[str, Scheme]:
    """By name, all that a linear layer can have in a backend."""
    return {scheme.name: scheme for scheme in (*SCHEMES[backend], CONSTEXPR[backend])}


def scheme_of_key(key: str) -> Scheme:
    """The scheme that has this `key`.

    Raises:
        KeyError: there is none.
    """
    backend = next(backend for backend in SCHEMES if key.startswith(f"{backend}:"))
    return layer_schemes(backend)[key.partition(":")[2]]


def scheme_named(backend: Format, name: str) -> Scheme:
    """A layer's scheme by its name.

    Raises:
        KeyError: the backend has none of that name.
    """
    return layer_schemes(backend)[name]
