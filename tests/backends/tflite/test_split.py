"""Segments of real .tflite files, in the real runtime: bit for bit what the whole file computes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.segments import LayerShape, Segment
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.file import read_file
from edgepack.backends.tflite.read import operators, weight_bytes
from edgepack.backends.tflite.runtime import interpreter
from edgepack.backends.tflite.schemes import FP32, INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.tflite.split import split_tflite
from edgepack.errors import ModelError, OutputError
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.types import Array
from edgepack.sources.torch import export_program, save_program
from edgepack.torchgraph import find_linears, flat_module

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

DEQUANTIZE = 6


class Tied(nn.Module):
    """One layer in two places, with another one between, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tied, self.other = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.softmax(self.tied(x), -1)
        return self.tied(torch.relu(self.other(hidden)) + x), hidden.sum(-1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down, self.norm = nn.Linear(32, 64), nn.Linear(64, 32), nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm(x)
        q, k, v = (layer(n).view(1, 6, 4, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(2, 3) / 3, -1) @ v
        x = x + self.o(mixed.transpose(1, 2).reshape(1, 6, 32))
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 24), nn.Sigmoid(), nn.Linear(24, 8))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (1, 48)),
    "encoder": (Encoder, (1, 6, 32)),
    "tied": (Tied, (1, 5, 32)),
}
NAMES = {
    "mlp": ["0", "2", "4"],
    "encoder": ["q", "k", "v", "o", "up", "down"],
    "tied": ["tied", "other", "tied"],
}


@pytest.fixture(scope="module")
def emitter() -> Iterator[TfliteEmitter]:
    with TfliteEmitter() as made:
        made.warm_up()
        yield made


def layers_of(module: Any) -> list[Layer]:
    """Each layer once, named after its module."""
    found: dict[str, Layer] = {}
    for site in find_linears(module):
        name = site.name.removesuffix(".weight").split(".")[-1]
        uses = found[name].uses + 1 if name in found else 1
        found[name] = linear_layer(name, site.weight, site.bias, "Gemm", uses)
    return list(found.values())


def thin(layer: Layer) -> Replacement:
    u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
    rank = len(s) // 4
    return low_rank((u[:, :rank] * s[:rank]).astype(np.float32), v[:rank].astype(np.float32), layer.bias)


Files = dict[str, tuple[Path, list[LayerShape]]]
Emitted = tuple[list[str], Files]


@pytest.fixture(scope="module", params=list(MODELS))
def emitted(
    request: pytest.FixtureRequest, emitter: TfliteEmitter, tmp_path_factory: pytest.TempPathFactory
) -> Emitted:
    """The layers that a model runs in turn, and its files by scheme, dense and with every other layer factored."""
    make, shape = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    program = export_program(make().eval(), (torch.randn(shape),))
    save_program(program, folder / "m.pt2")
    layers = layers_of(flat_module(program))
    names = dict.fromkeys(NAMES[request.param])
    layers = [replace(layer, name=name) for name, layer in zip(names, layers, strict=True)]
    (given,) = emitter.load_program(folder / "m.pt2").inputs
    files: Files = {}
    for kind, factors in (("dense", {}), ("thin", {x.name: thin(x) for x in layers[::2]})):
        source = folder / f"{kind}.tflite"
        assert emitter.emit(source, layers, factors or None) == ()
        ranks = {name: f.rank for name, f in factors.items()}
        shapes = [LayerShape(x.name, x.out_features, x.in_features, ranks.get(x.name)) for x in layers]
        for scheme in (FP32, INT8_DYNAMIC, INT8_STATIC):
            path = source if scheme.is_float else folder / f"{kind}.{scheme}.tflite"
            if not scheme.is_float:
                samples = {given: np.random.default_rng(0).normal(size=(16, *shape)).astype(np.float32)}
                emitter.quantize(source, path, scheme, samples if scheme.is_static else None)
            files[f"{kind} {scheme}"] = path, shapes
    return NAMES[request.param], files


def inputs(path: Path) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    details = interpreter(path).get_input_details()
    return {d["name"]: rng.normal(size=d["shape"]).astype(d["dtype"]) for d in details}


def run_file(path: Path, values: Mapping[str, Array]) -> dict[str, Array]:
    made = interpreter(path)
    for detail in made.get_input_details():
        assert values[detail["name"]].dtype == detail["dtype"]
        made.set_tensor(detail["index"], values[detail["name"]])
    made.invoke()
    outputs = made.get_output_details()
    assert len({d["name"] for d in outputs}) == len(outputs)
    return {d["name"]: made.get_tensor(d["index"]) for d in outputs}


def assert_whole(path: Path, segments: Sequence[Segment]) -> None:
    feed = inputs(path)
    values = dict(feed)
    for segment in segments:
        values |= run_file(segment.path, values)
    for name, expected in run_file(path, feed).items():
        np.testing.assert_array_equal(values[name], expected)


def test_every_scheme_bit_for_bit(emitted: Emitted, tmp_path: Path) -> None:
    expected, files = emitted
    assert len(files) == 6
    for kind, (path, layers) in files.items():
        folder = tmp_path / kind
        folder.mkdir()
        segments = split_tflite(path, layers, folder)
        assert [s.name for s in segments if s.layer] == expected, kind
        assert_whole(path, segments)
        ran = [name for s in segments for name in operators(s.path)]
        assert Counter(ran) == Counter(operators(path)), kind
        assert max(weight_bytes(s.path) for s in segments) < weight_bytes(path), "each has only its own"


