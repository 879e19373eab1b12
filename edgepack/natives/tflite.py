"""TFLite files, with LiteRT."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.backends.backend import Session
from edgepack.backends.observation import joined
from edgepack.backends.tables import EmbeddingTable
from edgepack.backends.tflite.macs import macs
from edgepack.backends.tflite.read import read_content, weight_bytes_of
from edgepack.backends.tflite.rewrite import thin
from edgepack.backends.tflite.runtime import interpreter, numbers, session
from edgepack.backends.tflite.sites import Site, Tap, TfliteModel, depths, edited
from edgepack.backends.tflite.tables import embedding_tables
from edgepack.data import Samples, feeds
from edgepack.errors import LayerError, ModelError
from edgepack.model.kinds.kind import EVERY_POSITION
from edgepack.model.kinds.matrix import effective_weight
from edgepack.model.replacement import Replacement, dense, of_structure
from edgepack.model.types import Array, TensorSpec

MESSAGE_BYTES = 1_900_000_000
"""Files beyond this are not sent to other processes."""


class TfliteNative:
    """See `Native`. A model in memory is a `TfliteModel`."""

    def session(
        self, model: TfliteModel, parts: Mapping[str, Replacement], *, threads: int, exact: bool = True
    ) -> Session:
        """See `Native.session`. LiteRT's integer sums never saturate."""
        known = {layer.name: layer for layer in model.layers}
        plain = {
            name: part if part.structure.in_place else dense(effective_weight(part), part.bias)
            for name, part in parts.items()
        }
        with tempfile.TemporaryDirectory() as folder:
            path = _written(model, Path(folder))
            if parts:
                thin(path, path, [known[name] for name in plain], plain, model.folds)
            return session(interpreter(path, threads))

    def observe(self, model: TfliteModel, views: Iterable[str], *, threads: int) -> TfliteObservation:
        """See `Native.observe`."""
        return TfliteObservation(model, views, threads=threads)

    def depths(self, model: TfliteModel, layers: Collection[str]) -> Mapping[str, int]:
        """See `Native.depths`."""
        return depths(model, layers)

    def with_factors(
        self, model: TfliteModel, factors: Mapping[str, Replacement]
    ) -> tuple[TfliteModel, Mapping[str, tuple[str, ...]]]:
        """See `Native.with_factors`.

        Raises:
            LayerError: factors beside a matrix, for which TFLite files have no place.
        """
        if beside := of_structure(factors, "low-rank-correction"):
            raise LayerError(dict.fromkeys(beside, "there are no low-rank factors beside a matrix in TFLite files"))
        with tempfile.TemporaryDirectory() as folder:
            path = _written(model, Path(folder))
            written = thin(path, path, model.layers, factors, model.folds)
            content = path.read_bytes()
        outputs = {name: tuple(site.op.output for site in own) for name, own in model.sites.items()} | written
        kept = {output: name for name, own in outputs.items() if name not in factors for output in own}
        made = edited(content, kept)
        by_output = {site.op.output: name for name, own in made.sites.items() for site in own}
        names = {name: tuple(dict.fromkeys(by_output[each] for each in own)) for name, own in outputs.items()}
        return made, names

    def tables(self, model: TfliteModel, samples: Samples | None) -> tuple[EmbeddingTable, ...]:
        """See `Native.tables`."""
        with tempfile.TemporaryDirectory() as folder:
            return embedding_tables(_written(model, Path(folder)), samples)

    def weight_bytes(self, model: TfliteModel) -> int:
        """See `Native.weight_bytes`. Integer weights of layers count as what they stand for."""
        narrow = {name: own[0].op.weight.itemsize for name, own in model.sites.items()}
        wider = sum(layer.weight.size * (4 - narrow[layer.name]) for layer in model.layers)
        return read_content(model.content, "the model", weight_bytes_of) + wider

    def macs(self, model: TfliteModel, feed: Mapping[str, Array]) -> int | None:
        """See `Native.macs`."""
        return read_content(model.content, "the model", macs)


