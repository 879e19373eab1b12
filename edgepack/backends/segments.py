"""Cut a model into consecutive parts, layer by layer: what both file formats share.

A format gives its operators as steps and its products with constant matrices as linears; here they are matched with a
pack's layers and put into an order in which every layer stands in one piece.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

from edgepack.errors import ModelError

V = TypeVar("V", bound=Hashable)

MAX_SEGMENTS = 256
"""Each segment is a file and a session of its own; more than this would measure the sessions."""


@dataclass(frozen=True)
class LayerShape:
    """A layer as a pack's manifest states it.

    Attributes:
        rank: None for a dense layer.
        beside: whether the pair stands beside the dense matrix and not in its place.
        products: sides of the matrices of several products in a row, where the rank does not tell them.
    """

    name: str
    out_features: int
    in_features: int
    rank: int | None
    beside: bool = False
    products: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Segment:
    """One part of a model as a model file of its own.

    Attributes:
        name: the layer's, or where the part stands: "before a", "between a and b", "after b", or "whole".
        layer: whether it holds one layer and nothing else. A layer in several places gives several such segments.
        path: the file.
    """

    name: str
    layer: bool
    path: Path


@dataclass(frozen=True)
class Linear:
    """One product with a constant matrix.

    Attributes:
        sides: of the matrix, in any order.
        weight: equal for two products with the same matrix.
        follows: the product whose result it takes, with nothing but scales, casts and views between; None if none.
    """

    sides: tuple[int, int]
    weight: Hashable
    follows: int | None = None


@dataclass(frozen=True)
class Placement:
    """One place where a layer stands: `layer` is its index, `linears` the one to three products that compute it."""

    layer: int
    linears: tuple[int, ...]


@dataclass(frozen=True)
class Step(Generic[V]):
    """One operator by the values that it reads and writes, constants apart."""

    reads: tuple[V, ...]
    writes: tuple[V, ...]


@dataclass(frozen=True)
class Cut(Generic[V]):
    """A run of steps.

    Attributes:
        owner: the placement that it is, None for what lies between placements.
        steps: indices, in order of execution.
        inputs: values that it takes from earlier cuts or from outside.
        outputs: values that later cuts or the caller need.
    """

    owner: int | None
    steps: tuple[int, ...]
    inputs: tuple[V, ...]
    outputs: tuple[V, ...]


def place(linears: Sequence[Linear], layers: Sequence[LayerShape]) -> tuple[Placement, ...]:
    """Find the layers among a model's products.

    Where all products, taken in order, are just what the layers ask for, that is the answer. Otherwise layers of one
    shape take the products of that shape in order, pairs before single ones; a product with a matrix that is already
    taken is the same layer again. Products that fit no layer belong to none.

    Args:
        linears: in order of execution.
        layers: in graph order.
    """
    placements = _in_order(linears, layers) or _by_shape(linears, layers)
    return tuple(sorted(placements, key=lambda p: p.linears))


def values_by_layer(
    placements: Sequence[Placement], layers: Sequence[LayerShape], values: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """By layer what its products give, of all places where it stands; `values` are what each product gives."""
    found: dict[str, tuple[str, ...]] = {}
    for placement in placements:
        name = layers[placement.layer].name
        found[name] = (*found.get(name, ()), *(values[index] for index in placement.linears))
    return found


@dataclass(frozen=True)
class _Pattern:
    """The products that a layer needs.

    Attributes:
        row: sides of those that follow each other, smaller first.
        beside: those of a dense matrix beside them.
    """

    row: tuple[tuple[int, ...], ...]
    beside: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.row) + len(self.beside)


def _pattern(layer: LayerShape) -> _Pattern:
    """Of B and A, with a dense matrix beside them, of the dense matrix alone, or of as many as there are."""
    dense = (_sorted((layer.out_features, layer.in_features)),)
    if layer.products:
        return _Pattern(tuple(map(_sorted, layer.products)))
    if layer.rank is None:
        return _Pattern(dense)
    pair = _sorted((layer.rank, layer.in_features)), _sorted((layer.rank, layer.out_features))
    return _Pattern(pair, dense if layer.beside else ())


def _sorted(sides: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(sides))


def _fits(linears: Sequence[Linear], group: Sequence[int], pattern: _Pattern) -> bool:
    sides, row = tuple(_sorted(linears[i].sides) for i in group), group[: len(pattern.row)]
    return sides == (*pattern.row, *pattern.beside) and all(linears[b].follows == a for a, b in pairwise(row))


def _in_order(linears: Sequence[Linear], layers: Sequence[LayerShape]) -> list[Placement]:
    """Every product in its turn, or nothing."""
    found, start = [], 0
    for index, layer in enumerate(layers):
        pattern = _pattern(layer)
        group = tuple(range(start, min(start + len(pattern), len(linears))))
        if not _fits(linears, group, pattern):
            return []
        found.append(Placement(index, group))
        start += len(pattern)
    return found if start == len(linears) else []


def _by_shape(linears: Sequence[Linear], layers: Sequence[LayerShape]) -> list[Placement]:
    wanted: dict[_Pattern, list[int]] = {}
    for index, layer in enumerate(layers):
        wanted.setdefault(_pattern(layer), []).append(index)
    free, found = set(range(len(linears))), []
    for pattern, owners in sorted(wanted.items(), key=lambda item: -len(item[0])):
        groups = _candidates(linears, free, pattern)
        for owner, group in _shared_out(linears, groups, owners):
            found.append(Placement(owner, group))
            free.difference_update(group)
    return found


def _candidates(linears: Sequence[Linear], free: set[int], pattern: _Pattern) -> list[tuple[int, ...]]:
    """Groups of free products that fit, none of them in two groups."""
    groups: list[tuple[int, ...]] = []
    used: set[int] = set()
    for last in sorted(free):
        group = _group(linears, free - used, last, pattern)
        if all(i in free and i not in used for i in group) and _fits(linears, group, pattern):
            groups.append(group)
            used.update(group)
    return groups


def _group(linears: Sequence[Linear], free: set[int], last: int, pattern: _Pattern) -> tuple[int, ...]:
    """A product with those that it follows, and the next one of a dense matrix beside them."""
    row = [last]
    while len(row) < len(pattern.row):
        before = None if row[0] < 0 else linears[row[0]].follows
        row.insert(0, -1 if before is None else before)
    dense = (i for i in sorted(free) if i > last and _sorted(linears[i].sides) in pattern.beside)
    return (*row, next(dense, -1)) if pattern.beside else tuple(row)


def _shared_out(
    linears: Sequence[Linear], groups: Sequence[tuple[int, ...]], owners: Sequence[int]
) -> list[tuple[int, tuple[int, ...]]]:
    """Groups with their owners: one each in order, or by their matrices where there are more groups than owners."""
    if len(groups) <= len(owners):
        return list(zip(owners, groups, strict=False))
    keys = [tuple(linears[i].weight for i in group) for group in groups]
    owner_of = dict(zip(dict.fromkeys(keys), owners, strict=False))
    return [(owner_of[key], group) for key, group in zip(keys, groups, strict=True) if key in owner_of]


def cut(steps: Sequence[Step[V]], owners: Sequence[int | None], results: Collection[V]) -> tuple[Cut[V], ...]:
    """Put steps into runs: each owner's steps in one piece, all others in as few pieces as the order allows.

    The given order is kept except where a step stands among the steps of an owner. Steps that no result needs are left
    out.

    Args:
        steps: in an order in which they can run.
        owners: of each step, None for steps of no placement.
        results: values that the caller needs.

    Raises:
        ModelError: an owner's steps need what other steps make of them; there are more than `MAX_SEGMENTS` runs.
    """
    maker = {value: index for index, step in enumerate(steps) for value in step.writes}
    alive = _needed(steps, maker, results)
    runs: list[tuple[int | None, list[int]]] = []
    for owner, members in _ordered(steps, owners, maker, alive):
        if owner is None and runs and runs[-1][0] is None:
            runs[-1][1].extend(members)
        else:
            runs.append((owner, list(members)))
    if len(runs) > MAX_SEGMENTS:
        raise ModelError(
            f"the model falls into {len(runs)} segments, expected at most {MAX_SEGMENTS}",
            hint="count the whole model only",
        )
    return _with_borders(steps, runs, results)


def _needed(steps: Sequence[Step[V]], maker: Mapping[V, int], results: Iterable[V]) -> set[int]:
    waiting = [maker[value] for value in results if value in maker]
    alive: set[int] = set()
    while waiting:
        index = waiting.pop()
        if index not in alive:
            alive.add(index)
            waiting.extend(maker[value] for value in steps[index].reads if value in maker)
    return alive


def _ordered(
    steps: Sequence[Step[V]], owners: Sequence[int | None], maker: Mapping[V, int], alive: Collection[int]
) -> list[tuple[int | None, list[int]]]:
    """Units (an owner's steps, or one step alone) in the earliest order that respects what they read."""
    unit_of = {i: (0, owner) if (owner := owners[i]) is not None else (1, i) for i in alive}
    members: dict[tuple[int, int], list[int]] = {}
    for index in sorted(alive):
        members.setdefault(unit_of[index], []).append(index)
    before: dict[tuple[int, int], set[tuple[int, int]]] = {unit: set() for unit in members}
    after: dict[tuple[int, int], set[tuple[int, int]]] = {unit: set() for unit in members}
    for index, unit in unit_of.items():
        for value in steps[index].reads:
            other = unit_of[maker[value]] if value in maker else unit
            if other != unit:
                before[unit].add(other)
                after[other].add(unit)
    ready = [(members[unit][0], unit) for unit in members if not before[unit]]
    heapq.heapify(ready)
    ordered: list[tuple[int | None, list[int]]] = []
    while ready:
        unit = heapq.heappop(ready)[1]
        ordered.append((owners[members[unit][0]], members[unit]))
        for other in after[unit]:
            before[other].discard(unit)
            if not before[other]:
                heapq.heappush(ready, (members[other][0], other))
    if len(ordered) != len(members):
        raise ModelError("a layer's operators cannot be cut out in one piece", hint="count the whole model only")
    return ordered


def _with_borders(
    steps: Sequence[Step[V]], runs: Sequence[tuple[int | None, Sequence[int]]], results: Collection[V]
) -> tuple[Cut[V], ...]:
    reads = [dict.fromkeys(value for i in members for value in steps[i].reads) for _, members in runs]
    writes = [dict.fromkeys(value for i in members for value in steps[i].writes) for _, members in runs]
    readers: dict[V, set[int]] = {}
    for run, values in enumerate(reads):
        for value in values:
            readers.setdefault(value, set()).add(run)
    cuts = []
    for run, (owner, members) in enumerate(runs):
        inputs = tuple(value for value in reads[run] if value not in writes[run])
        outputs = tuple(v for v in writes[run] if v in results or readers.get(v, set()) - {run})
        cuts.append(Cut(owner, tuple(members), inputs, outputs))
    return tuple(cuts)


def names(cuts: Sequence[Cut[V]], placements: Sequence[Placement], layers: Sequence[LayerShape]) -> tuple[str, ...]:
    """A name for each cut: its layer's, or the layers that it stands between."""
    known = [None if c.owner is None else layers[placements[c.owner].layer].name for c in cuts]
    found = []
    for index, name in enumerate(known):
        before = known[index - 1] if index else None
        after = known[index + 1] if index + 1 < len(known) else None
        found.append(name if name is not None else _where(before, after))
    return tuple(found)


def _where(before: str | None, after: str | None) -> str:
    if before is None:
        return "whole" if after is None else f"before {after}"
    return f"after {before}" if after is None else f"between {before} and {after}"
