"""Models and data of the reference builds: recipes, and files that `write` makes. Everything is seeded and small.

They are apart from those of the tests, which may change with what they test: these must stay as they are, or the
recorded hashes say nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack.model.types import Array, Recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "models"))  # a folder of recipes, not a package

FEATURES, CLASSES = 64, 8
TOKENS, VOCABULARY, WIDTH = 6, 300, 64
CHUNK, CONTEXT, RATE = 512, 64, 16000
Nodes = list[onnx.NodeProto]
Weights = dict[str, Array]


def points(count: int, seed: int) -> tuple[Array, Array]:
    """Points (count, 64) around 8 centres, and which centre."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    y = rng.integers(0, CLASSES, count)
    return (centres[y] + rng.normal(size=(count, FEATURES))).astype(np.float32), y


def mlp() -> Recipe:
    """A 64-96-64-8 perceptron with labels, trained for a moment."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    (x, y), (test_x, test_y) = points(800, 1), points(400, 2)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 8))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()

    def evaluate(predict: Callable[..., Array]) -> float:
        return float((predict(test_x).argmax(axis=1) == test_y).mean() * 100)

    return Recipe(model, (torch.zeros(1, FEATURES),), {"x": x, "y": y}, evaluate)


def mlp_without_data() -> Recipe:
    """The same with nothing to calibrate on: no ranges, so no static scheme is among the candidates."""
    return replace(mlp(), calibration=None, evaluate=None)


def filled(model: Any) -> Any:
    """The module in eval mode with seeded parameters."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.15 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def given(model: Any, *shape: int, count: int = 300) -> Recipe:
    """The module with inputs of a normal distribution, one sample at a time."""
    import torch

    x = np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)
    return Recipe(filled(model), (torch.zeros(1, *shape),), {"x": x})