def _written(model: TfliteModel, folder: Path) -> Path:
    path = folder / "model.tflite"
    path.write_bytes(model.content)
    return path


class TfliteObservation:
    """See `Observation`."""

    def __init__(self, model: TfliteModel, views: Iterable[str], *, threads: int) -> None:
        self._content = model.content
        self._taps: dict[str, tuple[Tap, ...]] = {}
        self.features: dict[str, int] = {}
        self.keys: dict[str, tuple[str, ...]] = {}
        for name in views:
            if name not in model.sites:
                raise ModelError(f"the model has no linear layer {name!r}")
            sites = model.sites[name]
            taps = tuple(dict.fromkeys(site.tap for site in sites))
            self.keys[name] = _key(taps)
            self._taps[joined(self.keys[name])] = taps
            self.features[joined(self.keys[name])] = _features(sites[0])
        self._watcher = _Watcher(self._content, threads)
        self.inputs = self._watcher.inputs

    def row_counts(self, feed: Mapping[str, Array]) -> dict[str, int]:
        """See `Observation.row_counts`."""
        values = self._watcher.run(feed, self._taps)
        return {
            key: sum(tap.way.count(tap.features_last(values[tap.tensor])) for tap in taps)
            for key, taps in self._taps.items()
        }

    def rows(self, samples: Samples) -> Iterator[Mapping[str, Array]]:
        """See `Observation.rows`."""
        for feed, _ in feeds(samples, self.inputs):
            yield _rows(self._watcher, self._taps, feed)

    def packed(self) -> TfliteWatched | None:
        """See `Observation.packed`."""
        return None if len(self._content) > MESSAGE_BYTES else TfliteWatched(self._content, self._taps, self.inputs)


@dataclass(frozen=True)
class TfliteWatched:
    """The content of a file, and the tensors in it that are watched."""

    content: bytes
    taps: Mapping[str, tuple[Tap, ...]]
    inputs: tuple[TensorSpec, ...]

    def rows(self, samples: Samples, *, threads: int) -> Iterator[Mapping[str, Array]]:
        """See `Watched.rows`."""
        watcher = _Watcher(self.content, threads)
        for feed, _ in feeds(samples, self.inputs):
            yield _rows(watcher, self.taps, feed)


class _Watcher:
    """A file in LiteRT whose tensors can be looked at after a run."""

    def __init__(self, content: bytes, threads: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "watched.tflite"
            path.write_bytes(content)
            self._interpreter = interpreter(path, threads, watched=True)
        self._session = session(self._interpreter)
        self._known = {int(each["index"]): each for each in self._details()}
        self.inputs = self._session.inputs

    def run(self, feed: Mapping[str, Array], taps: Mapping[str, tuple[Tap, ...]]) -> dict[int, Array]:
        """By their numbers, the tensors that are tapped, integers scaled back."""
        self._session.run(feed)
        tensors = {tap.tensor for own in taps.values() for tap in own}
        return {tensor: numbers(self._interpreter.get_tensor(tensor), self._known[tensor]) for tensor in tensors}

    def _details(self) -> list[dict[str, Any]]:
        details: list[dict[str, Any]] = self._interpreter.get_tensor_details()
        return details


def _rows(watcher: _Watcher, taps: Mapping[str, tuple[Tap, ...]], feed: Mapping[str, Array]) -> dict[str, Array]:
    values = watcher.run(feed, taps)
    parts = {key: [tap.way(tap.features_last(values[tap.tensor])) for tap in own] for key, own in taps.items()}
    return {key: own[0] if len(own) == 1 else np.concatenate(own) for key, own in parts.items()}


def _features(site: Site) -> int:
    """Length of the vectors that an operator multiplies."""
    return int(np.prod(site.kernel.shape[1:]))


def _key(taps: tuple[Tap, ...]) -> tuple[str, ...]:
    return tuple(f"{tap.tensor}:{tap.flat}" + ("" if tap.way == EVERY_POSITION else f":{tap.way}") for tap in taps)
