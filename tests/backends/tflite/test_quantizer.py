"""Integer schemes, operator by operator."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.tflite import quantizer
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.file import whole
from edgepack.backends.tflite.kinds.linear import takes_int4
from edgepack.backends.tflite.read import linear_ops, operators, weight_bytes
from edgepack.backends.tflite.runtime import interpreter, load, signature
from edgepack.backends.tflite.schemes import FP32, INT8_STATIC, WEIGHTS8
from edgepack.backends.tflite.schemes import INT4_DYNAMIC as INT4
from edgepack.backends.tflite.schemes import INT8_DYNAMIC as INT8
from edgepack.errors import ModelError
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.sources.torch import export_program, save_program
from tests.backends.tflite.tflite_cases import error

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Sizes(nn.Module):
    """A 1×1 convolution, an even and an odd number of columns."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(8, 16, 1)
        self.even, self.odd = nn.Linear(64, 33), nn.Linear(33, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.odd(torch.relu(self.even(torch.relu(self.mix(x)).flatten(1))))


@dataclass(frozen=True)
class Made:
    path: Path
    inputs: dict[str, Array]
    want: Array


def made(emitter: TfliteEmitter, folder: Path, module: nn.Module, shape: tuple[int, ...]) -> Made:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_program(export_program(module, (x,)), folder / "m.pt2")
    emitter.load_program(folder / "m.pt2")
    emitter.emit(folder / "m.tflite")
    (name,) = signature(folder / "m.tflite")[1]
    return Made(folder / "m.tflite", {name: x.numpy()}, module(x).detach().numpy())


@pytest.fixture(scope="module")
def mlp(emitter: TfliteEmitter, tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))
    return made(emitter, tmp_path_factory.mktemp("mlp"), layers, (2, 128))


