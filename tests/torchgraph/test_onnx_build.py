"""Graphs of ONNX as modules: what is folded and unrolled, what is refused, and that no file makes much of little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from edgepack.errors import ModelError
from edgepack.torchgraph.from_onnx import onnx_to_program
from edgepack.torchgraph.onnx import build
from edgepack.torchgraph.onnx.build import build_module

X = torch.tensor([[1.0, -2.0, 3.0, -4.0]])


def model(
    nodes: Sequence[NodeProto], weights: Mapping[str, Any] | None = None, outputs: Sequence[str] = ("y",)
) -> ModelProto:
    """Of one input x (1, 4)."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    return helper.make_model(
        helper.make_graph(list(nodes), "g", [x], ends, constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )


def run(made: ModelProto) -> torch.Tensor:
    (result,) = build_module(made, [X], "m.onnx")(X)
    return result


def branch(operator: str, given: str) -> GraphProto:
    end = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(operator, [given], ["z"])], "b", [], [end])


def looped(count: Any, body: Sequence[NodeProto]) -> ModelProto:
    """`body` makes z of s and i, and says in `on` whether to go on."""
    ends = [helper.make_tensor_value_info(*each, []) for each in (("i", 7), ("c", 9), ("on", 9))]
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("s", "z")]
    inner = helper.make_graph(list(body), "b", [*ends[:2], state[0]], [ends[2], state[1]])
    return model([helper.make_node("Loop", ["n", "", "x"], ["y"], body=inner, name="turns")], {"n": count})


