"""Layers in code in .tflite files: LiteRT's answers, what an inference does, sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgepack.backends.tflite.constexpr import encode
from edgepack.backends.tflite.matching import Fold
from edgepack.backends.tflite.read import TfliteLinear, constant_vectors, linear_ops, operators
from edgepack.backends.tflite.rewrite import refuses
from edgepack.errors import ModelError
from edgepack.methods.budget import in_8_bits
from edgepack.model.constexpr import OPERATORS, evaluate, stored_bytes
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.replacement import Instruction, Replacement, constexpr
from edgepack.model.types import Array
from tests.backends.tflite.constexpr_cases import (
    IN,
    OPERATOR_CASES,
    OUT,
    answers,
    codebook,
    convolved,
    dense_file,
    hashed,
    normal,
    sparse,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

RELU = 1
KERNELS = {
    "matmul": "FULLY_CONNECTED",
    "scatter": "SCATTER_ND",
    "head": "SLICE",
    "conv1d": "CONV_2D",
    "bucket": "BITWISE_XOR",
    "div": "FLOOR_DIV",
    "mod": "FLOOR_MOD",
}
"""Where a step's operator is called otherwise."""
KINDS = {"codebook": codebook, "sparse": sparse, "hashed": hashed, "convolved": convolved}


def folds_of(path: Path, rows: Array | None = None, columns: Array | None = None) -> list[Fold]:
    found = []
    for op in linear_ops(path):
        out, size = op.weight.shape
        sides = np.ones(out) if rows is None else rows, np.ones(size) if columns is None else columns
        found.append(Fold(op, *sides, np.ones(out), None))
    return found


def encoded(path: Path, part: Replacement, *shapes: tuple[int, ...], activation: int = 0, conv: int = 0) -> Path:
    dense_file(path / "dense.tflite", part.weight, shapes, part.bias, activation, (conv, conv))
    encode(path / "dense.tflite", path / "coded.tflite", {"layer": part}, {"layer": folds_of(path / "dense.tflite")})
    return path / "coded.tflite"


def graphs(path: Path) -> list[list[str]]:
    """Operators by subgraph."""
    names = iter(operators(path))
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    return [[next(names) for _ in graph.operators] for graph in model.subgraphs]


def near(have: Array, want: Array) -> None:
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5 * float(np.abs(want).max()))


def test_every_operator_has_a_case() -> None:
    assert set(OPERATOR_CASES) == set(OPERATORS)