def cnn() -> Recipe:
    """Convolutions of 3×3 and 1×1, then two linear layers."""
    from torch import nn

    layers = (
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    return given(nn.Sequential(*layers), 3, 8, 8)


def encoder() -> Recipe:
    """A transformer encoder layer."""
    from torch import nn

    return given(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 6, 64)


def unrolled_lstm() -> Recipe:
    """The two-layer LSTM classifier of linear layers, untrained and with four steps."""
    import lstm_classifier

    lstm_classifier.STEPS = 4
    return given(lstm_classifier.Classifier(), 4, lstm_classifier.PIXELS, count=200)


def torch_lstm() -> Recipe:
    """torch's own LSTM with a linear head."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(32, 64, batch_first=True), nn.Linear(64, 48)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    return given(Net(), 5, 32)


def embedding() -> Recipe:
    """A table of 300×64 that is looked up, then linear layers."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.lower, self.upper = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(64, 96), nn.Linear(96, 32)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.upper(torch.relu(self.lower(self.table(ids)))).mean(1)

    ids = np.random.default_rng(1).integers(0, VOCABULARY, (300, TOKENS))
    return Recipe(filled(Net()), (torch.zeros(1, TOKENS, dtype=torch.int64),), {"ids": ids})


def minilm() -> Recipe:
    """all-MiniLM-L6-v2 with few sentences."""
    import minilm as whole

    full = whole.recipe()
    assert isinstance(full.calibration, Mapping)
    return replace(full, calibration={name: rows[:48] for name, rows in full.calibration.items()})


def silero_model(name: str) -> Path:
    """A model file of the installed package, which it is not necessary to import."""
    from importlib.util import find_spec

    spec = find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("silero-vad is not installed", name="silero_vad")
    return Path(spec.submodule_search_locations[0]) / "data" / f"{name}.onnx"


def magika_model() -> Path:
    """The model file of the installed package."""
    import magika_files

    return magika_files.model_path()


def write(folder: Path) -> None:
    """Write the model files and data files that the builds name, all from seeds."""
    x, y = points(640, 4)
    np.savez(folder / "points.npz", input=x)  # as torch.export calls the input of a Sequential
    np.savez(folder / "labelled.npz", x=x, y=y)
    np.savez(folder / "images.npz", x=np.random.default_rng(1).normal(size=(200, 3, 8, 8)).astype(np.float32))
    np.savez(folder / "sequences.npz", x=np.random.default_rng(1).normal(size=(200, 6, 64)).astype(np.float32))
    np.savez(folder / "ids.npz", ids=np.random.default_rng(1).integers(0, VOCABULARY, (200, TOKENS)))
    np.savez(folder / "bytes.npz", bytes=byte_rows(300))
    _write_recording(folder / "recording.npz", 200)
    _write_onnx(folder / "mlp.onnx", ("x", [1, FEATURES]), *_mlp_nodes())
    _write_onnx(folder / "conv.onnx", ("x", [1, 3, 8, 8]), *_conv_nodes())
    _write_onnx(folder / "attention.onnx", ("x", [1, 6, 64]), *_attention_nodes())
    _write_onnx(folder / "embedding.onnx", ("ids", [1, TOKENS]), *_embedding_nodes(), dtype=TensorProto.INT64)
    _write_exported(folder / "mlp.pt2")


def byte_rows(count: int) -> Array:
    """(count, 2048) int32 as magika reads files: the first and the last 1024 bytes, 256 where there are none."""
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, rng.integers(2, 9)).tolist()) for _ in range(400)]
    rows = np.full((count, 2048), 256, np.int32)
    for number, row in enumerate(rows):
        size = int(rng.integers(40, 1024))
        kind = number % 4
        if kind == 0:
            content = rng.integers(0, 256, size).tolist()
        elif kind == 1:
            content = list(b" ".join(words[i] for i in rng.integers(0, len(words), size // 4)))
        elif kind == 2:
            content = list(
                b"".join(b"def %s(%s):\n    return %s\n" % tuple(words[i] for i in t) for t in _triples(rng))
            )
        else:
            content = list(b"\x7fELF\x02\x01\x01" + bytes(rng.integers(0, 8, size).tolist()))
        head, tail = content[:1024], content[-1024:]
        row[: len(head)] = head
        row[2048 - len(tail) :] = tail
    return rows


def _triples(rng: np.random.Generator) -> list[list[int]]:
    return rng.integers(0, 400, (int(rng.integers(4, 30)), 3)).tolist()


def _write_recording(path: Path, chunks: int) -> None:
    """Consecutive chunks of a hummed tone as silero-vad wants them, with the states that it answers in turn."""
    import onnxruntime

    seconds = np.arange(chunks * CHUNK) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * seconds)) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 12)) * (np.sin(2 * np.pi * 3 * seconds) > 0)
    signal = 0.2 * voice + 0.01 * np.random.default_rng(0).normal(size=seconds.size)
    padded = np.concatenate([np.zeros(CONTEXT), signal])
    sound = np.stack([padded[i * CHUNK : (i + 1) * CHUNK + CONTEXT] for i in range(chunks)]).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(silero_model("silero_vad"), options, providers=["CPUExecutionProvider"])
    state, states = np.zeros((2, 1, 128), np.float32), []
    for chunk in sound:
        states.append(state)
        _, state = session.run(None, {"input": chunk[None], "state": state, "sr": np.array(RATE)})
    np.savez(path, input=sound, state=np.stack(states), sr=np.full(chunks, RATE))


def _drawn(**shapes: tuple[int, ...]) -> Weights:
    rng = np.random.default_rng(3)
    return {name: (0.15 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def _mlp_nodes() -> tuple[Nodes, Weights]:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"], transB=1, name="fc1"),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu1"),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["h2"], transB=1, name="fc2"),
        helper.make_node("Relu", ["h2"], ["r2"], name="relu2"),
        helper.make_node("MatMul", ["r2", "w3"], ["h3"], name="fc3"),
        helper.make_node("Add", ["h3", "b3"], ["out"], name="bias3"),
    ]
    return nodes, _drawn(w1=(96, 64), b1=(96,), w2=(64, 96), b2=(64,), w3=(64, 8), b3=(8,))


