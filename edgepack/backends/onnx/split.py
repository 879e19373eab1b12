"""Cut an ONNX file into consecutive models, layer by layer, that run with the kernels of the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.backends.onnx.file import EXTERNAL_BYTES, load, save, to_bytes
from edgepack.backends.onnx.fusions import Flow, linears, own_nodes, products
from edgepack.backends.onnx.session import session
from edgepack.backends.onnx.tensors import weight_bytes
from edgepack.backends.segments import Cut, LayerShape, Segment, Step, cut, names, place, values_by_layer
from edgepack.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort

    Described = tuple[ir.TypeProtocol, ir.Shape | None]

_ORT_TYPES = {"float": "FLOAT", "double": "DOUBLE"}
"""Names that the runtime has for element types where they differ from ONNX's in more than case."""

_SHIFT = 128


def split_onnx(
    path: Path, layers: Sequence[LayerShape], folder: Path, *, unsigned: bool = False
) -> tuple[Segment, ...]:
    """Write a model as consecutive models: one per place of a layer, and one for all that lies between two of them.

    A layer's segment holds its one or two products, the quantizing, scaling and bias nodes that are its own, and a
    single activation that follows. It ends at a value that the runtime still computes after its optimisation, so the
    whole model's fusions take place in the segment as well. Constants, and DequantizeLinear nodes, are repeated in
    every segment that needs them. Nodes that no output needs are left out.

    Running the segments in turn, with `values.update(run(segment, {name: values[name] for its inputs}))`, gives the
    whole model's outputs. Inputs and outputs keep the names that the values have in the model.

    Args:
        path: the model.
        layers: its linear layers in graph order.
        folder: where the files go: 000.onnx, 001.onnx, …; must exist.
        unsigned: let int8 values between segments be uint8. On x86 the runtime moves all int8 data of a graph to the
            unsigned grid, which it cannot do with inputs and outputs; set this for a segment to run as it would there.

    Returns:
        The segments in order of execution.

    Raises:
        ModelError: the file cannot be read or run; it has control flow or functions; a value between two segments is
            not a tensor; there are too many segments.
        OutputError: a file cannot be written.
    """
    model = load(path)
    _require_plain(model, path)
    nodes = list(model.graph)
    flow = Flow(nodes, _survivors(model, path, folder))
    found = products(nodes, flow)
    placements = place(linears(found, flow), layers)
    owner = own_nodes(found, placements, flow)
    kept = [node for node in nodes if node not in flow.copied or any(v.is_graph_output() for v in node.outputs)]
    steps = [Step(_sources(node.inputs, flow), tuple(node.outputs)) for node in kept]
    cuts = cut(steps, [_owner_of(node, owner, flow) for node in kept], list(model.graph.outputs))
    if not cuts:
        raise ModelError(f"{path}: no operator computes an output, there is nothing to split")
    crossing = dict.fromkeys(value for one in cuts for value in (*one.inputs, *one.outputs))
    if unsigned:
        to_unsigned(model, crossing)
    described = _described(model, crossing, folder)
    order = {node: i for i, node in enumerate(nodes)}
    segments = []
    for number, (one, name) in enumerate(zip(cuts, names(cuts, placements, layers), strict=True)):
        members = _with_copies([kept[i] for i in one.steps], flow)
        extra = _constant_outputs(model) if number == len(cuts) - 1 else []
        part = _part(model, sorted(members, key=order.__getitem__), one, extra, described)
        file = folder / f"{number:03}.onnx"
        save(part, file)
        segments.append(Segment(name, one.owner is not None, file))
    return tuple(segments)


def layer_values(path: Path, layers: Sequence[LayerShape]) -> dict[str, tuple[str, ...]]:
    """See `Backend.layer_values`."""
    model = load(path)
    nodes = list(model.graph)
    flow = Flow(nodes, {value.name for node in nodes for value in node.outputs if value.name})
    found = products(nodes, flow)
    values = [product.node.outputs[0].name or "" for product in found]
    return values_by_layer(place(linears(found, flow), layers), layers, values)


