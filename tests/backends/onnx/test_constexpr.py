"""Layers stored in code as ONNX nodes, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgepack.backends.onnx.contents import read_contents
from edgepack.backends.onnx.emit import to_schemes
from edgepack.backends.onnx.file import save
from edgepack.backends.onnx.schemes import CONSTEXPR, FP32
from edgepack.backends.onnx.sites import find_sites
from edgepack.errors import ModelError
from edgepack.methods.budget import in_8_bits
from edgepack.model.constexpr import OPERATORS, Writer, X, evaluate, is_decoded, stored_bytes
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from tests.backends.onnx.onnx_layers import (
    IN,
    OUT,
    PLACES,
    assert_close,
    info,
    model,
    node,
    normal,
    optimized,
    placed,
    run,
)

BIAS = normal(OUT, seed=9)


def blocks() -> Replacement:
    """A codebook."""
    rng = np.random.default_rng(0)
    w = Writer()
    codes = w.step("cast", w.constant("codes", rng.integers(0, 16, OUT * IN // 4).astype(np.uint8)), to="int32")
    rows = w.step("gather", w.constant("codebook", normal(16, 4)), codes, axis=0)
    return w.decoded(w.step("reshape", rows, shape=(OUT, IN)), BIAS)


def sparse() -> Replacement:
    """A few numbers and the gaps between them."""
    positions = np.flatnonzero(np.random.default_rng(1).random(OUT * IN) < 0.1)
    w = Writer()
    gaps = np.diff(positions, prepend=-1).astype(np.uint8)
    ends = w.step("cumsum", w.step("cast", w.constant("gaps", gaps), to="int32"))
    at = w.step("sub", ends, w.constant("one", np.array([1], np.int32)))
    flat = w.step("scatter", at, w.constant("values", normal(len(positions))), size=OUT * IN)
    return w.decoded(w.step("reshape", flat, shape=(OUT, IN)), BIAS)


def hashed() -> Replacement:
    """Numbers shared by hash, with a sign by another one."""
    w = Writer()
    index = w.step("range", count=OUT * IN)
    shared = w.step("gather", w.constant("w", normal(97)), w.step("bucket", index, seed=3, buckets=97), axis=0)
    side = w.step("cast", w.step("bucket", index, seed=0xFFFFFFFF, buckets=2), to="float32")
    sign = w.step("sub", w.step("add", side, side), w.constant("one", np.array([1], np.float32)))
    return w.decoded(w.step("reshape", w.step("mul", shared, sign), shape=(OUT, IN)), BIAS)


def convolved() -> Replacement:
    """The input under a few filters, and sums of what comes out."""
    w = Writer()
    seen = w.step("conv1d", w.step("pad", X, before=3, after=5), w.constant("filters", normal(2, 4)))
    index = np.random.default_rng(2).integers(0, IN + 5, (OUT, 3)).astype(np.int32)
    chosen = w.step("gather", seen, w.constant("index", index), axis=1)
    w.step("sum", w.step("mul", chosen, w.constant("gain", normal(OUT, 3, 2))), axes=(2, 3))
    return w.direct(IN, BIAS)


def projected() -> Replacement:
    """One thin projection for every eighth of the input."""
    w = Writer()
    parts = w.step("reshape", X, shape=(-1, IN // 8, 8))
    thin = w.step("reshape", w.step("matmul", parts, w.constant("P", normal(8, 2))), shape=(-1, IN // 4))
    turned = w.step("transpose", w.constant("A", normal(OUT, IN // 4)), perm=(1, 0))
    w.step("matmul", thin, turned)
    return w.direct(IN, BIAS)


def folded() -> Replacement:
    """Rows of a small table, by quotients and remainders of their numbers."""
    w = Writer()
    index = w.step("range", count=OUT)
    place = w.step("add", w.step("div", index, by=7), w.step("mod", index, by=5))
    return w.decoded(w.step("gather", w.constant("table", normal(12, IN)), place, axis=0), BIAS)


def relaid() -> Replacement:
    """A thin product read in rows of another length."""
    w = Writer()
    product = w.step("matmul", w.constant("X_f", normal(440, 2)), w.constant("W_f", normal(2, 7)))
    return w.decoded(w.step("reshape", w.step("head", product, count=OUT * IN), shape=(OUT, IN)), BIAS)


CODES = {made.__name__: made for made in (blocks, sparse, hashed, convolved, projected, relaid, folded)}


def test_every_operator_is_looked_at() -> None:
    assert {step.op for made in CODES.values() for step in made().program} == set(OPERATORS)


def constexpr_file(place: str, part: Replacement, path: Path, *, opset: int = 18, dtype: type = np.float32) -> Array:
    """Writes the layer of a place in code; gives an input for it."""
    source, x = placed(place, opset=opset, dtype=dtype)
    (site,) = find_sites(source.clone())
    save(to_schemes(source, FP32, schemes={site.layer.name: CONSTEXPR}, weights={site.layer.name: part}), path)
    onnx.checker.check_model(str(path), full_check=True)
    return x


def answers(place: str, part: Replacement, x: Array) -> Array:
    made = PLACES[place]
    rows = np.moveaxis(x.astype(np.float32), made.axis, -1)
    y = evaluate(part, rows.reshape(-1, IN)).reshape(*rows.shape[:-1], OUT) + BIAS
    return y if place.startswith("gemm-transposed") else np.moveaxis(y, -1, made.axis)


@pytest.mark.parametrize("eight_bits", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("place", PLACES)
def test_answers_are_those_of_the_steps(place: str, name: str, eight_bits: bool, tmp_path: Path) -> None:
    part = in_8_bits(CODES[name]()) if eight_bits else CODES[name]()
    x = constexpr_file(place, part, tmp_path / "coded.onnx")
    assert_close(run(tmp_path / "coded.onnx", x=x)[0], answers(place, part, x), 1e-5)


@pytest.mark.parametrize("name", [name for name in CODES if name not in ("convolved", "projected")])
def test_what_is_decoded_at_load_is_one_dense_product_at_an_inference(name: str, tmp_path: Path) -> None:
    part = in_8_bits(CODES[name]())
    path = tmp_path / "coded.onnx"
    constexpr_file("matmul-2d", part, path)
    assert is_decoded(part)
    assert optimized(path) in (["MatMul", "Add"], ["Gemm"])
    assert read_contents(path).weights in ((), ((2, 7, 8), (2, 440, 8)))
    held = stored_bytes(part) + 4 * OUT
    assert held < path.stat().st_size < held + 6000


def test_steps_on_the_input_stay() -> None:
    assert not is_decoded(convolved())
    assert not is_decoded(projected())


def test_a_layer_in_two_places_is_decoded_once(tmp_path: Path) -> None:
    source = model(
        [node("MatMul", ["x", "w"], ["a"]), node("Neg", ["x"], ["n"]), node("MatMul", ["n", "w"], ["b"])],
        [info("x", [5, IN])],
        [info("a", [5, OUT]), info("b", [5, OUT])],
        {"w": normal(IN, OUT)},
        opset=18,
    )
    part = blocks()
    (site,) = find_sites(source.clone())
    path = tmp_path / "twice.onnx"
    save(to_schemes(source, FP32, schemes={site.layer.name: CONSTEXPR}, weights={site.layer.name: part}), path)
    assert [n.op_type for n in onnx.load(path).graph.node].count("Gather") == 1
    x = normal(5, IN, seed=3)
    a, b = run(path, x=x)
    assert_close(a, x @ part.weight.T + BIAS, 1e-5)
    assert_close(b, -x @ part.weight.T + BIAS, 1e-5)


def test_half_floats_are_widened_and_narrowed(tmp_path: Path) -> None:
    part = blocks()
    x = constexpr_file("matmul-3d", part, tmp_path / "half.onnx", dtype=np.float16)
    (y,) = run(tmp_path / "half.onnx", x=x)
    assert y.dtype == np.float16
    assert_close(y, answers("matmul-3d", part, x), 2e-3)


@pytest.mark.parametrize(("made", "opset", "least"), [(blocks, 12, 13), (hashed, 17, 18)])
def test_a_model_of_an_older_opset_is_refused(
    made: Callable[[], Replacement], opset: int, least: int, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"the model has opset {opset}, its code needs {least}"):
        constexpr_file("matmul-2d", made(), tmp_path / "old.onnx", opset=opset)
