"""Streams the inputs of linear layers out of a running ONNX model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from edgepack.data import Samples, feeds
from edgepack.inference import THREADS
from edgepack.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

Key = tuple[str, ...]


class Observation:
    """A model whose linear layers can be watched at work.

    Attributes:
        keys: layer name → key of the value that is its input; layers that share an input share a key. A layer whose
            input cannot be observed is absent.
    """

    def __init__(self, model: ir.Model, layer_names: Iterable[str]) -> None:
        from edgepack.onnxgraph.files import input_specs
        from edgepack.onnxgraph.rewrite import with_observed_inputs
        from edgepack.onnxgraph.session import session

        watched, found = with_observed_inputs(model, layer_names)
        self._observed = {seen.outputs: seen for seen in found.values()}
        self.keys: dict[str, Key] = {name: seen.outputs for name, seen in found.items()}
        self._session = session(watched, threads=THREADS)
        self._inputs = input_specs(watched)

    def row_counts(self, feed: Mapping[str, Array]) -> dict[str, int]:
        """{joined key: rows that one run multiplies}."""
        return {name: len(rows) for name, rows in self._rows(feed).items()}

    def rows(self, samples: Samples) -> Iterator[Mapping[str, Array]]:
        """{joined key: rows (N, features)} per run of the model."""
        for feed, _ in feeds(samples, self._inputs):
            yield self._rows(feed)

    def _rows(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        from edgepack.onnxgraph.session import run

        wanted = list(dict.fromkeys(name for key in self._observed for name in key))
        arrays = dict(zip(wanted, run(self._session, wanted, feed), strict=True)) if wanted else {}
        return {joined(key): seen.rows(*(arrays[name] for name in key)) for key, seen in self._observed.items()}


def joined(key: Key) -> str:
    """One string for a key, for use where a dict wants one."""
    return "\n".join(key)
