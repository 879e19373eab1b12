"""Streams the vectors that layers multiply out of a running ONNX model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.backends.backend import THREADS
from edgepack.backends.observation import joined
from edgepack.backends.onnx.activations import ObservedInput
from edgepack.data import Samples, feeds
from edgepack.model.types import Array, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort


class OnnxObservation:
    """A model whose layers can be watched at work.

    Attributes:
        keys: view name → key of the vectors that it multiplies; views that multiply the same ones share a key. A view
            whose layer's input cannot be observed is absent.
        features: {joined key: width of the vectors}.
        inputs: of the model.
    """

    def __init__(self, model: ir.Model, views: Iterable[str], *, threads: int = THREADS) -> None:
        from edgepack.backends.onnx.activations import with_observed_inputs
        from edgepack.backends.onnx.file import input_specs
        from edgepack.backends.onnx.session import session

        self._model, found = with_observed_inputs(model, views)
        self._observed = tuple({seen.key: seen for seen in found.values()}.values())
        self.features = {joined(seen.key): seen.in_features for seen in self._observed}
        self._session = session(self._model, threads=threads)
        self.keys: dict[str, tuple[str, ...]] = {name: seen.key for name, seen in found.items()}
        self.inputs = input_specs(self._model)

    def row_counts(self, feed: Mapping[str, Array]) -> dict[str, int]:
        """{joined key: rows that one run multiplies}."""
        return {joined(seen.key): seen.count(*arrays) for seen, arrays in _fetched(self._session, self._observed, feed)}

    def rows(self, samples: Samples) -> Iterator[Mapping[str, Array]]:
        """{joined key: rows (N, features)} per run of the model."""
        for feed, _ in feeds(samples, self.inputs):
            yield _rows(self._session, self._observed, feed)

    def packed(self) -> OnnxWatched | None:
        """The same for another process; None if the model does not fit in one message."""
        from edgepack.backends.onnx.file import EXTERNAL_BYTES, to_bytes
        from edgepack.backends.onnx.tensors import weight_bytes

        if weight_bytes(self._model) > EXTERNAL_BYTES:
            return None
        return OnnxWatched(to_bytes(self._model), self._observed, self.inputs)


@dataclass(frozen=True)
class OnnxWatched:
    """A serialized model whose further outputs are the inputs of its layers, and what these outputs are."""

    content: bytes
    observed: tuple[ObservedInput, ...]
    inputs: tuple[TensorSpec, ...]

    def rows(self, samples: Samples, *, threads: int) -> Iterator[Mapping[str, Array]]:
        """As `OnnxObservation.rows`, in a session of its own."""
        from edgepack.backends.onnx.session import session

        opened = session(self.content, threads=threads)
        for feed, _ in feeds(samples, self.inputs):
            yield _rows(opened, self.observed, feed)


def _rows(
    opened: ort.InferenceSession, observed: Sequence[ObservedInput], feed: Mapping[str, Array]
) -> dict[str, Array]:
    return {joined(seen.key): seen.rows(*arrays) for seen, arrays in _fetched(opened, observed, feed)}


def _fetched(
    opened: ort.InferenceSession, observed: Sequence[ObservedInput], feed: Mapping[str, Array]
) -> Iterator[tuple[ObservedInput, list[Array]]]:
    """What one run gives for each observed input: an array for each of its outputs."""
    from edgepack.backends.onnx.session import run

    wanted = list(dict.fromkeys(name for seen in observed for name in seen.outputs))
    arrays = dict(zip(wanted, run(opened, wanted, feed), strict=True)) if wanted else {}
    for seen in observed:
        yield seen, [arrays[name] for name in seen.outputs]
