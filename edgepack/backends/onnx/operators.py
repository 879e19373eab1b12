"""The operators of an ONNX file as ONNX Runtime executes them, behind its own optimisation.

Its profiler says what ran, on which shapes and how long; the optimised graph says by which constants.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from edgepack.backends.onnx.decoded import tensor_of
from edgepack.backends.onnx.file import EXTERNAL_BYTES, load, read
from edgepack.backends.onnx.kinds import FACTORS, sides
from edgepack.backends.onnx.kinds.recurrent import GATES, QUANTIZED
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, NBITS8
from edgepack.backends.onnx.session import Profile, run, session
from edgepack.backends.onnx.tensors import all_graphs, weight_bytes
from edgepack.backends.operators import UNROLLED, Doubt, Operator, convolution, matrix_product
from edgepack.model.layer import WEIGHT
from edgepack.model.scheme import Scheme
from edgepack.model.structure import Op
from edgepack.model.types import Array

if TYPE_CHECKING:
    import onnx_ir as ir

    Shape = tuple[int, ...]

RUNS = 30
"""Of a model that is timed; the profiler counts whole microseconds."""
MOST_STEPS = 4096
"""Of a recurrence whose products are listed one by one."""
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "ConvInteger", "QLinearConv"})
_SCHEMES: Mapping[str, Scheme | None] = {
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", *GATES), FP32),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", QUANTIZED), INT8_DYNAMIC),
    **dict.fromkeys(("QLinearMatMul", "QGemm", "QLinearConv"), INT8_STATIC),
    "ConvInteger": None,
}
_BITS: Mapping[int, Scheme] = {8: NBITS8, 4: NBITS4}
_SUFFIX = "_kernel_time"
_AROUND = frozenset({"If", "Loop", "Scan"})
"""Operators whose time is that of what they run, which stands for itself."""


@dataclass(frozen=True)
class _Ran:
    """What the profiler says of one operator, all its runs in an inference together."""

    kind: str
    seconds: float
    given: Sequence[tuple[str, Shape]]
    result: Shape


def operators(path: Path, feed: Mapping[str, Array], *, timed: bool, unsigned: bool) -> tuple[Operator, ...]:
    """See `Backend.operators`."""
    model = load(path)
    _name_nodes(model)
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder, "optimized.onnx")
        small = weight_bytes(model) <= EXTERNAL_BYTES  # larger ones the runtime does not write
        profile = Profile(Path(folder, "profile"), elsewhere=not timed, unsigned=unsigned)
        opened = session(model, optimized_path=optimized if small else None, profile=profile)
        runs = RUNS if timed else 1
        for _ in range(runs):
            run(opened, None, feed)
        ran = _ran(json.loads(Path(opened.end_profiling()).read_text()))
        graph = read(optimized) if small else model
        nodes = {str(node.name): node for part in all_graphs(graph) for node in part}
        steps = _steps(nodes.values())
        found = [_operator(name, one, nodes.get(name), steps) for name, one in ran.items()]
    return tuple(found if timed else (replace(one, seconds=None) for one in found))


def _name_nodes(model: ir.Model) -> None:
    """Names by which the profiler's records and the optimised graph are held together: each there, each once."""
    taken: set[str] = set()
    clashes: Counter[str] = Counter()
    for graph in all_graphs(model):
        for number, node in enumerate(graph):
            base = name = node.name or f"{node.op_type} {number}"
            while name in taken:
                clashes[base] += 1
                name = f"{base}.{clashes[base]}"
            taken.add(name)
            node.name = name


def _ran(events: Iterable[Mapping[str, Any]]) -> dict[str, _Ran]:
    """By name, in the order of their first runs. Of several inferences, each operator counts by the median of them."""
    found: dict[str, _Ran] = {}
    spent: dict[str, list[float]] = {}
    inference = 0
    for event in events:
        if event["name"] == "model_run":
            inference += 1
        name = str(event["name"])
        if event["cat"] != "Node" or not name.endswith(_SUFFIX) or event["args"]["op_name"] in _AROUND:
            continue
        name, told = name.removesuffix(_SUFFIX), event["args"]
        found.setdefault(
            name,
            _Ran(told["op_name"], 0.0, _shapes(told["input_type_shape"]), _first(_shapes(told["output_type_shape"]))),
        )
        own = spent.setdefault(name, [])
        own.extend([0.0] * (inference + 1 - len(own)))
        own[inference] += event["dur"] / 1e6
    return {name: replace(one, seconds=median(spent[name])) for name, one in found.items()}


