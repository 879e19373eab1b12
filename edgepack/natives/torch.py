"""Exported torch programs, as torch itself runs them."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.backends.backend import Session
from edgepack.backends.observation import joined
from edgepack.backends.tables import EmbeddingTable
from edgepack.data import Samples, feeds
from edgepack.model.kinds.kind import EVERY_POSITION
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array, TensorSpec
from edgepack.torchgraph import flat_module, load_program
from edgepack.torchgraph.flat import start_afresh
from edgepack.torchgraph.layers import depths, name_layers, weight_bytes, with_parts
from edgepack.torchgraph.observe import Observed, Tap, with_observed_inputs
from edgepack.torchgraph.recurrent import one_node_a_layer
from edgepack.torchgraph.run import input_specs, macs, run

if TYPE_CHECKING:
    from torch.fx import GraphModule

MESSAGE_BYTES = 1_900_000_000
"""Programs beyond this are not sent to other processes."""


@dataclass(frozen=True, eq=False)
class TorchModel:
    """A torch program in memory.

    Attributes:
        module: whose layers are named.
        layers: of it.
        path: the `.pt2` file that it was read from; None where it was changed since.
    """

    module: GraphModule
    layers: tuple[Layer, ...]
    path: Path | None


def read_torch(path: Path) -> TorchModel:
    """A `.pt2` file of fixed shapes, with its layers.

    Raises:
        ModelError: see `load_program`.
    """
    module = flat_module(load_program(path))
    start_afresh(module)
    one_node_a_layer(module)
    return TorchModel(module, name_layers(module), path)


class TorchNative:
    """See `Native`. A model in memory is a `TorchModel`."""

    def session(
        self, model: TorchModel, parts: Mapping[str, Replacement], *, threads: int, exact: bool = True
    ) -> Session:
        """See `Native.session`."""
        module = with_parts(model.module, model.layers, parts)[0] if parts else model.module

        def answer(feed: Mapping[str, Array]) -> list[Array]:
            return [value.numpy() for value in run(module, feed, threads=threads)]

        return Session(input_specs(module), answer)

    def observe(self, model: TorchModel, views: Iterable[str], *, threads: int) -> TorchObservation:
        """See `Native.observe`."""
        return TorchObservation(model, views, threads=threads)

    def depths(self, model: TorchModel, layers: Collection[str]) -> Mapping[str, int]:
        """See `Native.depths`."""
        return depths(model.module, layers)

    def with_factors(
        self, model: TorchModel, factors: Mapping[str, Replacement]
    ) -> tuple[TorchModel, Mapping[str, tuple[str, ...]]]:
        """See `Native.with_factors`."""
        made, names = with_parts(model.module, model.layers, factors)
        return TorchModel(made, (), None), names

    def tables(self, model: TorchModel, samples: Samples | None) -> tuple[EmbeddingTable, ...]:
        """See `Native.tables`."""
        return ()

    def weight_bytes(self, model: TorchModel) -> int:
        """See `Native.weight_bytes`."""
        return weight_bytes(model.module)

    def macs(self, model: TorchModel, feed: Mapping[str, Array]) -> int | None:
        """See `Native.macs`."""
        return macs(model.module, feed)


class TorchObservation:
    """See `Observation`."""

    def __init__(self, model: TorchModel, layers: Iterable[str], *, threads: int) -> None:
        self._model, self._threads = model, threads
        self._observed = with_observed_inputs(model.module, layers)
        taps = self._observed.taps
        self.keys: dict[str, tuple[str, ...]] = {name: _key(own) for name, own in taps.items()}
        self.features = {joined(self.keys[name]): self._observed.features[name] for name in taps}
        self.inputs = input_specs(model.module)

    def row_counts(self, feed: Mapping[str, Array]) -> dict[str, int]:
        """See `Observation.row_counts`."""
        found = self._observed.counts(feed, threads=self._threads)
        return {joined(_key(taps)): count for taps, count in found.items()}

    def rows(self, samples: Samples) -> Iterator[Mapping[str, Array]]:
        """See `Observation.rows`."""
        for feed, _ in feeds(samples, self.inputs):
            yield _rows(self._observed, feed, self._threads)

    def packed(self) -> TorchWatched | None:
        """See `Observation.packed`."""
        path = self._model.path
        if path is None or path.stat().st_size > MESSAGE_BYTES:
            return None
        return TorchWatched(path.read_bytes(), tuple(self.keys), self.inputs)


@dataclass(frozen=True)
class TorchWatched:
    """The content of a `.pt2` file, and the layers in it that are watched."""

    content: bytes
    layers: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]

    def rows(self, samples: Samples, *, threads: int) -> Iterator[Mapping[str, Array]]:
        """See `Watched.rows`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "program.pt2"
            path.write_bytes(self.content)
            observed = with_observed_inputs(read_torch(path).module, self.layers)
        for feed, _ in feeds(samples, self.inputs):
            yield _rows(observed, feed, threads)


def _rows(observed: Observed, feed: Mapping[str, Array], threads: int) -> dict[str, Array]:
    return {joined(_key(taps)): rows for taps, rows in observed.rows(feed, threads=threads).items()}


def _key(taps: tuple[Tap, ...]) -> tuple[str, ...]:
    return tuple(f"{tap.name}:{tap.axis}" + ("" if tap.way == EVERY_POSITION else f":{tap.way}") for tap in taps)
