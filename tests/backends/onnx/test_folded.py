"""Weights that a graph puts together from constants become constants, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgepack.backends.onnx.folded import DEEPEST, fold_weights
from edgepack.backends.onnx.sites import find_sites
from edgepack.model.types import Array
from tests.backends.onnx.graph_models import assert_same, const, factored, info, normal, proto

UNITS, INPUTS, STEPS, BATCH = 8, 12, 4, 2
ROWS = 4 * UNITS
FEED = {"x": normal(STEPS, BATCH, INPUTS, seed=9)}
X = info("x", [STEPS, BATCH, INPUTS])
HELD: dict[str, Array] = {
    "rnn.weight_ih": normal(ROWS, INPUTS),
    "rnn.weight_hh": normal(ROWS, UNITS, seed=1) / 4,
    "rnn.bias_ih": normal(ROWS, seed=2),
    "rnn.bias_hh": normal(ROWS, seed=3),
}
GATES = {"i": (0, 1), "fg": (1, 3), "o": (3, 4)}
"""As torch orders them, and ONNX has them in another order: i, o, f, g."""


def ordered(source: str, prefix: str) -> list[onnx.NodeProto]:
    """Slices of a constant, joined in another order, as `{prefix}.ordered`."""
    nodes = []
    for gate, (start, end) in GATES.items():
        name = f"{prefix}.{gate}"
        bounds = {"start": start * UNITS, "end": end * UNITS, "axis": 0}
        nodes += [const(f"{name}.{key}", np.array([number])) for key, number in bounds.items()]
        nodes.append(helper.make_node("Slice", [source, *(f"{name}.{key}" for key in bounds)], [name], name=name))
    parts = [f"{prefix}.{gate}" for gate in ("i", "o", "fg")]
    return [*nodes, helper.make_node("Concat", parts, [f"{prefix}.ordered"], name=f"{prefix}.join", axis=0)]


def cells(output: str, prefix: str = "n") -> list[onnx.NodeProto]:
    """An LSTM whose weights are ordered, joined and given an axis in the graph."""
    nodes = [const(f"{prefix}.zero", np.array([0]))]
    for name in HELD:
        nodes += ordered(name, f"{prefix}.{name}")
    both = [f"{prefix}.rnn.bias_{side}.ordered" for side in ("ih", "hh")]
    nodes.append(helper.make_node("Concat", both, [f"{prefix}.bias"], name=f"{prefix}.biases", axis=0))
    weights = [f"{prefix}.rnn.weight_ih.ordered", f"{prefix}.rnn.weight_hh.ordered", f"{prefix}.bias"]
    for name in weights:
        nodes.append(helper.make_node("Unsqueeze", [name, f"{prefix}.zero"], [f"{name}.1"], name=f"{name}.1"))
    inputs = ["x", *(f"{name}.1" for name in weights)]
    return [*nodes, helper.make_node("LSTM", inputs, [output], name=f"{prefix}.lstm", hidden_size=UNITS)]


def made(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str] = ("y",), **options: object) -> ir.Model:
    inputs = [X, *([info("on", [], TensorProto.BOOL)] if any(node.op_type == "If" for node in nodes) else [])]
    return ir.from_proto(proto(nodes, inputs, [info(name, None) for name in outputs], HELD, **options))  # type: ignore[arg-type]


def test_they_become_constants_named_as_what_they_are_made_of() -> None:
    source = made(cells("y"))
    assert not find_sites(source.clone())
    folded = source.clone()
    fold_weights(folded)
    assert [node.op_type for node in folded.graph] == ["LSTM"]
    assert set(folded.graph.initializers) == {"rnn.weight_ih", "rnn.weight_hh", "rnn.bias_ih"}
    (site,) = find_sites(folded.clone())
    assert site.layer.name == "rnn.weight_ih"
    np.testing.assert_array_equal(site.layer.weight[UNITS : 2 * UNITS], HELD["rnn.weight_ih"][3 * UNITS :])
    for changed in (folded, factored(folded)):
        assert_same(source, changed, FEED)


def test_what_several_operators_use_is_folded_once() -> None:
    source = made([*cells("y", "a"), *cells("z", "b")], ("y", "z"))
    folded = source.clone()
    fold_weights(folded)
    assert len(folded.graph.initializers) == 3
    (site,) = find_sites(folded.clone())
    assert site.layer.uses == 2
    assert_same(source, folded, FEED)


def test_within_branches_that_share_their_constants() -> None:
    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph(cells(name, name), name, [], [info(name, [STEPS, 1, BATCH, UNITS])])

    branches = {f"{way}_branch": branch(way) for way in ("then", "else")}
    source = made([helper.make_node("If", ["on"], ["y"], name="if", **branches)])
    folded = source.clone()
    fold_weights(folded)
    assert len(folded.graph.initializers) == 3
    for on in (True, False):
        assert_same(source, folded, {**FEED, "on": np.array(on)})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"n.rnn.weight_ih.i.start": np.array([0, 0])}, "bounds of unequal length"),
        ({"n.rnn.weight_ih.i.axis": np.array([5])}, "no such axis"),
        ({"n.rnn.weight_ih.i.end": np.array([UNITS - 1]), "n.zero": np.array([7])}, "no such axis to add"),
    ],
    ids=["bounds", "axis", "view"],
)
def test_what_no_runtime_could_compute_stays_as_it_is(changes: dict[str, Array], why: str) -> None:
    nodes = [
        const(node.output[0], changes[node.output[0]]) if node.output[0] in changes else node for node in cells("y")
    ]
    source = made(nodes)
    fold_weights(source)
    assert "Slice" in [node.op_type for node in source.graph], why
    assert not find_sites(source)


def test_weights_that_depend_on_an_input_or_on_far_too_many_steps_stay() -> None:
    nodes = [helper.make_node("Squeeze", ["x"], ["rnn.weight_ih"], name="s"), *cells("y")]
    source = ir.from_proto(
        proto(nodes, [X], [info("y", None)], {name: array for name, array in HELD.items() if name != "rnn.weight_ih"})
    )
    fold_weights(source)
    assert not find_sites(source)
    assert "rnn.weight_hh" in source.graph.initializers
    chain = [helper.make_node("Slice", ["w", "zero", "all"], ["w0"], name="w0")]
    for number in range(DEEPEST + 2):
        chain.append(helper.make_node("Slice", [f"w{number}", "zero", "all"], [f"w{number + 1}"], name=f"c{number}"))
    cell = helper.make_node("LSTM", ["x", f"w{DEEPEST + 2}", "r"], ["y"], name="lstm", hidden_size=UNITS)
    held = {"w": HELD["rnn.weight_ih"][None], "r": HELD["rnn.weight_hh"][None]}
    bounds = [const("zero", np.array([0])), const("all", np.array([1 << 30]))]
    deep = ir.from_proto(proto([*bounds, *chain, cell], [X], [info("y", None)], held))
    fold_weights(deep)
    assert not find_sites(deep)


def test_files_whose_initializers_are_inputs_stay() -> None:
    source = made(cells("y"), ir_version=3)
    fold_weights(source)
    assert not find_sites(source)
