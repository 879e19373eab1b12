from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.backends import segments
from edgepack.backends.segments import LayerShape, Linear, Placement, Step, cut, names, place
from edgepack.errors import ModelError


def dense(name: str, out: int, into: int) -> LayerShape:
    return LayerShape(name, out, into, None)


def found(linears: list[Linear], layers: list[LayerShape]) -> list[tuple[str, tuple[int, ...]]]:
    return [(layers[p.layer].name, p.linears) for p in place(linears, layers)]


def test_layers_in_order_whatever_the_orientation_of_their_matrices() -> None:
    layers = [dense("a", 8, 4), LayerShape("b", 6, 8, 2), dense("c", 4, 8)]
    linears = [Linear((4, 8), 0), Linear((2, 8), 1, 0), Linear((6, 2), 2, 1), Linear((8, 4), 3)]
    assert found(linears, layers) == [("a", (0,)), ("b", (1, 2)), ("c", (3,))]


def test_strange_products_belong_to_nobody() -> None:
    layers = [dense("a", 8, 4), LayerShape("b", 6, 8, 2)]
    linears = [Linear((5, 5), 0), Linear((8, 4), 1), Linear((2, 8), 2, 1), Linear((9, 6), 3), Linear((6, 2), 4, 2)]
    assert found(linears, layers) == [("a", (1,)), ("b", (2, 4))]


def test_interleaved_pairs_are_told_apart_by_what_feeds_them() -> None:
    layers = [LayerShape(name, 8, 8, 2) for name in "qk"]
    linears = [Linear((2, 8), "Bq"), Linear((2, 8), "Bk"), Linear((8, 2), "Aq", 0), Linear((8, 2), "Ak", 1)]
    assert found(linears, layers) == [("q", (0, 2)), ("k", (1, 3))]


def test_a_shared_matrix_is_its_layer_again() -> None:
    layers = [dense("a", 4, 4), dense("b", 4, 4), LayerShape("c", 4, 4, 2)]
    linears = [
        Linear((4, 4), "a"),
        Linear((2, 4), "B"),
        Linear((4, 2), "A", 1),
        Linear((4, 4), "b"),
        Linear((4, 4), "a"),
        Linear((2, 4), "B"),
        Linear((4, 2), "A", 5),
    ]
    expected = [("a", (0,)), ("c", (1, 2)), ("b", (3,)), ("a", (4,)), ("c", (5, 6))]
    assert found(linears, layers) == expected


def test_equal_matrices_of_different_layers_go_in_order() -> None:
    layers = [dense("a", 4, 4), dense("b", 4, 4)]
    assert found([Linear((4, 4), "zeros"), Linear((4, 4), "zeros")], layers) == [("a", (0,)), ("b", (1,))]


def test_two_dense_layers_in_a_row_are_no_pair() -> None:
    layers = [dense("down", 2, 8), dense("up", 8, 2), LayerShape("thin", 8, 8, 2)]
    linears = [Linear((2, 8), 0), Linear((8, 2), 1, 0), Linear((2, 8), 2, 1), Linear((8, 2), 3, 2)]
    assert found(linears, layers) == [("down", (0,)), ("up", (1,)), ("thin", (2, 3))]


def test_a_missing_layer_takes_nobody_elses_place() -> None:
    assert found([Linear((3, 3), 0)], [dense("a", 8, 4), dense("b", 3, 3)]) == [("b", (0,))]
    assert found([], [dense("a", 8, 4)]) == []
    assert found([Linear((3, 3), 0)], []) == []


