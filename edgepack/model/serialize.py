"""What is written for a layer, as named arrays for the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgepack.model.constexpr import effective_weight, listed, unlisted
from edgepack.model.replacement import Replacement, constexpr, dense, low_rank, low_rank_correction
from edgepack.model.types import Array

_CONSTANT = "constant."


def packed_part(part: Replacement) -> dict[str, Array]:
    """Named arrays; the steps of a coded layer as JSON. Its weight is left out, as it is what the steps come to."""
    bias = np.zeros(0, np.float32) if part.bias is None else part.bias
    if not part.structure.is_constexpr:
        return {**part.tensors, "bias": bias}
    text = np.frombuffer(json.dumps(listed(part.program), default=int).encode(), np.uint8)
    constants = {_CONSTANT + name: array for name, array in part.tensors.items()}
    sides = np.array(part.weight.shape, np.int64)
    return {"sides": sides, "bias": bias, "steps": text, **constants}


def unpacked_part(arrays: Mapping[str, Array]) -> Replacement:
    """What `packed_part` was given."""
    bias = arrays["bias"] if arrays["bias"].size else None
    if "A" in arrays:
        return unpacked_pair(arrays)
    if "steps" not in arrays:
        return dense(arrays["weight"], bias)
    constants = {name.removeprefix(_CONSTANT): array for name, array in arrays.items() if name.startswith(_CONSTANT)}
    blank = np.zeros(tuple(arrays["sides"]), np.float32)
    made = constexpr(constants, unlisted(json.loads(arrays["steps"].tobytes())), blank, bias)
    return replace(made, decoded=effective_weight(made))


def unpacked_pair(arrays: Mapping[str, Array]) -> Replacement:
    """A pair that `packed_part` was given."""
    bias = arrays["bias"] if arrays["bias"].size else None
    if "base" in arrays:
        return low_rank_correction(arrays["A"], arrays["B"], bias, arrays["base"])
    return low_rank(arrays["A"], arrays["B"], bias)