def _require_plain(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir

    if model.functions:
        raise ModelError(f"{path}: found functions, expected plain operators", hint="count the whole model only")
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise ModelError(
                f"{path}: found control flow ({node.op_type}), expected a graph without branches and loops",
                hint="count the whole model only",
            )


def _survivors(model: ir.Model, path: Path, folder: Path) -> set[str]:
    """Names of the values that the runtime still computes after its optimisation."""
    import onnx

    if weight_bytes(model) > EXTERNAL_BYTES:  # the runtime cannot write it
        return {value.name for node in model.graph for value in node.outputs if value.name}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        session(path, optimized_path=optimized)
        graph = onnx.load(optimized, load_external_data=False).graph
        return {name for node in graph.node for name in node.output}


def _sources(values: Iterable[ir.Value | None], flow: Flow) -> tuple[ir.Value, ...]:
    """What must be there before a node with these inputs can run: constants left out, copied nodes seen through."""
    found: dict[ir.Value, None] = {}
    for value in values:
        if value is None or flow.is_constant(value):
            continue
        node = value.producer()
        if node is not None and node in flow.copied:
            found.update(dict.fromkeys(_sources(node.inputs, flow)))
        else:
            found[value] = None
    return tuple(found)


def _owner_of(node: ir.Node, owner: Mapping[ir.Node, int], flow: Flow) -> int | None:
    """Whose node it is; a DequantizeLinear that gives an output of the model belongs with its only source."""
    value = node.inputs[0] if node in flow.copied and node.inputs else None
    if value is not None and flow.sole_reader(value) is node and (producer := value.producer()) is not None:
        return owner.get(producer)
    return owner.get(node)


def _with_copies(members: Sequence[ir.Node], flow: Flow) -> set[ir.Node]:
    """The nodes and all copied nodes that they need."""
    found, waiting = set(members), list(members)
    while waiting:
        for value in waiting.pop().inputs:
            node = None if value is None else value.producer()
            if node is not None and node in flow.copied and node not in found:
                found.add(node)
                waiting.append(node)
    return found


def _constant_outputs(model: ir.Model) -> list[ir.Value]:
    """Outputs of the model that are initializers: no node computes them."""
    return [value for value in model.graph.outputs if value.is_initializer()]


def _described(model: ir.Model, values: Collection[ir.Value], scratch: Path) -> Mapping[ir.Value, Described]:
    """Type and shape of each value as the runtime infers them in the whole model, or as the model states them."""
    import onnx_ir as ir

    outside = {*model.graph.inputs, *model.graph.outputs}
    found: dict[ir.Value, Described] = {v: (v.type, v.shape) for v in values if v in outside and v.type is not None}
    asked = [value for value in values if value not in found]
    original = list(model.graph.outputs)
    try:
        model.graph.outputs.extend(value for value in asked if value not in outside)
        types = {argument.name: argument for argument in _plain_session(model, scratch).get_outputs()}
    finally:
        model.graph.outputs[:] = original
    for value in asked:
        kind, shape = types[value.name].type, types[value.name].shape
        if not kind.startswith("tensor("):
            raise ModelError(f"{value.name!r} would pass between segments and is a {kind}, expected a tensor")
        element = kind[len("tensor(") : -1]
        dtype = ir.DataType[_ORT_TYPES.get(element, element.upper())]
        found[value] = ir.TensorType(dtype), None if shape is None else ir.Shape(shape)
    return found


def _plain_session(model: ir.Model, scratch: Path) -> ort.InferenceSession:
    """The model as it stands: without optimisation, every value is still there."""
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        if weight_bytes(model) <= EXTERNAL_BYTES:
            return ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            save(model, Path(folder) / "model.onnx")
            return ort.InferenceSession(Path(folder) / "model.onnx", options, providers=["CPUExecutionProvider"])
    except (state.Fail, state.InvalidGraph, state.InvalidArgument, state.NotImplemented, state.RuntimeException) as err:
        raise ModelError(f"onnxruntime does not show the values inside of the model: {err}") from err


def _part(
    model: ir.Model,
    members: Sequence[ir.Node],
    one: Cut[ir.Value],
    extra: Sequence[ir.Value],
    described: Mapping[ir.Value, Described],
) -> ir.Model:
    """A model of these nodes; tensors are shared with the given one, everything else is new."""
    import onnx_ir as ir

    twins: dict[ir.Value, ir.Value] = {}

    def twin(value: ir.Value) -> ir.Value:
        if value not in twins:
            kind, shape = described.get(value, (value.type, value.shape))
            twins[value] = ir.Value(name=value.name, type=kind, shape=shape, const_value=value.const_value)
        return twins[value]

    nodes = [
        ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else twin(value) for value in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            outputs=[twin(value) for value in node.outputs],
            version=node.version,
            name=node.name,
        )
        for node in members
    ]
    outputs = [twin(value) for value in (*one.outputs, *extra)]
    constants = [value for value in twins if value.is_initializer()]
    listed = [twins[value] for value in model.graph.inputs if value in twins and value.is_initializer()]
    graph = ir.Graph(
        [*(twin(value) for value in one.inputs), *listed],
        outputs,
        nodes=nodes,
        initializers=[twins[value] for value in constants],
        opset_imports=dict(model.graph.opset_imports),
        name=model.graph.name,
    )
    return ir.Model(graph, ir_version=model.ir_version)


def to_unsigned(model: ir.Model, values: Iterable[ir.Value]) -> None:
    """Give int8 values between a QuantizeLinear and its DequantizeLinear the type uint8, zero point and all up by 128.

    The numbers that they stand for stay the same. Values that are made or used otherwise are left alone, as the runtime
    leaves them alone: also those that several DequantizeLinear nodes read, or one on behalf of several nodes.

    Args:
        model: changed in place.
        values: the candidates; all others stay signed.
    """
    import onnx_ir as ir

    moved: dict[ir.Value, ir.Value] = {}
    for value in values:
        node = value.producer()
        pair = [] if node is None else [node, *(user for user, _ in value.uses())]
        if value.is_graph_output() or not _is_signed_pair(pair):
            continue
        for user in pair:
            zero = user.inputs[2]
            if zero is not None:
                if zero not in moved:
                    moved[zero] = _moved(model, zero)
                user.replace_input_with(2, moved[zero])
        value.type = ir.TensorType(ir.DataType.UINT8)


def _is_signed_pair(nodes: list[ir.Node]) -> bool:
    """A QuantizeLinear and the DequantizeLinear that reads it for one node, both with a constant int8 zero point."""
    if [node.op_type for node in nodes] != ["QuantizeLinear", "DequantizeLinear"]:
        return False
    result = nodes[1].outputs[0]
    if len(result.uses()) + result.is_graph_output() > 1 or "output_dtype" in nodes[0].attributes:
        return False
    zeros = [node.inputs[2] if len(node.inputs) > 2 else None for node in nodes]
    tensors = [None if zero is None or not zero.is_initializer() else zero.const_value for zero in zeros]
    return all(tensor is not None and tensor.dtype.name == "INT8" for tensor in tensors)


def _moved(model: ir.Model, zero: ir.Value) -> ir.Value:
    import onnx_ir as ir

    if zero.const_value is None:
        raise ValueError(f"the zero point {zero.name!r} is not constant")
    array = (zero.const_value.numpy().astype(np.int16) + _SHIFT).astype(np.uint8)
    name = f"{zero.name}.unsigned"
    while name in model.graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    made = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(made)
    return made
