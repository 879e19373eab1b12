"""How often data look up each row of the embedding tables of an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.kinds.embedding import find_tables
from edgepack.backends.onnx.promote import Tap, Wanted, promote, start
from edgepack.data import Samples, feeds
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir


def token_counts(model: ir.Model, samples: Samples | None) -> tuple[dict[str, Array], int]:
    """By name of each table: (rows,) int64, and how many inferences they are of.

    Tables whose rows are the same in every inference are left out: a runtime looks them up at load. Lookups whose
    numbers cannot be led out of the model are not counted. Only what leads to the numbers is run, which is next to
    nothing where they are inputs of the model.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from edgepack.backends.onnx.file import input_specs
    from edgepack.backends.onnx.session import run, session

    copy = model.clone()
    inputs, promotion = input_specs(copy), start(copy)
    found = {name: value for _, name, value in find_tables(copy) if any(_varies(node) for node, _ in value.uses())}
    sizes = {
        name: int(value.const_value.shape.numpy()[0]) for name, value in found.items() if value.const_value is not None
    }
    counts = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
    taps: Mapping[str, set[Tap]] = {name: set() for name in found}
    copy.graph.outputs.clear()
    for name, value in found.items():
        for node, _ in list(value.uses()):
            numbers = node.inputs[1]
            if numbers is not None and _varies(node):
                dtype = None if numbers.dtype is None else numbers.dtype.numpy()
                tap = promote(promotion, numbers, Wanted(dtype, -1, 0, None))
                taps[name].update(() if tap is None else (tap,))
    wanted = sorted({tap.output for own in taps.values() for tap in own})
    if samples is None or not wanted:
        return counts, 0
    RemoveUnusedNodesPass()(copy)
    opened = session(copy)
    runs = 0
    for feed, _ in feeds(samples, inputs):
        runs += 1
        arrays = dict(zip(wanted, run(opened, wanted, feed), strict=True))
        for name, own in taps.items():
            for tap in own:
                rows = arrays[tap.output].reshape(-1) % len(counts[name])
                counts[name] += np.bincount(rows, minlength=len(counts[name]))
    return counts, runs


def _varies(lookup: ir.Node) -> bool:
    """Whether the numbers of rows may depend on the model's inputs: those of constants alone do not."""
    waiting, seen = [lookup.inputs[1]], set[object]()
    while waiting:
        value = waiting.pop()
        if value is None or value in seen or value.is_initializer():
            continue
        seen.add(value)
        node = value.producer()
        if node is None or any(one.type.name.startswith("GRAPH") for one in node.attributes.values()):
            return True
        waiting += node.inputs
    return False