def _shapes(told: Iterable[Mapping[str, Sequence[int]]]) -> list[tuple[str, Shape]]:
    """Element types and shapes, of tensors."""
    return [(kind, tuple(shape)) for one in told for kind, shape in one.items()]


def _first(found: Sequence[tuple[str, Shape]]) -> Shape:
    return found[0][1] if found else ()


def _steps(nodes: Iterable[ir.Node]) -> Counter[int]:
    """How many products there are with each constant matrix."""
    return Counter(id(found[1]) for node in nodes if (found := _weight(node)) is not None)


def _weight(node: ir.Node) -> tuple[int, ir.TensorProtocol] | None:
    """The constant matrix that an operator multiplies by, behind its place among the inputs."""
    places = [place for place in FACTORS.get(node.op_type, ()) if place < len(node.inputs)]
    return next(((place, held) for place in places if (held := tensor_of(node.inputs[place])) is not None), None)


def _operator(name: str, ran: _Ran, node: ir.Node | None, steps: Counter[int]) -> Operator:
    found = None if node is None else _weight(node)
    if node is None or found is None:
        return Operator(name, ran.kind, doubt=None if node is None else _decoding(node), seconds=ran.seconds)
    place, weight = found
    scheme = _BITS.get(node.attributes.get_int("bits", 4)) if ran.kind == "MatMulNBits" else _SCHEMES.get(ran.kind)
    doubt = "unrolled" if steps[id(weight)] >= UNROLLED else _doubt(ran, weight)
    return Operator(name, ran.kind, _products(node, place, weight, ran), scheme, doubt, ran.seconds)


def _doubt(ran: _Ran, weight: ir.TensorProtocol) -> Doubt | None:
    if ran.kind == "MatMulNBits":
        return "blocks"
    if ran.kind == "ConvInteger":
        return "integer convolution"
    if _SCHEMES.get(ran.kind) not in (INT8_DYNAMIC, INT8_STATIC) or ran.kind == QUANTIZED:
        return None
    if ran.given and ran.given[0][0] == "int8":
        return "signed inputs"
    return "unsigned weights" if weight.dtype.name == "UINT8" else None


def _decoding(node: ir.Node) -> Doubt | None:
    """Why an operator that is no product is there at all, where integers are decoded for a product in float."""
    users = {user.op_type for value in node.outputs for user, _ in value.uses()}
    if node.op_type != "DequantizeLinear" or not any(_SCHEMES.get(kind) == FP32 for kind in users):
        return None
    return "float behind integers" if tensor_of(node.inputs[0]) is None else "decoded"


def _products(node: ir.Node, place: int, weight: ir.TensorProtocol, ran: _Ran) -> tuple[Op, ...]:
    shape = tuple(int(side) for side in weight.shape.numpy())
    if node.op_type in _CONVOLUTIONS:
        groups = node.attributes.get_int("group", 1)
        return convolution(shape[0], shape[1], shape[2:], (*ran.result[:1], *ran.result[2:]), groups)
    if node.op_type in (*GATES, QUANTIZED):
        return _recurrent(node, shape, ran)
    packed = sides(node) if node.op_type == "MatMulNBits" else None
    rows = ran.result[-1 if place else -2] if len(ran.result) >= 2 else prod(ran.result[-1:])
    return matrix_product(rows, prod(packed or shape[-2:]), prod(ran.result))


def _recurrent(node: ir.Node, shape: Shape, ran: _Ran) -> tuple[Op, ...]:
    """The product of all inputs, and one of every state."""
    found = sides(node, shape)
    state = next((tensor_of(value) for value in node.inputs[2:3]), None)
    given = _first(ran.given)
    if found is None or state is None or len(given) != 3 or not 0 < given[0] <= MOST_STEPS:
        return ()
    (rows, inputs), (steps, batch) = found, given[:2]
    return (
        Op(WEIGHT, "matmul", rows, inputs, steps * batch),
        *[Op("recurrence", "matmul", rows, state.size // rows, batch)] * steps,
    )
