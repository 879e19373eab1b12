"""Layers on one input with one B: one operator feeds several, in every scheme, and the file is proved so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.backend import WriterData
from edgepack.backends.runtime import load, predict
from edgepack.backends.tflite.backend import BACKEND
from edgepack.backends.tflite.schemes import FP32, INT4_DYNAMIC, INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.tflite.writer import TfliteWriter
from edgepack.data import Samples
from edgepack.metrics.values import sqnr_db
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, low_rank
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.model.structure import Op, shared_input
from edgepack.model.types import LayerPlan
from edgepack.natives import native
from edgepack.pipeline import verify
from edgepack.sources import open_model
from edgepack.workspace import Cache, Workspace
from tests.backends.tflite.given_files import RELU, GivenFile
from tests.linear_plans import linear_plan

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
WIDTH, OUTPUTS, RANK = 64, (48, 48, 32), 8
NAMES = ("fc0", "fc1", "fc2")


def write_branches(path: Path) -> Path:
    """Three FULLY_CONNECTED operators on one input, one with a fused ReLU, and one on the first one's output."""
    file, rng = GivenFile(), np.random.default_rng(0)
    x = file.tensor("x", (1, WIDTH))
    file.graph.inputs, file.graph.outputs = [x], []

    def layer(name: str, taken: int, rows: int, columns: int, **fields: int) -> int:
        weight = file.weight(name, rng.standard_normal((rows, columns)).astype(np.float32), "float32")
        bias = file.tensor(f"{name}/bias", (rows,), "float32", rng.standard_normal(rows).astype(np.float32))
        return file.op(
            "FULLY_CONNECTED", [taken, weight, bias], file.tensor(f"{name}/y", (1, rows)), "FullyConnected", **fields
        )

    for number, (name, rows) in enumerate(zip(NAMES, OUTPUTS, strict=True)):
        file.graph.outputs.append(layer(name, x, rows, WIDTH, fusedActivationFunction=RELU if number == 1 else 0))
    file.graph.outputs[0] = layer("last", file.graph.outputs[0], 16, OUTPUTS[0])
    return file.save(path)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return open_model(str(write_branches(tmp_path / "branches.tflite")), tmp_path)


@pytest.fixture
def samples() -> Samples:
    return Samples({"x": np.random.default_rng(1).standard_normal((20, WIDTH)).astype(np.float32)})


@pytest.fixture
def files(model: Model, samples: Samples, tmp_path: Path) -> TfliteWriter:
    data = WriterData(samples, {name: array[:1] for name, array in samples.inputs.items()}, 127)
    writer = BACKEND.open(model, data, None, Workspace(Cache(tmp_path / "cache"), tmp_path))
    assert isinstance(writer, TfliteWriter)
    return writer


def factors(model: Model) -> dict[str, Replacement]:
    rng = np.random.default_rng(2)
    B = rng.standard_normal((RANK, WIDTH)).astype(np.float32)
    layers = {layer.name: layer for layer in model.layers}
    return {
        name: Replacement(
            shared_input(RANK),
            {"A": rng.standard_normal((rows, RANK)).astype(np.float32), "B": B},
            layers[name].bias + np.float32(0.1),
        )
        for name, rows in zip(NAMES, OUTPUTS, strict=True)
    }


def plans(scheme: Scheme) -> tuple[LayerPlan, ...]:
    made = []
    for number, (name, rows) in enumerate(zip(NAMES, OUTPUTS, strict=True)):
        ops = (Op("B", "matmul", RANK, WIDTH), Op("A", "matmul", rows, RANK))[number > 0 :]
        made.append(replace(linear_plan(name, rows, WIDTH, shared_input(RANK), scheme=scheme), ops=ops, shares=NAMES))
    return (*made, linear_plan("last", 16, OUTPUTS[0], None, scheme=scheme))


def test_layers_that_take_one_value_share(files: TfliteWriter) -> None:
    assert files.shares(NAMES)
    assert not files.shares(("fc0", "last"))


@pytest.mark.parametrize("scheme", [FP32, INT8_DYNAMIC, INT4_DYNAMIC, INT8_STATIC], ids=str)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_file_holds_one_b_and_is_proved(
    model: Model, files: TfliteWriter, samples: Samples, scheme: Scheme, backwards: bool, tmp_path: Path
) -> None:
    parts, path = factors(model), tmp_path / "out.tflite"
    given = dict(reversed(parts.items())) if backwards else parts
    assert files.takes(given) == given
    written = files.write(given, FileScheme.of(scheme), path)
    contents = files.read(path)
    assert len(contents.products) == 5
    assert [sides[:2] for sides in contents.weights].count((RANK, WIDTH)) == 1
    plan = plans(scheme)
    proof = verify.weights_as_planned(contents, files.dense_contents, plan, FileScheme.of(scheme))
    assert proof.passed, proof.detail
    kept = verify.structures_kept(contents, files.read_optimized(path), written, plan)
    assert kept.passed, kept.detail
    separate = {name: low_rank(part.A, part.B, part.bias) for name, part in parts.items()}
    wanted = predict(native("tflite").session(model.content, separate, threads=1), samples)
    assert sqnr_db(predict(load(path, "tflite"), samples), wanted) > {32: 80, 8: 20, 4: 8}[scheme.bits]
