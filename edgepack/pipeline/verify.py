"""Proofs on every emitted file, from what was read back of it and what it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from math import prod

import numpy as np

from edgepack.metrics.values import LEAST_ERROR, sqnr_db
from edgepack.model.constexpr import decoded_from, operand_sides, stored_bytes
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FLOAT_BITS, FileScheme, scheme_of
from edgepack.model.structure import Op
from edgepack.model.types import Array, Contents, LayerPlan, Product, Proof, Written

PADDING = 16
"""Blocked layouts of a runtime round channels up to at most a multiple of this."""


def tolerance_db(file: FileScheme, layers: Iterable[LayerPlan] = ()) -> float:
    """Least signal to noise of a file's outputs, in dB: the widest tolerance of all that the file holds.

    Args:
        file: its scheme, with that of weights outside of linear layers.
        layers: its plan.
    """
    return min(each.min_sqnr_db for each in (*file.schemes, *(plan.scheme_in(file) for plan in layers)))


def same_outputs(outputs: Array, reference: Array, scheme: FileScheme, layers: Sequence[LayerPlan] = ()) -> Proof:
    """The file loads in its runtime and answers like the fp32 factored reference, as nearly as what it holds allows.

    Integers carry the noise of every layer they pass, and no more than a third of the signal may be noise, with 4-bit
    weights little more than half; what that costs is for the metric to say. Differences of less than `LEAST_ERROR`
    count for nothing. What is no number in the reference is to be
    none in the file either.

    Args:
        outputs: of the file.
        reference: of the fp32 factored model.
        scheme: of the file.
        layers: its plan.
    """
    if outputs.shape != reference.shape:
        return Proof("outputs", False, f"shape {outputs.shape}, the reference has {reference.shape}")
    numbers = np.isfinite(reference)
    noise = sqnr_db(outputs[numbers], reference[numbers], LEAST_ERROR)
    least = tolerance_db(scheme, layers)
    passed = np.array_equal(np.isfinite(outputs), numbers) and noise >= least
    return Proof("outputs", passed, f"{noise:.1f} dB against the fp32 factored model, at least {least:.0f} dB")


def structures_kept(emitted: Contents, optimized: Contents, written: Written, layers: Sequence[LayerPlan]) -> Proof:
    """After the runtime's own optimisation every factored layer is its thin products still, one behind the other.

    A layer's products are found by where they stand: in the emitted file by their names, in the runtime's graph by
    their numbers, whatever their order there, and by what they take. Two layers may have the same shapes. A layer that
    stands in several places is to be factored in all of them.

    Args:
        emitted: of the emitted file.
        optimized: of what the runtime made of it.
        written: what the products of each layer are called in the file.
        layers: the plan.
    """
    known = {product.content for product in emitted.products}
    strangers = [product for product in optimized.products if product.content not in known]
    lost: dict[str, str] = {}
    count = 0
    for plan in layers:
        if not plan.structure.ranks:
            continue
        names = written.products.get(plan.layer, ())
        own = [product for product in emitted.products if product.name in names]
        contents = {product.content for product in own}
        found = [
            (number, product)
            for number, product in enumerate(optimized.products)
            if product.content in contents or any(product.name.startswith(name) for name in names)
        ]
        found += _folded_into(plan.ops, found, optimized, known)
        missing = [op for op in plan.ops if not any(_fits(op, product) for _, product in found)]
        numbers = {number for number, _ in found}
        if missing:
            lost[plan.layer] = f"no product with {', '.join(f'{op.rows}×{op.inputs}' for op in missing)}"
        elif not any(product.behind & numbers for _, product in found):
            lost[plan.layer] = "its thin products do not follow each other"
        elif len(found) < len(own) and any(_fits(op, product) for op in plan.dense for product in strangers):
            lost[plan.layer] = "in one of its places it is dense again"
        count += len(found)
    detail = f"{count} products of factored layers in the runtime's graph"
    if lost:
        detail = "; ".join(f"{name}: {why}" for name, why in lost.items())
    return Proof("structure", not lost, detail, lost)


def _folded_into(
    ops: Sequence[Op], found: Sequence[tuple[int, Product]], optimized: Contents, known: Collection[Hashable]
) -> list[tuple[int, Product]]:
    """Products of a layer that have other numbers and names in the runtime's graph, as it folds a normalization behind
    them into their matrix: they fit, and take what a product of the layer gives."""
    numbers = {number for number, _ in found}
    missing = [op for op in ops if not any(_fits(op, product) for _, product in found)]
    return [
        (number, product)
        for number, product in enumerate(optimized.products)
        if product.content not in known and product.behind & numbers and any(_fits(op, product) for op in missing)
    ]


def _fits(op: Op, product: Product) -> bool:
    """Whether a product multiplies by the matrix of an op; blocked layouts of a runtime round channels up."""
    room = PADDING * prod(op.kernel)
    return all(side <= found < side + room for side, found in zip(_sides(op), product.sides, strict=True))


def _sides(op: Op) -> tuple[int, int]:
    """Of the matrix, a kernel's places laid out along its columns."""
    return min(op.rows, op.inputs), max(op.rows, op.inputs)