def _conv_nodes() -> tuple[Nodes, Weights]:
    """Padded and strided convolutions, pooling, Gelu's parts, and two linear layers."""
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"], mode="reflect", name="pad"),
        helper.make_node("Conv", ["padded", "k1", "c1"], ["f1"], kernel_shape=[3, 3], name="conv1"),
        helper.make_node("Relu", ["f1"], ["a1"], name="relu1"),
        helper.make_node("MaxPool", ["a1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        helper.make_node("Conv", ["p1", "k2", "c2"], ["f2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="conv2"),
        helper.make_node("HardSwish", ["f2"], ["a2"], name="act2"),
        helper.make_node("Flatten", ["a2"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["h1"], transB=1, name="fc1"),
        helper.make_node("Sigmoid", ["h1"], ["s1"], name="sigmoid"),
        helper.make_node("Gemm", ["s1", "w2", "b2"], ["out"], transB=1, name="fc2"),
    ]
    drawn = _drawn(k1=(16, 3, 3, 3), c1=(16,), k2=(32, 16, 3, 3), c2=(32,), w1=(64, 512), b1=(64,), w2=(10, 64))
    return nodes, drawn | {"b2": np.zeros(10, np.float32), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}


def _attention_nodes() -> tuple[Nodes, Weights]:
    """Self-attention of one head with layer normalization, an Einsum and Gelu."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], axis=-1, name="norm"),
        *(helper.make_node("MatMul", ["n", f"w{name}"], [name], name=name) for name in "qkv"),
        helper.make_node("Einsum", ["q", "k"], ["raw"], equation="bqd,bkd->bqk", name="scores"),
        helper.make_node("Mul", ["raw", "scale"], ["scaled"], name="scale"),
        helper.make_node("Softmax", ["scaled"], ["weights"], axis=-1, name="softmax"),
        helper.make_node("MatMul", ["weights", "v"], ["mixed"], name="mix"),
        helper.make_node("Add", ["mixed", "x"], ["sum"], name="add"),
        helper.make_node("MatMul", ["sum", "w1"], ["h"], name="up"),
        helper.make_node("Gelu", ["h"], ["g"], approximate="none", name="gelu"),
        helper.make_node("MatMul", ["g", "w2"], ["out"], name="down"),
    ]
    drawn = _drawn(wq=(64, 64), wk=(64, 64), wv=(64, 64), w1=(64, 128), w2=(128, 64), shift=(64,))
    return nodes, drawn | {"gain": np.ones(64, np.float32), "scale": np.array(0.125, np.float32)}


def _embedding_nodes() -> tuple[Nodes, Weights]:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="lookup"),
        helper.make_node("MatMul", ["rows", "w1"], ["h1"], name="fc1"),
        helper.make_node("Relu", ["h1"], ["r1"], name="relu1"),
        helper.make_node("MatMul", ["r1", "w2"], ["h2"], name="fc2"),
        helper.make_node("ReduceMean", ["h2", "axes"], ["out"], keepdims=0, name="mean"),
    ]
    drawn = _drawn(table=(VOCABULARY, WIDTH), w1=(WIDTH, 96), w2=(96, 32))
    return nodes, drawn | {"axes": np.array([1])}


def _write_onnx(
    path: Path, source: tuple[str, list[int]], nodes: Nodes, weights: Weights, *, dtype: int = TensorProto.FLOAT
) -> None:
    name, shape = source
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(made), path)


def _write_exported(path: Path) -> None:
    import torch

    made = mlp()
    torch.export.save(torch.export.export(made.model.eval(), made.example_inputs), path)