def test_runs_and_names() -> None:
    layers = [dense("a", 2, 2), dense("b", 3, 3)]
    steps = [Step(("x",), ("p",)), Step(("p",), ("q",)), Step(("q", "x"), ("r",)), Step(("r",), ("s",))]
    cuts = cut(steps, [None, 0, None, 1], ["s", "q"])
    assert names(cuts, [Placement(0, (0,)), Placement(1, (1,))], layers) == ("before a", "a", "between a and b", "b")
    assert [(c.inputs, c.outputs) for c in cuts] == [
        (("x",), ("p",)),
        (("p",), ("q",)),
        (("q", "x"), ("r",)),
        (("r",), ("s",)),
    ]
    assert names(cut(steps, [None] * 4, ["s"]), [], layers) == ("whole",)
    assert names(cut(steps, [0, None, None, None], ["s"]), [Placement(0, (0,))], layers) == ("a", "after a")


def test_an_owner_is_made_one_piece_and_dead_steps_go() -> None:
    steps = [
        Step(("x",), ("scale",)),
        Step(("x",), ("other",)),
        Step(("x",), ("dead",)),
        Step(("x", "scale"), ("y",)),
        Step(("y", "other"), ("z",)),
    ]
    cuts = cut(steps, [0, None, None, 0, None], ["z"])
    assert [(c.owner, c.steps) for c in cuts] == [(0, (0, 3)), (None, (1, 4))]
    assert [(c.inputs, c.outputs) for c in cuts] == [(("x",), ("y",)), (("x", "y"), ("z",))]


def test_an_owner_around_a_foreign_step_cannot_be_cut_out() -> None:
    steps = [Step(("x",), ("a",)), Step(("a",), ("b",)), Step(("b",), ("c",))]
    with pytest.raises(ModelError, match="one piece"):
        cut(steps, [0, None, 0], ["c"])


def test_too_many_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MAX_SEGMENTS", 3)
    steps = [Step((i,), (i + 1,)) for i in range(4)]
    with pytest.raises(ModelError, match="4 segments, expected at most 3"):
        cut(steps, [0, 1, 2, 3], [4])
    assert len(cut(steps, [None, 0, None, None], [4])) == 3


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Step[int]], list[int | None], list[int]]:
    """A random graph with value i made by step i − 2 (0 and 1 come from outside), its order shuffled validly.

    Owners are intervals of the first order: such sets can always be cut out.
    """
    count = draw(st.integers(1, 14))
    steps = [Step(tuple(draw(st.lists(st.integers(0, i + 1), min_size=1, max_size=3))), (i + 2,)) for i in range(count)]
    owners: list[int | None] = []
    while len(owners) < count:
        size = draw(st.integers(1, 4))
        owners += [draw(st.sampled_from([None, len(owners)]))] * size
    owners = owners[:count]
    ranks = np.array(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
    order: list[int] = []
    while len(order) < count:
        ready = [i for i in range(count) if i not in order and all(v < 2 or v - 2 in order for v in steps[i].reads)]
        order.append(min(ready, key=lambda i: (ranks[i], i)))
    results = draw(st.lists(st.integers(2, count + 1), min_size=1, max_size=3))
    return [steps[i] for i in order], [owners[i] for i in order], results


@given(graphs())
def test_running_the_cuts_in_turn_gives_the_whole(graph: tuple[list[Step[int]], list[int | None], list[int]]) -> None:
    steps, owners, results = graph
    values = {0: "x", 1: "y"}
    for step in steps:
        values |= {step.writes[0]: f"({' '.join(values[v] for v in step.reads)})"}
    cuts = cut(steps, owners, results)
    chained = {0: "x", 1: "y"}
    for one in cuts:
        inside = {value: chained[value] for value in one.inputs}
        for index in one.steps:
            assert owners[index] == one.owner
            inside |= {steps[index].writes[0]: f"({' '.join(inside[v] for v in steps[index].reads)})"}
        chained |= {value: inside[value] for value in one.outputs}
        assert one.outputs, "every run is there for something"
    assert all(chained[value] == values[value] for value in results)
    ran = [index for one in cuts for index in one.steps]
    assert len(ran) == len(set(ran))
    known = [one.owner for one in cuts if one.owner is not None]
    assert len(known) == len(set(known)), "every owner is in one piece"
    assert all(a.owner is not None or b.owner is not None for a, b in pairwise(cuts))