def weights_as_planned(
    emitted: Contents,
    source: Contents,
    layers: Sequence[LayerPlan],
    scheme: FileScheme,
    constexpr: Mapping[str, Replacement] | None = None,
) -> Proof:
    """The file holds exactly the matrix elements of the plan, and no layer in fewer bits than its scheme has.

    Matrices in more bits than planned are named, not refused: a scheme leaves some layers wider.

    Args:
        emitted: of the emitted file, not optimized.
        source: of the dense fp32 file.
        layers: the plan; a layer without a scheme of its own has the file's.
        scheme: of the file.
        constexpr: layers stored in code, by name; a file may hold some of what they multiply by as plain matrices.
    """
    planned = _planned(source, layers, scheme)
    unplanned = Counter((a, b) for a, b, _ in source.weights)
    unplanned.subtract(_sides(op) for p in layers for op in p.dense)
    others = sum(a * b * count for (a, b), count in unplanned.items())
    elements = others + sum(a * b * len(bits) for (a, b), bits in planned.items())
    wanted = unplanned + Counter({sides: len(bits) for sides, bits in planned.items()})
    emitted = _without_code(emitted, wanted, constexpr or {})
    found = sum(a * b for a, b, _ in emitted.weights)
    bits = others * scheme.layers.bits + sum(a * b * sum(each) for (a, b), each in planned.items())
    wide = sum(a * b * each for a, b, each in emitted.weights) - bits
    narrow = _narrower(emitted, planned)
    detail = f"{found} matrix elements, {elements} planned, {_bytes(bits)} bytes"
    if narrow:
        detail += f"; in fewer bits than planned: {', '.join(narrow)}"
    elif wide > 0:
        detail += f" + {_bytes(wide)} bytes for matrices that the scheme leaves wider"
    return Proof("weight-bytes", found == elements and not narrow, detail)


def _without_code(
    emitted: Contents, wanted: Counter[tuple[int, int]], constexpr: Mapping[str, Replacement]
) -> Contents:
    """Leaves out what layers in code multiply by, beyond the matrices that are wanted of those sides anyway."""
    spare = Counter((a, b) for a, b, _ in emitted.weights) - wanted
    spare &= Counter(sides for part in constexpr.values() for sides in operand_sides(part))
    kept = []
    for a, b, bits in sorted(emitted.weights, key=lambda weight: -weight[2]):
        if spare[a, b] > 0:
            spare[a, b] -= 1
        else:
            kept.append((a, b, bits))
    return Contents(tuple(sorted(kept)), emitted.vectors)


def _planned(source: Contents, layers: Sequence[LayerPlan], scheme: FileScheme) -> dict[tuple[int, int], list[int]]:
    """Bits of every planned matrix by its sides, most first: its scheme's, or the source's where those are fewer."""
    held: dict[tuple[int, int], int] = {}
    for a, b, bits in source.weights:
        held[a, b] = min(bits, held.get((a, b), bits))
    planned: dict[tuple[int, int], list[int]] = {}
    for plan in layers:
        source_bits = min((held[_sides(op)] for op in plan.dense if _sides(op) in held), default=FLOAT_BITS)
        for op in plan.ops:
            bits = scheme_of(op, plan.scheme_in(scheme)).bits
            planned.setdefault(_sides(op), []).append(min(bits, source_bits))
    for _, op in scheme.factored:
        planned.setdefault(_sides(op), []).append(scheme.others.bits)
    return {matrix: sorted(bits, reverse=True) for matrix, bits in planned.items()}


def _narrower(emitted: Contents, planned: Mapping[tuple[int, int], Sequence[int]]) -> list[str]:
    """Sides of which the file has fewer matrices with that many bits than the plan; those it lacks are left out."""
    found: dict[tuple[int, int], list[int]] = {}
    for a, b, bits in sorted(emitted.weights, key=lambda weight: -weight[2]):
        found.setdefault((a, b), []).append(bits)
    pairs = ((sides, zip(found.get(sides, ()), bits, strict=False)) for sides, bits in planned.items())
    return [f"{a}×{b}" for (a, b), both in pairs if any(is_bits < wanted for is_bits, wanted in both)]


def stored_as_planned(content: bytes, parts: Mapping[str, Replacement]) -> Proof:
    """Every constant of the layers stored in code stands in the file, bit for bit, or what it is decoded to does.

    Args:
        content: of the emitted file.
        parts: by layer name.
    """
    lost = [name for name, part in parts.items() if not all(_is_stored(content, part, each) for each in part.tensors)]
    size = sum(map(stored_bytes, parts.values()))
    detail = f"{size} bytes of {len(parts)} layers in code" if not lost else f"lost: {', '.join(lost)}"
    return Proof("stored-in-code", not lost, detail)


def _is_stored(content: bytes, part: Replacement, name: str) -> bool:
    if part.tensors[name].tobytes() in content:
        return True
    found = decoded_from(part, name)
    return bool(found) and all(each.tobytes() in content or each.T.tobytes() in content for each in found)


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def biases_intact(emitted: Contents, biases: Mapping[str, Array]) -> Proof:
    """The bias of every layer stands in the file: as it is, times a folded-in constant, or on an integer grid."""
    lost = [name for name, bias in biases.items() if not any(_is_bias(v, bias) for v in emitted.vectors)]
    detail = f"{len(biases)} biases found" if not lost else f"lost: {', '.join(lost)}"
    return Proof("biases", not lost, detail, dict.fromkeys(lost, "its bias is not in the file"))


def _is_bias(vector: Array, bias: Array) -> bool:
    """Whether `vector` is a multiple of `bias`: converters fold an attention's 1/√d into a layer, a sign into a Sub."""
    norm = float(np.dot(vector, vector)) if vector.shape == bias.shape else 0.0
    if norm == 0.0 or not np.isfinite(norm):
        return False
    fitted = float(np.dot(bias, vector)) / norm * vector
    return bool(np.abs(fitted - bias).max() <= 2e-3 * float(np.abs(bias).max()) + 1e-6)
