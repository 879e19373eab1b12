"""Layers on one input with one B: it stands in the file once, in every scheme, and the file is proved so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgepack.backends.onnx.file import read
from edgepack.backends.onnx.rewrite import names_after, with_factors
from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC, INT8_STATIC, NBITS4, NBITS8
from edgepack.backends.onnx.split import split_onnx
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.runtime import load
from edgepack.backends.segments import LayerShape
from edgepack.data import Samples
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import Op, shared_input
from edgepack.model.types import LayerPlan
from edgepack.pipeline import verify
from tests.linear_plans import linear_plan
from tests.pipeline.small_attention import LAYERS, TOKENS, WIDTH, arrays, write_attention

RANK = 24
FILE_SCHEMES = (FP32, INT8_DYNAMIC, INT8_STATIC, NBITS8, NBITS4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return read(write_attention(tmp_path_factory.mktemp("attention")))


@pytest.fixture(scope="module")
def samples() -> Samples:
    x = np.random.default_rng(5).normal(size=(16, TOKENS, WIDTH)).astype(np.float32)
    return Samples({"x": x}, None)


def factors() -> dict[str, Replacement]:
    """Of random A, and one B; every row's largest weight is the largest code of an int8 grid."""
    rng = np.random.default_rng(7)
    B = rng.normal(size=(RANK, WIDTH)).astype(np.float32)
    biases = {name: arrays()[f"{name}.bias"] for name in LAYERS}
    return {
        name: Replacement(
            shared_input(RANK),
            {"A": rng.normal(size=(WIDTH, RANK)).astype(np.float32) / 16, "B": B},
            biases[name] + np.float32(0.5),
        )
        for name in LAYERS
    }


def with_separate(parts: dict[str, Replacement]) -> dict[str, Replacement]:
    return {name: low_rank(part.A, part.B, part.bias) for name, part in parts.items()}


def test_layers_that_take_one_value_share(model: ir.Model) -> None:
    writer = OnnxWriter(model, None, qmax=127)
    assert writer.shares(LAYERS)
    assert not writer.shares(("q_proj", "scores"))
    assert not writer.shares(("q_proj", "nothing"))


def test_names_are_those_of_the_graph(model: ir.Model) -> None:
    parts = factors()
    thin = with_factors(model, parts)
    names = names_after(model, thin, parts)
    first, *others = LAYERS
    assert names[first] == (f"{first}.B", f"{first}.A")
    assert all(names[name] == (f"{first}.B", f"{name}.A") for name in others)
    assert names["scores"] == ("scores",)
    assert f"{others[0]}.B" not in thin.graph.initializers


def test_factors_in_another_order_are_written_alike(model: ir.Model) -> None:
    parts = factors()
    turned = dict(reversed(parts.items()))
    found, wanted = (names_after(model, with_factors(model, each), each) for each in (turned, parts))
    assert found == wanted


def plans(scheme: Scheme) -> tuple[LayerPlan, ...]:
    made = []
    for number, name in enumerate(LAYERS):
        plan = linear_plan(name, WIDTH, WIDTH, RANK, scheme=scheme)
        ops = (Op("B", "matmul", RANK, WIDTH), Op("A", "matmul", WIDTH, RANK))[number > 0 :]
        made.append(replace(plan, structure=shared_input(RANK), ops=ops, shares=LAYERS))
    return tuple(made)


@pytest.mark.parametrize("scheme", FILE_SCHEMES, ids=str)
def test_a_file_holds_one_b_and_is_proved(model: ir.Model, samples: Samples, scheme: Scheme, tmp_path: Path) -> None:
    writer, parts = OnnxWriter(model, samples, qmax=127), factors()
    one, several = tmp_path / "one.onnx", tmp_path / "several.onnx"
    written = writer.write(parts, FileScheme.of(scheme), one)
    writer.write(with_separate(parts), FileScheme.of(scheme), several)
    contents = writer.read(one)
    assert sum(sides[:2] == (RANK, WIDTH) for sides in contents.weights) == 4
    saved = 2 * RANK * WIDTH * scheme.bits // 8
    assert saved <= several.stat().st_size - one.stat().st_size <= 1.6 * saved + 2000
    plan = plans(scheme)
    assert verify.weights_as_planned(contents, writer.dense_contents, plan, FileScheme.of(scheme)).passed
    kept = verify.structures_kept(contents, writer.read_optimized(one), written, plan)
    assert kept.passed, kept.detail
    given, wanted = (load(path, "onnx").run({"x": samples.arrays["x"][:1]})[0] for path in (one, several))
    np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5)


def test_a_second_b_fails_the_proof_of_bytes(model: ir.Model, tmp_path: Path) -> None:
    writer, path = OnnxWriter(model, None, qmax=127), tmp_path / "several.onnx"
    writer.write(with_separate(factors()), FileScheme.of(FP32), path)
    proof = verify.weights_as_planned(writer.read(path), writer.dense_contents, plans(FP32), FileScheme.of(FP32))
    assert not proof.passed


def test_a_file_is_cut_layer_by_layer(model: ir.Model, samples: Samples, tmp_path: Path) -> None:
    writer, path = OnnxWriter(model, samples, qmax=127), tmp_path / "one.onnx"
    writer.write(factors(), FileScheme.of(INT8_DYNAMIC), path)
    shapes = [
        LayerShape(name, WIDTH, WIDTH, RANK, False, ((WIDTH, RANK),) if number else ())
        for number, name in enumerate(LAYERS)
    ]
    parts = split_onnx(path, [*shapes, LayerShape("scores", 6, WIDTH, None)], tmp_path)
    assert [part.name for part in parts if part.layer] == [*LAYERS, "scores"]
