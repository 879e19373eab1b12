"""Tensors found in an ONNX file's bytes: those that the parsed message holds, wherever they are."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgepack.onnxgraph.tensor_spans import tensor_spans

node = helper.make_node


def content() -> bytes:
    """A model with tensors of several types in the graph, a branch, a function, a Constant and a sparse tensor."""

    def constant(name: str, *shape: int, dtype: type = np.float32) -> TensorProto:
        values = np.random.default_rng(len(name)).integers(0, 100, shape)
        return numpy_helper.from_array(values.astype(dtype), name)

    four = helper.make_tensor("four", TensorProto.INT4, [3, 5], bytes(range(8)), raw=True)
    listed = helper.make_tensor("listed", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Identity", ["inner"], ["o"])], "b", [], [out], [constant("inner", 6)])
    sparse = helper.make_sparse_tensor(constant("values", 2), constant("places", 2, dtype=np.int64), [50])
    nodes = [
        node("Constant", [], ["c"], value=constant("value", 2, 3, dtype=np.int8)),
        node("If", ["cond"], ["y"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes, "g", [], [], [constant("w", 7, 9), constant("q", 4, 5, dtype=np.uint8), four, listed]
    )
    graph.sparse_initializer.append(sparse)
    inside = [node("Constant", [], ["k"], value=constant("function", 3))]
    function = helper.make_function("mine", "F", [], ["k"], inside, [helper.make_opsetid("", 21)])
    model: onnx.ModelProto = helper.make_model(graph, functions=[function])
    return model.SerializeToString()


EXPECTED = {
    "w": (32, (7, 9)),
    "q": (8, (4, 5)),
    "four": (4, (3, 5)),
    "listed": (32, (4,)),
    "inner": (32, (6,)),
    "value": (8, (2, 3)),
    "values": (32, (2,)),
    "places": (64, (2,)),
    "function": (32, (3,)),
}


def test_every_tensor_is_found_where_it_is() -> None:
    data = content()
    found = tensor_spans(data)
    assert {span.name: (span.bits, span.shape) for span in found} == EXPECTED
    assert len(found) == len(EXPECTED) + 1, "both branches"
    graph = onnx.load_from_string(data).graph
    for tensor in graph.initializer:
        span = next(span for span in found if span.name == tensor.name)
        expected = tensor.raw_data or np.array(tensor.float_data, "<f4").tobytes()
        assert data[span.offset : span.offset + span.size_bytes] == expected


def test_data_that_do_not_fit_their_shape_are_left_out() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.INT8, dims=[3], raw_data=b"12")
    graph = helper.make_graph([], "g", [], [], [tensor])
    assert tensor_spans(helper.make_model(graph).SerializeToString()) == []


@given(st.binary(max_size=300) | st.binary(max_size=20).map(lambda noise: content()[:-25] + noise))
def test_noise_gives_spans_inside_or_none(data: bytes) -> None:
    for span in tensor_spans(data):
        assert span.offset >= 0
        assert span.offset + span.size_bytes <= len(data)


@given(st.integers(0, len(content()) - 1), st.integers(1, 255))
def test_a_damaged_file_does_no_harm(place: int, change: int) -> None:
    data = bytearray(content())
    data[place] ^= change
    for span in tensor_spans(bytes(data)):
        assert span.offset + span.size_bytes <= len(data)
