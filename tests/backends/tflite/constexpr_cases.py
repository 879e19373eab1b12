"""Layers written in code by hand, and a dense .tflite file of one layer to put them into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgepack.backends.tflite.file import File, Writing, packed
from edgepack.model.constexpr import OPERATORS, Writer, X
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array

OUT, IN = 12, 16


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def codebook(out: int = OUT, size: int = IN, bias: Array | None = None, seed: int = 0) -> Replacement:
    """Blocks of four weights, each one of 16."""
    w = Writer()
    rng = np.random.default_rng(seed)
    codes = w.step("cast", w.constant("codes", rng.integers(0, 16, out * size // 4).astype(np.uint8)), to="int32")
    blocks = w.step("gather", w.constant("codebook", normal(16, 4, seed=seed)), codes, axis=0)
    return w.decoded(w.step("reshape", blocks, shape=(out, size)), bias)


def sparse(out: int = OUT, size: int = IN, bias: Array | None = None, seed: int = 0) -> Replacement:
    """A fifth of the weights in 8 bits, at places that gaps of 8 bits tell."""
    w = Writer()
    places = np.sort(np.random.default_rng(seed).permutation(out * size)[: out * size // 5])
    places = places[: 1 + int(np.argmax(np.append(np.diff(places) > 255, True)))]
    gaps = w.step("cast", w.constant("gaps", np.diff(places, prepend=0).astype(np.uint8)), to="int32")
    codes = np.random.default_rng(seed).integers(-127, 128, len(places)).astype(np.int8)
    wide = w.step("cast", w.constant("values", codes), to="float32")
    scaled = w.step("mul", wide, w.constant("scale", np.array([0.01], np.float32)))
    flat = w.step("scatter", w.step("cumsum", gaps), scaled, size=out * size)
    return w.decoded(w.step("reshape", flat, shape=(out, size)), bias)


def hashed(out: int = OUT, size: int = IN, bias: Array | None = None, seed: int = 0, buckets: int = 19) -> Replacement:
    """HashedNets: weight i is that of the bucket that i hashes to, with a sign from a second hash."""
    w = Writer()
    index = w.step("range", count=out * size)
    found = w.step(
        "gather",
        w.constant("weights", normal(buckets, seed=seed)),
        w.step("bucket", index, seed=7, buckets=buckets),
        axis=0,
    )
    sign = w.step("cast", w.step("bucket", index, seed=2**32 - 5, buckets=2), to="float32")
    two, one = (w.constant(name, np.array([value], np.float32)) for name, value in (("two", 2), ("one", 1)))
    signed = w.step("mul", found, w.step("sub", w.step("mul", sign, two), one))
    return w.decoded(w.step("reshape", signed, shape=(out, size)), bias)


def convolved(out: int = OUT, size: int = IN, bias: Array | None = None, seed: int = 0) -> Replacement:
    """Filters over the input, whose answers are gathered and mixed by a small matrix: no weight is ever decoded."""
    w = Writer()
    wide = w.step("cast", w.constant("filters", np.arange(-6, 6, dtype=np.int8).reshape(3, 4)), to="float32")
    filters = w.step("mul", wide, w.constant("scales", normal(3, 1, seed=seed)))
    answers = w.step("conv1d", w.step("pad", X, before=2, after=1), filters)
    flat = w.step("reshape", answers, shape=(-1, 3 * size))
    w.step("matmul", flat, w.constant("mix", normal(3 * size, out, seed=seed + 1)))
    return w.direct(size, bias)


def _on_x(write: Callable[[Writer], None]) -> Replacement:
    w = Writer()
    write(w)
    return w.direct(IN, None)


def _cumsum(w: Writer) -> None:
    order = w.step("cumsum", w.step("cast", w.constant("gaps", np.array([1, 0, 3, 7], np.uint8)), to="int32"))
    w.step("gather", X, order, axis=1)


def _scatter(w: Writer) -> None:
    places = w.step("cast", w.constant("places", np.array([9, 0, 3], np.uint8)), to="int32")
    flat = w.step("scatter", places, w.constant("values", normal(3)), size=IN * 2)
    w.step("matmul", X, w.step("reshape", flat, shape=(IN, -1)))


def _head(w: Writer) -> None:
    kept = w.step(
        "head",
        w.step("cast", w.constant("many", np.arange(60, dtype=np.int8).reshape(6, 10)), to="float32"),
        count=IN * 3,
    )
    w.step("matmul", X, w.step("reshape", kept, shape=(IN, 3)))


def _sum(w: Writer) -> None:
    parts = w.step("reshape", X, shape=(-1, 2, 2, IN // 4))
    w.step("sum", w.step("mul", parts, w.constant("factors", normal(2, 2, 1))), axes=(1, 2))


def _transposes(w: Writer) -> None:
    cube = w.step("transpose", w.step("reshape", X, shape=(-1, 4, IN // 4)), perm=(0, 2, 1))
    w.step("reshape", w.step("matmul", cube, w.constant("mix", normal(4, 5))), shape=(-1, 5 * IN // 4))


def _bucket(w: Writer) -> None:
    """Whole numbers up to 2³¹ − 1 and the ends of the seeds; one bucket more or less is seen in the answers."""
    index = w.step("mul", w.step("range", count=300), w.constant("stretch", np.array(7158278, np.int32)))
    found = []
    for seed in (0, 2**32 - 1):
        bucket = w.step("cast", w.step("bucket", index, seed=seed, buckets=65521), to="float32")
        found.append(w.step("mul", bucket, w.constant(f"scale{seed}", np.array(1 / (1 + seed), np.float32))))
    total = w.step("reshape", w.step("sum", X, axes=(1,)), shape=(-1, 1))
    w.step("matmul", total, w.step("reshape", w.step("sub", *found), shape=(1, 300)))


def _divided(op: str) -> Callable[[Writer], None]:
    def write(w: Writer) -> None:
        w.step("gather", X, w.step(op, w.step("range", count=IN), by=3), axis=1)

    return write


def _gather(w: Writer) -> None:
    places = w.constant("places", np.array([[3, 1, 1], [0, 3, 15]], np.int32))
    w.step("sum", w.step("gather", X, places, axis=1), axes=(1,))


def _add(w: Writer) -> None:
    w.step("add", X, w.step("mul", X, w.constant("by", normal(IN))))


OPERATOR_CASES: Mapping[str, Callable[[], Replacement]] = {
    "cast": codebook,
    "gather": lambda: _on_x(_gather),
    "reshape": lambda: _on_x(_transposes),
    "transpose": lambda: _on_x(_transposes),
    "matmul": lambda: _on_x(_transposes),
    "mul": lambda: _on_x(_sum),
    "add": lambda: _on_x(_add),
    "sub": hashed,
    "cumsum": lambda: _on_x(_cumsum),
    "scatter": lambda: _on_x(_scatter),
    "head": lambda: _on_x(_head),
    "pad": convolved,
    "conv1d": convolved,
    "sum": lambda: _on_x(_sum),
    "range": hashed,
    "bucket": lambda: _on_x(_bucket),
    **{op: lambda op=op: _on_x(_divided(op)) for op in ("div", "mod") if op in OPERATORS},
}
"""By operator, a layer that needs it."""


def dense_file(
    path: Path,
    weight: Array,
    shapes: tuple[tuple[int, ...], ...],
    bias: Array | None = None,
    activation: int = 0,
    conv: tuple[int, int] = (0, 0),
) -> None:
    """One operator, or one for each shape with the same weight, each with an input of its own.

    Args:
        shapes: of the inputs, features last.
        activation: of the schema.
        conv: strides of a convolution; FULLY_CONNECTED where they are 0.
    """
    model = schema.ModelT()
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [], []
    file = File(model)
    graph = Writing(file, file.new_graph("main"))
    kernel = weight.reshape(len(weight), 1, 1, -1) if conv[0] else weight
    fields: dict[str, Any] = {"fusedActivationFunction": activation}
    for shape in shapes:
        x = graph.tensor(shape, 0, "x")
        inputs = [x, graph.constant(kernel), -1 if bias is None else graph.constant(bias)]
        if conv[0]:
            size = shape[0], *(-(-n // stride) for n, stride in zip(shape[1:3], conv, strict=True)), len(weight)
            fields |= {"strideH": conv[0], "strideW": conv[1], "padding": 1}
            y = graph.op("CONV_2D", inputs, size, np.float32, options="Conv2D", **fields)
        else:
            size = *shape[:-1], len(weight)
            keep = len(shape) != 2
            y = graph.op(
                "FULLY_CONNECTED", inputs, size, np.float32, options="FullyConnected", **fields, keepNumDims=keep
            )
        graph.graph.inputs.append(x)
        graph.graph.outputs.append(y)
    graph.graph.operators = graph.made
    path.write_bytes(packed(model))


def answers(path: Path, *inputs: Array) -> list[Array]:
    """Of LiteRT, after running twice: the second run must not decode into what the first one made."""
    from edgepack.backends.tflite.runtime import interpreter

    made = interpreter(path)
    for _ in range(2):
        for put, value in zip(made.get_input_details(), inputs, strict=True):
            made.set_tensor(put["index"], value)
        made.invoke()
    return [made.get_tensor(each["index"]) for each in made.get_output_details()]
