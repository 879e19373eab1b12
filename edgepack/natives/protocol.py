"""The role of what a model is the truth in: there its layers are watched, and it answers with others in their place.

A native need not be a file format that is written. Models are taken as `Model.content` holds them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from edgepack.backends.backend import Session
from edgepack.backends.observation import Observation
from edgepack.backends.tables import EmbeddingTable
from edgepack.data import Samples
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array


class Native(Protocol):
    """A model in memory, dense and in float32."""

    def session(self, model: Any, parts: Mapping[str, Replacement], *, threads: int, exact: bool = True) -> Session:
        """The model with parts in the place of the layers that they name, in float arithmetic, ready to run.

        Args:
            parts: by layer name, in any structure; what is computed from constants is taken as what it comes to. None
                for the model as it is.
            threads: of an inference.
            exact: integer arithmetic that the model brought along as on the targets: see `Backend.load`.

        Raises:
            ModelError: the runtime cannot load it.
        """

    def observe(self, model: Any, views: Iterable[str], *, threads: int) -> Observation:
        """A model whose layers of these views can be watched."""

    def depths(self, model: Any, layers: Collection[str]) -> Mapping[str, int]:
        """How many of these layers lie before each, one behind the other; those that cannot be told are absent."""

    def with_factors(self, model: Any, factors: Mapping[str, Replacement]) -> tuple[Any, Mapping[str, tuple[str, ...]]]:
        """The model with factors in place, and what each layer is called in it: its own name, or those of its parts."""

    def tables(self, model: Any, samples: Samples | None) -> tuple[EmbeddingTable, ...]:
        """Embedding tables that no layer multiplies by, as samples look them up; none where nobody looks for them."""

    def weight_bytes(self, model: Any) -> int:
        """Bytes of all weights of a model."""

    def macs(self, model: Any, feed: Mapping[str, Array]) -> int | None:
        """Multiplications of one inference in matrix products, convolutions and recurrent steps, those of layers and
        all others; None where they cannot be told without running the model step by step.

        Args:
            feed: the inputs of the inference, by name.
        """