def dense_mlp(folder: Path) -> tuple[Path, list[LayerShape]]:
    """x (1, 48) → 40 → 8 made by hand, both products without activation, a bias left out."""
    from ai_edge_litert import schema_py_generated as schema

    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=(40, 48)), rng.normal(size=40), rng.normal(size=(8, 40))]
    tensors = [schema.TensorT(shape=[1, n], name=name, buffer=0) for n, name in ((48, b"x"), (40, b"h"), (8, b"y"))]
    buffers = [schema.BufferT()]
    for array in arrays:
        buffers.append(schema.BufferT(data=array.astype(np.float32).reshape(-1).view(np.uint8)))
        tensors.append(schema.TensorT(shape=list(array.shape), name=b"h", buffer=len(buffers) - 1))
    options = schema.FullyConnectedOptionsT()
    ops = [
        schema.OperatorT(0, inputs, outputs, schema.BuiltinOptions.FullyConnectedOptions, options)
        for inputs, outputs in (([0, 3, 4], [1]), ([1, 5, -1], [2]))
    ]
    graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[2], operators=ops, name=b"main")
    code = schema.OperatorCodeT(deprecatedBuiltinCode=9, builtinCode=9, version=1)
    save(schema.ModelT(version=3, operatorCodes=[code], subgraphs=[graph], buffers=buffers), folder / "m.tflite")
    return folder / "m.tflite", [LayerShape("a", 40, 48, None), LayerShape("b", 8, 40, None)]


def save(model: Any, path: Path) -> None:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(builder.Output())


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    model = copy.deepcopy(read_file(path).model)
    change(model)
    save(model, path.with_name("changed.tflite"))
    return path.with_name("changed.tflite")


def test_names_are_unique_and_those_of_inputs_and_outputs_are_kept(tmp_path: Path) -> None:
    path, layers = dense_mlp(tmp_path)

    def rename(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors[1:]:
            tensor.name = b"x"
        model.subgraphs[0].tensors[2].name = b"y"

    path = changed(path, rename)
    segments = split_tflite(path, layers, tmp_path)
    assert [s.name for s in segments] == ["a", "b"]
    assert_whole(path, segments)
    (between,) = (d["name"] for d in interpreter(segments[0].path).get_output_details())
    assert between not in ("x", "y")


def test_constants_that_operators_make_are_in_every_segment_that_needs_them(tmp_path: Path) -> None:
    """float16 weights behind a DEQUANTIZE; one more constant as an output of the model."""
    path, layers = dense_mlp(tmp_path)

    def halve(model: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        graph = model.subgraphs[0]
        weight = graph.tensors[3]
        half = model.buffers[weight.buffer].data.view(np.float32).astype(np.float16)
        model.buffers.append(schema.BufferT(data=half.view(np.uint8)))
        stored = schema.TensorT(shape=[40, 48], type=1, name=b"half", buffer=len(model.buffers) - 1)
        graph.tensors.append(stored)
        weight.buffer = 0
        model.operatorCodes.append(schema.OperatorCodeT(DEQUANTIZE, None, 3, DEQUANTIZE))
        graph.operators.insert(0, schema.OperatorT(1, [6], [3]))
        graph.outputs = [2, 1]

    path = changed(path, halve)
    segments = split_tflite(path, layers, tmp_path)
    assert [s.name for s in segments] == ["a", "b"]
    assert [operators(s.path) for s in segments] == [["DEQUANTIZE", "FULLY_CONNECTED"], ["FULLY_CONNECTED"]]
    assert_whole(path, segments)


def test_no_layer_matches(tmp_path: Path) -> None:
    path, _ = dense_mlp(tmp_path)
    segments = split_tflite(path, [LayerShape("c", 3, 3, None)], tmp_path)
    assert [(s.name, s.layer) for s in segments] == [("whole", False)]
    assert_whole(path, segments)


def test_what_cannot_be_split_says_so(tmp_path: Path) -> None:
    path, layers = dense_mlp(tmp_path)

    def twice(model: Any) -> None:
        model.subgraphs.append(model.subgraphs[0])

    def stateful(model: Any) -> None:
        model.subgraphs[0].tensors[1].type = 13

    def empty(model: Any) -> None:
        model.subgraphs[0].operators = []
        model.subgraphs[0].outputs = [0]

    def variable(model: Any) -> None:
        model.subgraphs[0].tensors[4].isVariable = True
        model.subgraphs[0].operators[1].inputs = [1, 5, 4]

    cases = [(twice, "2 subgraphs"), (stateful, "state"), (empty, "nothing to split"), (variable, "both sides")]
    for change, message in cases:
        with pytest.raises(ModelError, match=message):
            split_tflite(changed(path, change), layers, tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged"):
        split_tflite(path, layers, tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        split_tflite(tmp_path / "none.tflite", layers, tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path, layers = dense_mlp(tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        split_tflite(path, layers, tmp_path / "missing")
