"""ONNX files that no exporter writes: by hand, each against one bound, and by chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from hardening.case import Case
from hardening.mutate import mutated
from hardening.things import Things

MUTATED = 140
INSPECTED = ("inspect", "{}")
BUILT = ("build", "{}", "--target", "rpi4", "--rank", "2", "--formats", "onnx", "--max-drop", "100", "--out", "{out}")


def wrong_graphs(things: Things, seed: int) -> Iterator[Case]:
    """All of them, written beside the sound ones."""
    folder = things.wrong / "onnx"
    folder.mkdir(exist_ok=True)
    good = things.onnx.read_bytes()
    files = {name: make().SerializeToString() for name, make in CRAFTED.items()}
    files |= _texts(good)
    rng = random.Random(seed)
    files |= {f"mutated {number}": mutated(good, rng) for number in range(MUTATED)}
    for number, (name, content) in enumerate(files.items()):
        path = folder / f"{number}.onnx"
        path.write_bytes(content)
        commands = [INSPECTED, BUILT] if name in CRAFTED else [(INSPECTED, BUILT)[number % 2]]
        for command in commands:
            yield Case("onnx", f"{command[0]} {name}", tuple(part.replace("{}", str(path)) for part in command))


def _texts(good: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut": good[: len(good) // 2],
        "twice": good + good,
        "text": b"hello\n" * 100,
        "zip": b"PK\x03\x04" + b"\0" * 100,
        "hdf": b"\x89HDF\r\n\x1a\n",
        "zeros": b"\0" * 1000,
        "ones": b"\xff" * 1000,
        "nested protobuf": b"\x3a\x80\x80\x80\x08" * 20000,
    }


def _model(nodes: list[Any], weights: Mapping[str, Any] | None = None, **given: Any) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    shape = given.pop("shape", [1, 16])
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **given)


def _gemm(weight: Any | None = None) -> list[Any]:
    from onnx import helper

    return [helper.make_node("MatMul", ["x", "w"], ["y"])]


def _w(value: float = 0.5) -> Mapping[str, Any]:
    rng = np.random.default_rng(0)
    return {"w": (rng.standard_normal((16, 8)) * value).astype(np.float32)}


def _nested_functions() -> Any:
    """f0 calls f1 twice, f1 calls f2 twice, … 40 deep."""
    from onnx import helper

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    made = []
    for depth in range(40):
        inner = ("Relu", "") if depth == 39 else (f"f{depth + 1}", "f")
        nodes = [
            helper.make_node(inner[0], ["a"], ["b"], domain=inner[1]),
            helper.make_node(inner[0], ["b"], ["c"], domain=inner[1]),
        ]
        made.append(helper.make_function("f", f"f{depth}", ["a"], ["c"], nodes, opsets))
    nodes = [helper.make_node("f0", ["x"], ["h"], domain="f"), helper.make_node("MatMul", ["h", "w"], ["y"])]
    return _model(nodes, _w(), functions=made)


def _circular_functions() -> Any:
    from onnx import helper

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    made = [
        helper.make_function("f", name, ["a"], ["b"], [helper.make_node(other, ["a"], ["b"], domain="f")], opsets)
        for name, other in (("p", "q"), ("q", "p"))
    ]
    nodes = [helper.make_node("p", ["x"], ["h"], domain="f"), helper.make_node("MatMul", ["h", "w"], ["y"])]
    return _model(nodes, _w(), functions=made)


def _chain(length: int) -> Any:
    from onnx import helper

    nodes = [helper.make_node("Relu", ["x" if n == 0 else f"v{n - 1}"], [f"v{n}"]) for n in range(length)]
    return _model([*nodes, helper.make_node("MatMul", [f"v{length - 1}", "w"], ["y"])], _w())


def _nested_branches(depth: int) -> Any:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [], [value])
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph)
        if graph.ByteSize() > 2**20:
            break
        graph = helper.make_graph([node], "b", [], [value])
    nodes = [
        helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    return _model(nodes, {**_w(), "c": np.array(True)})


def _deep_branches(depth: int) -> Any:
    """As deep as protobuf reads, one branch at a time."""
    import onnx
    from onnx import helper

    inner = onnx.GraphProto(name="b")
    inner.node.append(helper.make_node("Relu", ["x"], ["z"]))
    for _ in range(depth):
        outer = onnx.GraphProto(name="b")
        node = outer.node.add(op_type="If", input=["c"], output=["z"])
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        attribute.g.CopyFrom(inner)
        inner = outer
    model = _model([helper.make_node("MatMul", ["z", "w"], ["y"])], {**_w(), "c": np.array(True)})
    node = onnx.NodeProto()
    node.CopyFrom(model.graph.node[0])
    del model.graph.node[:]
    model.graph.node.extend([*inner.node, node])
    return model


def _loop(count: int) -> Any:
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["c_in"], ["c_out"]), helper.make_node("Relu", ["v_in"], ["v_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.FLOAT, None),
        ],
    )
    nodes = [helper.make_node("Loop", ["m", "c", "x"], ["h"], body=body), helper.make_node("MatMul", ["h", "w"], ["y"])]
    return _model(nodes, {**_w(), "m": np.array(count, np.int64), "c": np.array(True)})


def _loops_in_loops() -> Any:
    model = _loop(2**31)
    inner = _loop(2**31).graph.node[0]
    body = model.graph.node[0].attribute[0].g
    inner.input[:] = ["m", "c", "v_in"]
    inner.output[:] = ["v_out"]
    body.node[1].CopyFrom(inner)
    return model


def _filled(op: str, size: int, *more: int) -> Any:
    """A tensor of so many numbers that the file does not hold."""
    from onnx import helper

    made = {
        "ConstantOfShape": (["s"], {}),
        "Expand": (["one", "s"], {}),
        "Tile": (["ones", "s"], {}),
        "Range": (["zero", "end", "step"], {}),
        "OneHot": (["index", "depth", "pair"], {}),
        "Resize": (["image", "", "", "sizes"], {}),
        "Pad": (["ones", "pads"], {}),
    }[op]
    weights: dict[str, Any] = {
        **_w(),
        "s": np.array([size, *more], np.int64),
        "one": np.ones(1, np.float32),
        "ones": np.ones(1, np.float32),
        "zero": np.float32(0),
        "end": np.float32(size),
        "step": np.float32(1),
        "index": np.array([0]),
        "depth": np.array(size),
        "pair": np.array([0, 1], np.float32),
        "image": np.ones((1, 1, 2, 2), np.float32),
        "sizes": np.array([1, 1, size, 2]),
        "pads": np.array([0, size]),
    }
    nodes = [
        helper.make_node(op, made[0], ["big"]),
        helper.make_node("ReduceMean", ["big"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["x", "mean"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    used = {name for node in nodes for name in node.input}
    return _model(nodes, {name: np.asarray(value) for name, value in weights.items() if name in used})


def _dimension(*dims: int, raw: bytes = b"", data_type: int = 1) -> Any:
    model = _model(_gemm(), _w())
    weight = model.graph.initializer[0]
    weight.dims[:], weight.raw_data, weight.data_type = dims, raw, data_type
    return model


def _external(location: str, offset: str = "0", length: str = "512") -> Any:
    model = _model(_gemm(), _w())
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = 1
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=value)
    return model


def _names(name: str) -> Any:
    model = _model(_gemm(), _w())
    model.graph.node[0].input[1] = name
    model.graph.initializer[0].name = name
    model.graph.input[0].name = model.graph.node[0].input[0] = f"in {name}"
    model.graph.output[0].name = model.graph.node[0].output[0] = f"out {name}"
    return model


def _operator(op: str, domain: str = "", **attributes: Any) -> Any:
    from onnx import helper

    node = helper.make_node(op, ["x"], ["h"], domain=domain, **attributes)
    return _model([node, helper.make_node("MatMul", ["h", "w"], ["y"])], _w())


def _conv(**attributes: Any) -> Any:
    from onnx import helper

    weight = {"w": np.ones((4, 3, 3, 3), np.float32)}
    return _model([helper.make_node("Conv", ["x", "w"], ["y"], **attributes)], weight, shape=[1, 3, 8, 8])


def _many_outputs() -> Any:
    from onnx import helper

    model = _model([helper.make_node("Split", ["x"], [f"o{n}" for n in range(20000)], axis=1)])
    model.graph.output[0].name = "o0"
    return model


CRAFTED: Mapping[str, Callable[[], Any]] = {
    "functions 2**40": _nested_functions,
    "functions in a circle": _circular_functions,
    "50,000 nodes deep": lambda: _chain(50_000),
    "5,000 nodes deep": lambda: _chain(5_000),
    "branches 2**15": lambda: _nested_branches(15),
    "branches 30 deep": lambda: _deep_branches(30),
    "endless loop": lambda: _loop(2**62),
    "loop of 2**31": lambda: _loop(2**31),
    "loop in a loop": _loops_in_loops,
    "loop of -1": lambda: _loop(-1),
    **{
        f"{op} of {size:.0e}": (lambda op=op, size=size: _filled(op, size))
        for op in ("ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Resize", "Pad")
        for size in (2 * 10**9, 2**40, -5)
    },
    "ConstantOfShape of 2**62": lambda: _filled("ConstantOfShape", 2**62),
    "ConstantOfShape overflows": lambda: _filled("ConstantOfShape", 2**32, 2**32),
    "batch of 1e9": lambda: _model(_gemm(), _w(), shape=[10**9, 16]),
    "batch of 2**62": lambda: _model(_gemm(), _w(), shape=[2**62, 16]),
    "batch of 4e6": lambda: _model(_gemm(), _w(), shape=[4 * 10**6, 16]),
    "input of 1000 axes": lambda: _model(_gemm(), _w(), shape=[1] * 1000),
    "input of no axes": lambda: _model(_gemm(), _w(), shape=[]),
    "input of 2147483647 rows": lambda: _model(_gemm(), _w(), shape=["n", 2147483647, 16]),
    "dimension 2**60": lambda: _dimension(2**60, 1),
    "dimensions overflow": lambda: _dimension(2**32, 2**32, 2**32),
    "dimension 2147483647": lambda: _dimension(2147483647, 16),
    "dimension 0": lambda: _dimension(0, 2**62),
    "dimensions 100": lambda: _dimension(*[1] * 100, raw=b"\0" * 4),
    "dimension -1": lambda: _dimension(-1, 16),
    "too few bytes": lambda: _dimension(16, 8, raw=b"\0" * 5),
    "strings as weights": lambda: _dimension(16, 8, raw=b"\0" * 512, data_type=8),
    "type 9999": lambda: _dimension(16, 8, raw=b"\0" * 512, data_type=9999),
    "complex weights": lambda: _dimension(16, 8, raw=b"\0" * 1024, data_type=14),
    "int4 weights": lambda: _dimension(16, 8, raw=b"\0" * 64, data_type=22),
    "float8 weights": lambda: _dimension(16, 8, raw=b"\0" * 128, data_type=17),
    **{f"weights of {value:g}": (lambda value=value: _model(_gemm(), _w(value))) for value in (1e38, 1e30, 1e-44, 0.0)},
    "weights nan": lambda: _model(_gemm(), {"w": np.full((16, 8), np.nan, np.float32)}),
    "weights inf": lambda: _model(_gemm(), {"w": np.full((16, 8), np.inf, np.float32)}),
    **{
        f"external {location[:24]!r}": (lambda location=location: _external(location))
        for location in (
            "/etc/passwd",
            "../good.onnx",
            "missing.data",
            "",
            ".",
            "a\0b",
            "n" * 5000,
            "/dev/zero",
            "/proc/self/mem",
            "pipe",
            "\x1b[2J",
        )
    },
    "external offset": lambda: _external("0.onnx", offset=str(2**62)),
    "external offset text": lambda: _external("0.onnx", offset="9" * 5000),
    "external offset minus": lambda: _external("0.onnx", offset="-1"),
    "external length": lambda: _external("0.onnx", length=str(2**62)),
    **{
        f"names {name[:16]!r}": (lambda name=name: _names(name))
        for name in ("", "\x1b[31m", "../../x", "n" * 100_000, "a\0b", "{__import__('os')}", "\n\n", "\u202e", "%s%n")
    },
    "operator unknown": lambda: _operator("Nothing"),
    "operator of a stranger": lambda: _operator("Gemm", "com.evil"),
    "operator escape": lambda: _operator("\x1b[31mRed"),
    "Cast to nothing": lambda: _operator("Cast", to=9999),
    "Softmax axis": lambda: _operator("Softmax", axis=2**62),
    "Transpose": lambda: _operator("Transpose", perm=[5, 7]),
    "Concat axis": lambda: _operator("Concat", axis=-(2**63)),
    "Flatten": lambda: _operator("Flatten", axis=100),
    "LSTM of nothing": lambda: _operator("LSTM", hidden_size=2**40),
    "Conv pads": lambda: _conv(pads=[2**40] * 4),
    "Conv pads 1e5": lambda: _conv(pads=[100_000] * 4),
    "Conv strides 0": lambda: _conv(strides=[0, 0]),
    "Conv strides -1": lambda: _conv(strides=[-1, -1]),
    "Conv dilations": lambda: _conv(dilations=[2**40, 2**40]),
    "Conv group 0": lambda: _conv(group=0),
    "Conv group": lambda: _conv(group=-3),
    "Conv kernel": lambda: _conv(kernel_shape=[2**31, 3]),
    "20,000 outputs": _many_outputs,
    "no nodes": lambda: _model([]),
}
