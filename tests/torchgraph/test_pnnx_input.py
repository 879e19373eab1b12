"""What pnnx is given of an ONNX graph: numbers, operators and words that ONNX defines."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, defs, helper, numpy_helper

from edgepack.errors import ModelError
from edgepack.torchgraph import pnnx_input

VERSION = defs.onnx_opset_version()
WORDS = (AttributeProto.STRING, AttributeProto.STRINGS)


def words() -> list[tuple[str, str]]:
    """Every (operator, attribute) of ONNX whose value is text, in the newest version that has it."""
    return sorted(
        (schema.name, attribute.name)
        for schema in defs.get_all_schemas()
        if schema.domain == "" and not schema.deprecated
        for attribute in schema.attributes.values()
        if int(attribute.type.value) in WORDS
    )


def model(node: onnx.NodeProto) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", VERSION)])


def holding(operator: str, attribute: str, value: str) -> onnx.ModelProto:
    """A graph of one node with that attribute."""
    kind = defs.get_schema(operator, VERSION).attributes[attribute].type
    several = int(kind.value) == AttributeProto.STRINGS
    return model(helper.make_node(operator, ["x"], ["y"], **{attribute: [value] if several else value}))


def test_there_are_words_to_look_at() -> None:
    assert len(words()) > 30
    assert ("ScatterElements", "reduction") in words()


@pytest.mark.parametrize("value", ["',z=1,w='", "torch.os", "", "x\n", "none() ", "NONE'", "\\", '"""', "𝐧one"])
@pytest.mark.parametrize(("operator", "attribute"), words())
def test_words_are_onnx_own(operator: str, attribute: str, value: str) -> None:
    with pytest.raises(ModelError, match=rf"\({operator}\): {attribute} is "):
        pnnx_input.neutral(holding(operator, attribute, value), "m.onnx")


@pytest.mark.parametrize(("operator", "attribute"), words())
def test_the_default_is_permitted(operator: str, attribute: str) -> None:
    """Of every operator that could become torch."""
    default = defs.get_schema(operator, VERSION).attributes[attribute].default_value.s.decode()
    never = ("CausalConvWithState", "ImageDecoder", "LinearAttention", "StringNormalizer")
    if default and operator not in never:
        pnnx_input.neutral(holding(operator, attribute, default), "m.onnx")


@pytest.mark.parametrize("equation", ["ij,jk->ik", "...ij -> ...ji", "ij", "bhid, bhjd -> bhij", "i,i->"])
def test_equations(equation: str) -> None:
    pnnx_input.neutral(holding("Einsum", "equation", equation), "m.onnx")


@pytest.mark.parametrize("value", ["Tanh", "tanh", "LeakyRelu"])
def test_activations_in_either_case(value: str) -> None:
    pnnx_input.neutral(holding("LSTM", "activations", value), "m.onnx")


def test_attributes_that_are_no_data() -> None:
    inner = helper.make_graph([], "inner", [], [])
    for value, says in (
        (inner, "is a graph"),
        (helper.make_tensor_type_proto(TensorProto.FLOAT, [1]), "is a type_proto"),
    ):
        attribute = helper.make_attribute("axes", value)
        node = helper.make_node("Relu", ["x"], ["y"])
        node.op_type = "ReduceL1"
        node.attribute.append(attribute)
        with pytest.raises(ModelError, match="ONNX does not define"):
            pnnx_input.neutral(model(node), "m.onnx")
        node.op_type = "Softmax"
        attribute.name = "axis"
        del node.attribute[:]
        node.attribute.append(attribute)
        with pytest.raises(ModelError, match=says):
            pnnx_input.neutral(model(node), "m.onnx")
    node = helper.make_node("Relu", ["x"], ["y"], **{"x') or (": 1})
    with pytest.raises(ModelError, match="ONNX does not define"):
        pnnx_input.neutral(model(node), "m.onnx")


def test_operators_outside_of_onnx() -> None:
    for node in (
        helper.make_node("Relu", ["x"], ["y"], domain="other"),
        helper.make_node("Reluu", ["x"], ["y"]),
        helper.make_node("Relu(x); y", ["x"], ["y"]),
    ):
        with pytest.raises(ModelError, match="outside of ONNX"):
            pnnx_input.neutral(model(node), "m.onnx")


def test_weights_of_strings() -> None:
    made = model(helper.make_node("Relu", ["x"], ["y"]))
    made.graph.initializer.append(numpy_helper.from_array(np.array(["a"], object), "text"))
    with pytest.raises(ModelError, match="weight 'text' holds strings"):
        pnnx_input.neutral(made, "m.onnx")
    constant = helper.make_node("Constant", [], ["y"], value=helper.make_tensor("t", TensorProto.STRING, [1], ["a"]))
    with pytest.raises(ModelError, match="'value' holds strings"):
        pnnx_input.neutral(model(constant), "m.onnx")


def test_no_word_of_the_file_is_left() -> None:
    secret = "secret"
    ends = [helper.make_tensor_value_info(f"{secret}{n}", TensorProto.FLOAT, [f"{secret}n", 2]) for n in range(2)]
    value = helper.make_tensor(f"{secret}t", TensorProto.FLOAT, [1], [1.0])
    value.doc_string = secret
    nodes = [
        helper.make_node("Constant", [], [f"{secret}c"], value=value, name=secret, doc_string=secret),
        helper.make_node("Clip", [f"{secret}0", "", f"{secret}w"], [f"{secret}h"], name=f"{secret}n"),
        helper.make_node("Add", [f"{secret}h", f"{secret}c"], [f"{secret}1"]),
    ]
    graph = helper.make_graph(nodes, secret, ends[:1], ends[1:], [helper.make_tensor(f"{secret}w", 1, [], [3.0])])
    graph.doc_string = secret
    graph.value_info.append(helper.make_tensor_value_info(f"{secret}h", TensorProto.FLOAT, [f"{secret}n", 2]))
    graph.value_info.append(helper.make_tensor_value_info(f"{secret}other", TensorProto.FLOAT, [1]))
    graph.quantization_annotation.add(tensor_name=secret)
    graph.node[0].metadata_props.add(key=secret, value=secret)
    graph.node[0].attribute[0].doc_string = secret
    graph.metadata_props.add(key=secret, value=secret)
    graph.output[0].type.denotation = secret
    graph.output[0].doc_string = secret
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(secret, 1)])
    made.producer_name = made.doc_string = made.domain = secret
    helper.set_model_props(made, {secret: secret})
    body = helper.make_node("Relu", [secret], [f"{secret}o"])
    made.functions.append(
        helper.make_function(secret, secret, [secret], [f"{secret}o"], [body], [helper.make_opsetid("", 20)])
    )
    names = pnnx_input.neutral(made, "m.onnx")
    assert secret.encode() not in made.SerializeToString()
    assert names == {f"{secret}{old}": f"t{new}" for new, old in enumerate("0wch1")}
    onnx.checker.check_model(made)
    assert list(made.graph.node[1].input) == ["t0", "", "t1"]
    assert numpy_helper.to_array(made.graph.initializer[0]) == 3.0
    assert numpy_helper.to_array(made.graph.node[0].attribute[0].t).tolist() == [1.0]