@pytest.fixture(scope="module")
def sizes(emitter: TfliteEmitter, tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    return made(emitter, tmp_path_factory.mktemp("sizes"), Sizes(), (1, 8, 2, 2))


def bits(path: Path) -> list[int]:
    return [op.bits for op in linear_ops(path)]


def test_constants_are_copied_once_and_the_file_is_the_same(
    emitter: TfliteEmitter, mlp: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sample would have a copy of every weight otherwise."""
    samples = {name: np.stack([value, 2 * value, -value]) for name, value in mlp.inputs.items()}
    reads: list[tuple[int, int]] = []

    class Counted(quantizer._ConstantsOnce):
        def __init__(self, interpreter: Any, model: Any) -> None:
            super().__init__(interpreter, model)
            read = interpreter.get_tensor
            interpreter.get_tensor = lambda *place: (reads.append(place), read(*place))[1]

    monkeypatch.setattr(quantizer, "_ConstantsOnce", Counted)
    quantizer.quantize(mlp.path, tmp_path / "once.tflite", INT8_STATIC, samples)
    counts = Counter(reads)
    model = whole(mlp.path)
    tensors = model.subgraphs[0].tensors
    constants = {(i, 0) for i, one in enumerate(tensors) if model.buffers[one.buffer].data is not None}
    assert len(constants) >= 3
    assert {counts[place] for place in constants} == {1}
    assert max(counts.values()) == 3
    monkeypatch.setattr(quantizer, "_read_constants_once", lambda calibrator: None)
    quantizer.quantize(mlp.path, tmp_path / "each.tflite", INT8_STATIC, samples)
    assert (tmp_path / "once.tflite").read_bytes() == (tmp_path / "each.tflite").read_bytes()


def test_int4_is_packed_on_its_grid_and_runs(emitter: TfliteEmitter, mlp: Made, tmp_path: Path) -> None:
    assert emitter.quantize(mlp.path, tmp_path / "4.tflite", INT4) == ()
    assert emitter.quantize(mlp.path, tmp_path / "8.tflite", INT8) == ()
    assert bits(tmp_path / "4.tflite") == [4, 4, 4]
    for op, dense in zip(linear_ops(tmp_path / "4.tflite"), linear_ops(mlp.path), strict=True):
        assert (np.abs(op.weight).max(axis=1) == 7).all()
        assert (op.axis, op.scales.shape) == (0, (len(op.weight),))
        assert (np.abs(op.values - dense.weight) <= 0.501 * op.scales[:, None]).all()
    assert weight_bytes(tmp_path / "4.tflite") * 2 == weight_bytes(tmp_path / "8.tflite")
    assert (tmp_path / "4.tflite").stat().st_size < 0.65 * (tmp_path / "8.tflite").stat().st_size
    assert error(load(tmp_path / "4.tflite", threads=1).run(mlp.inputs), [mlp.want]) < 0.2


def test_int4_only_where_there_is_a_kernel(emitter: TfliteEmitter, sizes: Made, tmp_path: Path) -> None:
    assert emitter.quantize(sizes.path, tmp_path / "4.tflite", INT4) == ("CONV_2D", "FULLY_CONNECTED")
    assert bits(tmp_path / "4.tflite") == [8, 4, 8]
    assert error(load(tmp_path / "4.tflite", threads=1).run(sizes.inputs), [sizes.want]) < 0.3


@pytest.mark.parametrize("columns", [30, 31])
def test_xnnpack_takes_what_takes_int4_says(
    emitter: TfliteEmitter, tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepack.backends.tflite import quantizer

    fc = made(emitter, tmp_path, nn.Linear(columns, 5), (1, columns))
    monkeypatch.setattr(quantizer, "takes_int4", lambda op, columns: True)
    quantizer.quantize(fc.path, tmp_path / "4.tflite", INT4)
    assert bits(tmp_path / "4.tflite") == [4]
    runtime: Any = interpreter(tmp_path / "4.tflite")
    delegated = "DELEGATE" in [op["op_name"] for op in runtime._get_ops_details()]
    assert delegated == takes_int4("FULLY_CONNECTED", columns)


@pytest.mark.parametrize("scheme", [FP32, INT8, INT4], ids=str)
def test_every_operator_has_its_own_scheme(emitter: TfliteEmitter, mlp: Made, tmp_path: Path, scheme: Scheme) -> None:
    width = {FP32: 32, INT8: 8, INT4: 4}
    first, second, third = (op.output for op in linear_ops(mlp.path))
    for a, b in ((INT4, FP32), (FP32, INT8), (INT8, INT4)):
        path = tmp_path / "mixed.tflite"
        assert emitter.quantize(mlp.path, path, scheme, schemes={first: a, third: b}) == ()
        assert bits(path) == [width[a], width[scheme], width[b]]
        assert error(load(path, threads=1).run(mlp.inputs), [mlp.want]) < (0.25 if INT4 in (a, b, scheme) else 0.03)
    emitter.quantize(mlp.path, tmp_path / "plain.tflite", scheme)
    emitter.quantize(mlp.path, tmp_path / "same.tflite", scheme, schemes={second: scheme})
    assert (tmp_path / "plain.tflite").read_bytes() == (tmp_path / "same.tflite").read_bytes()


def test_static_files_can_hold_float_layers_alone(emitter: TfliteEmitter, mlp: Made, tmp_path: Path) -> None:
    names = [op.output for op in linear_ops(mlp.path)]
    samples = {name: np.repeat(value[None], 4, axis=0) for name, value in mlp.inputs.items()}
    emitter.quantize(mlp.path, tmp_path / "s.tflite", INT8_STATIC, samples, {names[1]: FP32})
    assert bits(tmp_path / "s.tflite") == [8, 32, 8]
    assert error(load(tmp_path / "s.tflite", threads=1).run(mlp.inputs), [mlp.want]) < 0.1
    for other in (INT8, INT4):
        with pytest.raises(ValueError, match="int8-static can be fp32, not"):
            emitter.quantize(mlp.path, tmp_path / "no.tflite", INT8_STATIC, samples, {names[1]: other})
    with pytest.raises(ValueError, match="not int8-static"):
        emitter.quantize(mlp.path, tmp_path / "no.tflite", INT8, schemes={names[1]: INT8_STATIC})
    assert not (tmp_path / "no.tflite").exists()


def test_an_operator_that_is_not_there(emitter: TfliteEmitter, mlp: Made, tmp_path: Path) -> None:
    first = linear_ops(mlp.path)[0].output
    for name in ("nowhere", first[:-1], f"{first};x", ".*"):
        with pytest.raises(ModelError, match="no linear operator writes"):
            emitter.quantize(mlp.path, tmp_path / "no.tflite", INT8, schemes={name: INT4})


@pytest.mark.parametrize("others", [FP32, INT8, WEIGHTS8], ids=str)
def test_int8_weights_are_decoded_in_front_of_float_operators(
    others: Scheme, emitter: TfliteEmitter, mlp: Made, tmp_path: Path
) -> None:
    (first, *rest), path = linear_ops(mlp.path), tmp_path / "8.tflite"
    emitter.quantize(mlp.path, path, others, schemes={first.output: WEIGHTS8})
    found = linear_ops(path)
    assert [op.bits for op in found] == [8, *(others.bits for _ in rest)]
    decoded = 1 + (len(rest) if others == WEIGHTS8 else 0)
    assert operators(path).count("DEQUANTIZE") == decoded
    assert found[0].scales.shape == (len(first.weight),)
    assert (np.abs(found[0].values - first.weight) <= 0.501 * found[0].scales[:, None]).all()
    assert error(load(path, threads=1).run(mlp.inputs), [mlp.want]) < 0.02