def test_what_is_known_is_computed_once() -> None:
    """Shape arithmetic disappears, weights stay the arrays that they are, and what nothing reads goes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Mul", ["s", "two"], ["t"]),
        helper.make_node("Exp", ["x"], ["unread"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Tile", ["same", "t"], ["tiled"]),
        helper.make_node("MatMul", ["tiled", "w"], ["y"]),
    ]
    w = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    module = build_module(model(nodes, {"two": [2, 2], "w": w}), [X], "m.onnx")
    assert [step.node.operator for step in module.steps] == ["Tile", "MatMul"]
    (weight,) = module.parameters()
    assert weight.numpy().tobytes() == w.tobytes()
    torch.testing.assert_close(module(X)[0], X.repeat(2, 8) @ weight)


@pytest.mark.parametrize("chosen", [True, False])
def test_a_known_branch_is_taken(chosen: bool) -> None:
    node = helper.make_node("If", ["on"], ["y"], then_branch=branch("Neg", "x"), else_branch=branch("Abs", "x"))
    torch.testing.assert_close(run(model([node], {"on": chosen})), -X if chosen else X.abs())


def test_of_branches_that_inputs_choose_each_result_is_picked() -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["on"]),
        helper.make_node("If", ["on"], ["y"], then_branch=branch("Neg", "x"), else_branch=branch("Abs", "x")),
    ]
    module = build_module(model(nodes, {"zero": np.float32(0)}), [X], "m.onnx")
    for x in (X, X.abs()):
        torch.testing.assert_close(module(x)[0], -x if x.sum() > 0 else x.abs())


def test_branches_of_which_one_does_not_run_are_refused() -> None:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["on"], to=TensorProto.BOOL),
        helper.make_node("If", ["on"], ["y"], then_branch=branch("Neg", "x"), else_branch=branch("Nothing", "x")),
    ]
    with pytest.raises(ModelError, match=r"computed from the model's inputs.*unless both branches run.*Nothing"):
        run(model(nodes))


def test_known_turns_are_unrolled() -> None:
    body = [
        helper.make_node("Add", ["s", "s"], ["z"]),
        helper.make_node("Less", ["i", "last"], ["on"]),
        helper.make_node("Constant", [], ["last"], value_int=2),
    ]
    body = [body[2], body[0], body[1]]
    torch.testing.assert_close(run(looped(10, body)), X * 8)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("Less", [True, False, True, False]),
        ("GreaterOrEqual", [False, True, False, True]),
        ("Equal", [False, False, False, False]),
    ],
)
def test_a_known_number_is_compared_from_the_left(operator: str, expected: list[bool]) -> None:
    assert run(model([helper.make_node(operator, ["a", "x"], ["y"])], {"a": np.float32(0)})).tolist() == [expected]


def test_a_split_into_one_part_is_nothing() -> None:
    module = build_module(
        model([helper.make_node("Split", ["x"], ["s"], axis=0), helper.make_node("Neg", ["s"], ["y"])]), [X], "m.onnx"
    )
    assert [step.node.operator for step in module.steps] == ["Neg"]


def test_loops_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MOST_NODES", 100)
    body = [helper.make_node("Add", ["s", "s"], ["z"]), helper.make_node("Identity", ["c"], ["on"])]
    with pytest.raises(ModelError, match="one of more than 100, loops unrolled"):
        run(looped(2**62, body))


@pytest.mark.parametrize(
    ("node", "weights", "reason"),
    [
        (("Relu", ["x"], {"slope": 1}), {}, r"\(Relu\) has an attribute that is not supported: 'slope'"),
        (("LeakyRelu", ["x"], {"alpha": "0.1"}), {}, "has str as alpha, float was expected"),
        (("Transpose", ["x"], {"perm": 1}), {}, "has another kind of perm, a list was expected"),
        (("Expand", ["x", "s"], {}), {"s": [2**40, 4]}, "makes a tensor of shape"),
        (("Tile", ["x", "s"], {}), {"s": [2**40, 1]}, "makes a tensor of shape"),
        (("ConstantOfShape", ["s"], {}), {"s": [2**20, 2**20]}, "makes a tensor of shape"),
        (("Range", ["a", "b", "c"], {}), {"a": 0, "b": 2**60, "c": 1}, "makes a tensor of shape"),
        (("Pad", ["x", "s"], {}), {"s": [0, 0, 2**40, 0]}, "makes a tensor of shape"),
        (("Resize", ["x", "", "", "s"], {}), {"s": [1, 2**40]}, "makes a tensor of shape"),
        (("Reshape", ["x", "x"], {}), {}, r"computes its input 2 from the model's inputs"),
        (("MatMul", ["x", "x"], {}), {}, r"\(MatMul\) cannot be computed in torch"),
        (("NonZero", ["x"], {}), {}, "computes its input 1 from the model's inputs"),
        (("RandomNormalLike", ["x"], {}), {}, "is 'RandomNormalLike', which has no counterpart in torch"),
        (("Relu", ["nothing"], {}), {}, "reads 'nothing', which nothing gives"),
        (("Relu", ["x"], {"axis": helper.make_graph([], "inner", [], [])}), {}, "neither number, word nor tensor"),
    ],
)
def test_what_is_refused_names_the_node(node: tuple[Any, ...], weights: Mapping[str, Any], reason: str) -> None:
    operator, inputs, attributes = node
    made = model([helper.make_node(operator, inputs, ["y"], name="odd", **attributes)], weights)
    with pytest.raises(ModelError, match=rf"m\.onnx: node 'odd'.*{reason}"):
        run(made)


def test_weights_of_strings_are_refused() -> None:
    made = model([helper.make_node("Relu", ["x"], ["y"])], {"text": np.array(["a"], object)})
    with pytest.raises(ModelError, match="weight 'text' holds string, which cannot go into the TFLite file"):
        run(made)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [0, 1, 1, 0], "ceil_mode": 1},
        {"kernel_shape": [2, 2], "strides": [1, 2], "auto_pad": "SAME_LOWER"},
        {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 2, 0, 1]},
    ],
)
def test_pools(operator: str, attributes: dict[str, Any]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 9, 8)).astype(np.float32)
    ends = [helper.make_tensor_value_info(*each) for each in (("x", TensorProto.FLOAT, x.shape), ("y", 1, None))]
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    (have,) = build_module(made, [torch.from_numpy(x)], "m.onnx")(torch.from_numpy(x))
    np.testing.assert_allclose(have.numpy(), want, atol=1e-5)


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.left = [{"x": rng.normal(size=(1, 4)).astype(np.float32)} for _ in range(8)]

    def get_next(self) -> dict[str, Any] | None:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("how", ["dynamic", QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_what_the_quantizers_write(tmp_path: Path, how: object) -> None:
    rng = np.random.default_rng(1)
    weights = {"w": rng.normal(size=(4, 8)), "v": rng.normal(size=(8, 4)), "k": rng.normal(size=(3, 1, 3))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Sigmoid", ["h"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["m"]),
        helper.make_node("Add", ["m", "x"], ["a"]),
        helper.make_node("Unsqueeze", ["a", "one"], ["u"]),
        helper.make_node("Conv", ["u", "k"], ["c"]),
        helper.make_node("LeakyRelu", ["c"], ["y"]),
    ]
    given = {name: value.astype(np.float32) for name, value in weights.items()}
    source, path = tmp_path / "fp32.onnx", tmp_path / "m.onnx"
    onnx.save(model(nodes, {**given, "one": np.array([1])}), str(source))
    if isinstance(how, QuantFormat):
        quantize_static(str(source), str(path), _Samples(), quant_format=how)
    else:
        quantize_dynamic(str(source), str(path))
    program = onnx_to_program(path, {"x": (1, 4)})  # compares it with onnxruntime
    assert program.module(check_guards=False)(X)[0].shape == (1, 3, 2)
