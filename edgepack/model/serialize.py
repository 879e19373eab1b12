"""What is written for a layer, as named arrays for the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgepack.model.constexpr import effective_weight, listed, unlisted
from edgepack.model.replacement import Replacement, constexpr, dense, low_rank, low_rank_correction
from edgepack.model.structure import Structure
from edgepack.model.types import Array

_CONSTANT = "constant."


def packed_part(part: Replacement) -> dict[str, Array]:
    """Named arrays; the steps of a layer in code as JSON. Its weight is left out, as it is what the steps come to."""
    bias = np.zeros(0, np.float32) if part.bias is None else part.bias
    if not part.structure.is_constexpr:
        known = {} if part.structure.of_a_matrix else {"structure": _text([part.structure.name, *part.structure.ranks])}
        return {**part.tensors, "bias": bias, **known}
    text = _text(listed(part.program))
    constants = {_CONSTANT + name: array for name, array in part.tensors.items()}
    sides = np.array(part.weight.shape, np.int64)
    return {"sides": sides, "bias": bias, "steps": text, **constants}


def _text(value: object) -> Array:
    return np.frombuffer(json.dumps(value, default=int).encode(), np.uint8)


def unpacked_part(arrays: Mapping[str, Array]) -> Replacement:
    """What `packed_part` was given."""
    bias = arrays["bias"] if arrays["bias"].size else None
    if "structure" in arrays:
        name, *ranks = json.loads(arrays["structure"].tobytes())
        tensors = {role: array for role, array in arrays.items() if role not in ("bias", "structure")}
        return Replacement(Structure(name, tuple(ranks)), tensors, bias)
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
