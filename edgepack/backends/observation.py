"""A model whose layers can be watched at work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from edgepack.data import Samples
from edgepack.model.types import Array, TensorSpec


class Watched(Protocol):
    """A model to be watched in another process: plain data."""

    def rows(self, samples: Samples, *, threads: int) -> Iterator[Mapping[str, Array]]:
        """As `Observation.rows`, in a session of its own."""


def joined(key: tuple[str, ...]) -> str:
    """One string for the key of an observed value, for use where a dict wants one."""
    return "\n".join(key)


class Observation(Protocol):
    """A model whose layers can be watched at work."""

    @property
    def keys(self) -> Mapping[str, tuple[str, ...]]:
        """View name → key of the vectors that it multiplies; views that multiply the same vectors share a key.

        A view whose layer's input cannot be observed is absent.
        """

    @property
    def features(self) -> Mapping[str, int]:
        """{joined key: width of the vectors}."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Of the model."""

    def row_counts(self, feed: Mapping[str, Array]) -> dict[str, int]:
        """{joined key: vectors that one run multiplies}."""

    def rows(self, samples: Samples) -> Iterator[Mapping[str, Array]]:
        """{joined key: vectors (N, features)} per run of the model; see `Rows` for how many of them."""

    def packed(self) -> Watched | None:
        """The same for another process; None if the model does not fit in one message."""