@pytest.mark.parametrize("small", [0, 2048])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("op", OPERATOR_CASES)
def test_litert_computes_what_the_steps_mean(
    op: str, rows: int, small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything decoded by the runtime, and with what is small stored as it comes out."""
    monkeypatch.setattr("edgepack.backends.tflite.constexpr._SMALL", small)
    part = OPERATOR_CASES[op]()
    assert any(step.op == op for step in part.program)
    x = normal(rows, part.weight.shape[1], seed=4)
    path = encoded(tmp_path, part, x.shape)
    near(answers(path, x)[0], evaluate(part, x))
    if small == 0:
        assert KERNELS.get(op, op.upper()) in operators(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, IN), (2, 3, IN), (1, 1, IN)])
@pytest.mark.parametrize("activation", [0, RELU])
@pytest.mark.parametrize("biased", [True, False])
def test_bias_activation_and_leading_axes_stay(
    kind: str, shape: tuple[int, ...], activation: int, biased: bool, tmp_path: Path
) -> None:
    part = in_8_bits(KINDS[kind](bias=normal(OUT, seed=9) if biased else None))
    x = normal(*shape, seed=5)
    (have,) = answers(encoded(tmp_path, part, shape, activation=activation), x)
    want = evaluate(part, x.reshape(-1, IN)).reshape(*shape[:-1], OUT) + (0 if part.bias is None else part.bias)
    near(have, np.maximum(want, 0) if activation else want)
    assert have.shape == want.shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_of_one_pixel_is_the_same_product(kind: str, tmp_path: Path) -> None:
    part, x = KINDS[kind](bias=normal(OUT)), normal(1, 3, 2, IN, seed=5)
    (have,) = answers(encoded(tmp_path, part, x.shape, activation=RELU, conv=1), x)
    near(have, np.maximum(evaluate(part, x.reshape(-1, IN)).reshape(1, 3, 2, OUT) + part.bias, 0))


def test_strides_are_refused(tmp_path: Path) -> None:
    part = codebook()
    dense_file(tmp_path / "dense", part.weight, ((1, 4, 4, IN),), None, 0, (2, 2))
    (fold,) = folds_of(tmp_path / "dense")
    layer = linear_layer("layer", part.weight, None, "Conv", 1)
    assert "strides" in (refuses(fold, layer, part) or "")
    dense_file(tmp_path / "dense", part.weight, ((1, 4, 4, IN),), None, 0, (1, 1))
    assert refuses(folds_of(tmp_path / "dense")[0], layer, part) is None


@pytest.mark.parametrize("kind", ["codebook", "convolved"])
@pytest.mark.parametrize("rows", [1, 2])
def test_scales_that_the_converter_folded_in_are_kept(kind: str, rows: int, tmp_path: Path) -> None:
    part = KINDS[kind](bias=normal(OUT))
    sides = np.abs(normal(OUT, seed=1)).astype(np.float64) + 0.5, normal(IN, seed=2).astype(np.float64)
    x = normal(rows, IN, seed=5)
    folded = (sides[0][:, None] * part.weight * sides[1]).astype(np.float32)
    dense_file(tmp_path / "dense", folded, (x.shape,), part.bias)
    encode(tmp_path / "dense", tmp_path / "coded", {"layer": part}, {"layer": folds_of(tmp_path / "dense", *sides)})
    near(answers(tmp_path / "coded", x)[0], answers(tmp_path / "dense", x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_inference_decodes_nothing(kind: str, tmp_path: Path) -> None:
    main, *loading = graphs(encoded(tmp_path, KINDS[kind](64, 32, bias=normal(64)), (1, 32)))
    if kind == "convolved":  # its few filters are stored as they come out
        assert main == ["PAD", "RESHAPE", "CONV_2D", "RESHAPE", "RESHAPE", "FULLY_CONNECTED", "ADD"]
        assert loading == []
        return
    assert main == ["CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "FULLY_CONNECTED"]
    assert [names[-1] for names in loading] == ["ASSIGN_VARIABLE"]
    assert {"codebook": "GATHER", "sparse": "SCATTER_ND", "hashed": "BITWISE_XOR"}[kind] in loading[0]


def test_places_of_a_layer_share_its_variable(tmp_path: Path) -> None:
    part = codebook(bias=normal(OUT))
    xs = normal(1, IN), normal(1, IN, seed=1), normal(1, 4, IN, seed=2)
    path = encoded(tmp_path, part, *(x.shape for x in xs))
    main, loading = graphs(path)
    assert [main.count(name) for name in ("CALL_ONCE", "READ_VARIABLE")] == [1, 1]
    assert loading.count("ASSIGN_VARIABLE") == 1
    for have, x in zip(answers(path, *xs), xs, strict=True):
        near(have, (evaluate(part, x.reshape(-1, IN)) + part.bias).reshape(have.shape))


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_as_large_as_the_constants(kind: str, tmp_path: Path) -> None:
    part = in_8_bits(KINDS[kind](256, 128, bias=normal(256)))
    path = encoded(tmp_path, part, (1, 128))
    extra = path.stat().st_size - stored_bytes(part) - part.bias.nbytes
    assert 0 < extra < 1500 + 130 * len(operators(path)), "an operator is 130 bytes with its tensors and small numbers"


def test_the_same_layer_gives_the_same_bytes(tmp_path: Path) -> None:
    parts = {"b": hashed(bias=normal(OUT)), "a": sparse(bias=normal(OUT))}
    for name, order in (("one", ["a", "b"]), ("two", ["b", "a"])):
        dense_file(tmp_path / "dense", parts["a"].weight, ((1, IN), (1, IN)), parts["a"].bias)
        first, second = folds_of(tmp_path / "dense")
        folds = {"a": [first], "b": [second]}
        encode(tmp_path / "dense", tmp_path / name, {key: parts[key] for key in order}, folds)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    x = normal(1, IN)
    for have, key in zip(answers(tmp_path / "one", x, x), "ab", strict=True):
        near(have, evaluate(parts[key], x) + parts["a"].bias)


def test_readers_find_the_bias_and_no_layer_in_what_runs_once(tmp_path: Path) -> None:
    part = codebook(bias=normal(OUT, seed=8))
    path = encoded(tmp_path, part, (1, IN))
    assert linear_ops(path) == []
    assert any(np.array_equal(vector, part.bias.astype(np.float64)) for vector in constant_vectors(path))


def test_a_runtime_may_allocate_again(tmp_path: Path) -> None:
    from edgepack.backends.tflite.runtime import interpreter

    part, x = sparse(), normal(1, IN)
    made = interpreter(encoded(tmp_path, part, (1, IN)))
    for _ in range(2):
        made.allocate_tensors()
        made.set_tensor(made.get_input_details()[0]["index"], x)
        made.invoke()
        near(made.get_tensor(made.get_output_details()[0]["index"]), evaluate(part, x))


def test_what_is_not_there_or_not_known_stops(tmp_path: Path) -> None:
    part = codebook()
    dense_file(tmp_path / "dense", part.weight, ((1, IN),))
    op: TfliteLinear = linear_ops(tmp_path / "dense")[0]
    stranger = Fold(
        TfliteLinear("FULLY_CONNECTED", "nobody", 0, 1, op.weight, 32, op.scales, None, None),
        *(np.ones(n) for n in (OUT, IN, OUT)),
        None,
    )
    with pytest.raises(ModelError, match="nobody"):
        encode(tmp_path / "dense", tmp_path / "out", {"layer": part}, {"layer": [stranger]})
    (fold,) = folds_of(tmp_path / "dense")
    odd = constexpr({}, (Instruction("sine", ("x",), "y", {}),), part.weight, None)
    with pytest.raises((ValueError, KeyError), match="sine"):
        encode(tmp_path / "dense", tmp_path / "out", {"layer": odd}, {"layer": [fold]})
    with pytest.raises(ModelError, match="operator has"):
        encode(tmp_path / "dense", tmp_path / "out", {"layer": codebook(OUT, IN * 2)}, {"layer": [fold]})
