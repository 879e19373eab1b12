"""The smallest model of each format: what a call of the runtime costs when there is next to nothing to compute."""

from __future__ import annotations

from pathlib import Path

from edgepack.model.scheme import Format

NAME = "blank"
"""Of the one input, a float32; the output is `blank_y`, its absolute value."""


def write_blank(path: Path, fmt: Format) -> None:
    """Writes y = |x| for one float32."""
    (_write_onnx if fmt == "onnx" else _write_tflite)(path)


def _write_onnx(path: Path) -> None:
    from onnx import TensorProto, ValueInfoProto, helper, save

    def value(name: str) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])

    node = helper.make_node("Abs", [NAME], [f"{NAME}_y"])
    graph = helper.make_graph([node], NAME, [value(NAME)], [value(f"{NAME}_y")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _write_tflite(path: Path) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str) -> schema.TensorT:
        made = schema.TensorT()
        made.shape, made.type, made.buffer, made.name = [1], schema.TensorType.FLOAT32, 0, name.encode()
        return made

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ABS
    code.version = 1
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs = [tensor(NAME), tensor(f"{NAME}_y")], [0], [1]
    graph.operators = [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(builder.Output())
