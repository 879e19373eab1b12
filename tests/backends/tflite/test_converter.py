from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.onnx.schemes import NBITS8
from edgepack.backends.tflite.converter import TfliteEmitter
from edgepack.backends.tflite.read import weight_bytes
from edgepack.backends.tflite.runtime import interpreter, load, session, signature
from edgepack.backends.tflite.schemes import FP32, INT8_DYNAMIC, INT8_STATIC
from edgepack.errors import ModelError
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.replacement import low_rank
from edgepack.model.scheme import Scheme
from edgepack.model.types import Array
from edgepack.sources.torch import export_program, save_program
from edgepack.torchgraph import find_linears, flat_module
from tests.backends.tflite.tflite_cases import MODELS, Case, error, known_ops, prepare

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

# Largest relative root-mean-square error against the torch reference; random weights and normal inputs.
TOLERANCES = {FP32: 1e-5, INT8_DYNAMIC: 0.03, INT8_STATIC: 0.12}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "normed"])
def test_every_scheme_of_dense_and_factored_agrees_with_torch(
    emitter: TfliteEmitter, tmp_path: Path, name: str
) -> None:
    case = prepare(name, tmp_path)
    loaded = emitter.load_program(case.program)
    assert list(loaded.inputs) == list(case.inputs)
    for kind, want in (("dense", case.dense), ("thin", case.thin)):
        source = tmp_path / f"{kind}.tflite"
        missing = emitter.emit(source, case.layers, case.factors if kind == "thin" else None)
        assert missing == ()
        assert list(signature(source)[1]) == list(case.inputs)
        for scheme, tolerance in TOLERANCES.items():
            path = source if scheme == FP32 else tmp_path / f"{kind}.{scheme}.tflite"
            if scheme != FP32:
                emitter.quantize(source, path, scheme, case.samples if scheme == INT8_STATIC else None)
            made = interpreter(path)
            assert {d["dtype"] for d in made.get_input_details() + made.get_output_details()} == {np.float32}
            assert error(session(made).run(case.inputs), want) < tolerance, (kind, scheme)
            check_weights(path, case, kind, scheme)


def check_weights(path: Path, case: Case, kind: str, scheme: Scheme) -> None:
    """Two thin matmuls per factored use and nothing dense; integers on the symmetric per-channel grid; bias intact."""
    found = known_ops(path)
    shapes = sorted(op.weight.shape for op in found)
    expected: list[tuple[int, ...]] = []
    for layer in case.layers:
        pair = case.factors[layer.name]
        matrices = [pair.A.shape, pair.B.shape] if kind == "thin" else [layer.weight.shape]
        expected += matrices * layer.uses
    assert shapes == sorted(expected)
    for op in found:
        if scheme == FP32:
            assert op.weight.dtype == np.float32
            continue
        assert op.weight.dtype == np.int8
        assert op.axis == 0
        assert op.scales.shape == (op.weight.shape[0],)
        assert (np.abs(op.weight).max(axis=1) == 127).all()
    if kind == "thin" and scheme != INT8_STATIC:
        written = [op.bias for op in found if op.bias is not None]
        for pair in case.factors.values():
            # Attention's 1/√d is folded into the query's layer: its weights and bias are a multiple of the ones given.
            assert any(b.shape == pair.A.shape[:1] and is_multiple(b, pair.bias) for b in written)
    # A weight that several nodes share is in the file once; the CNN's 3×3 convolution comes on top.
    once = sum(
        pair.A.size + pair.B.size if kind == "thin" else pair.A.shape[0] * pair.B.shape[1]
        for pair in case.factors.values()
    )
    stem = 16 * 3 * 3 * 3 if case.program.stem == "cnn" else 0
    assert weight_bytes(path) == (once + stem) * found[0].bits // 8


def is_multiple(have: Array, want: Array | None) -> bool:
    assert want is not None
    ratio = float(have @ want / (want @ want))
    return ratio > 0 and np.allclose(have, ratio * want, atol=1e-5)


def test_integers_chosen_before_survive_the_quantizer(emitter: TfliteEmitter, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    codes = [rng.integers(-126, 127, shape).astype(np.float32) for shape in ((12, 4), (4, 16))]
    for matrix in codes:
        matrix[:, 0] = 127
    scales = [rng.uniform(0.01, 0.1, (len(matrix), 1)).astype(np.float32) for matrix in codes]
    a, b = (c * s for c, s in zip(codes, scales, strict=True))
    torch.manual_seed(0)
    program = export_program(nn.Linear(16, 12), (torch.randn(1, 16),))
    save_program(program, tmp_path / "m.pt2")
    (site,) = find_linears(flat_module(program))
    layer = linear_layer("layer", site.weight, site.bias)
    emitter.load_program(tmp_path / "m.pt2")
    emitter.emit(tmp_path / "m.tflite", [layer], {"layer": low_rank(a, b, site.bias)})
    emitter.quantize(tmp_path / "m.tflite", tmp_path / "q.tflite", INT8_DYNAMIC)
    first, second = known_ops(tmp_path / "q.tflite")
    np.testing.assert_array_equal(first.weight, codes[1])
    np.testing.assert_array_equal(second.weight, codes[0])
    np.testing.assert_allclose(second.values, a, rtol=1e-6)


def test_names_can_be_given(emitter: TfliteEmitter, tmp_path: Path) -> None:
    case = prepare("shared", tmp_path)
    gives = ['{"1": "yes", "2": "no"}', "a"][: len(case.dense)]
    emitter.load_program(case.program, inputs=["z/tokens:0", "a scale"], outputs=gives)
    emitter.emit(tmp_path / "m.tflite")
    assert list(signature(tmp_path / "m.tflite")[1]) == ["z/tokens:0", "a scale"]
    assert set(interpreter(tmp_path / "m.tflite").get_signature_runner().get_output_details()) == set(gives)
    values = dict(zip(["z/tokens:0", "a scale"], case.inputs.values(), strict=True))
    assert error(load(tmp_path / "m.tflite", threads=1).run(values), case.dense) < 1e-5


def test_layer_without_counterpart_stays_dense_and_is_reported(emitter: TfliteEmitter, tmp_path: Path) -> None:
    case = prepare("shared", tmp_path)
    stranger = linear_layer("stranger", np.ones((3, 4), np.float32), None)
    pair = low_rank(np.ones((3, 1), np.float32), np.ones((1, 4), np.float32), None)
    emitter.load_program(case.program)
    assert emitter.emit(tmp_path / "m.tflite", [*case.layers, stranger], {"stranger": pair}) == ("stranger",)
    assert error(load(tmp_path / "m.tflite", threads=1).run(case.inputs), case.dense) < 1e-5


def test_operator_that_cannot_be_converted_is_named(
    emitter: TfliteEmitter, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    save_program(export_program(Odd(), (torch.ones(2),)), tmp_path / "odd.pt2")
    emitter.load_program(tmp_path / "odd.pt2")
    with pytest.raises(ModelError, match="bessel_j0"):
        emitter.emit(tmp_path / "odd.tflite")
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "odd.tflite").exists()


def test_bad_requests(emitter: TfliteEmitter, tmp_path: Path) -> None:
    case = prepare("shared", tmp_path)
    emitter.load_program(case.program)
    emitter.emit(tmp_path / "m.tflite")
    cases: list[tuple[Scheme, dict[str, tuple[int, ...]], str]] = [
        (INT8_STATIC, {}, "needs calibration samples"),
        (INT8_STATIC, {"x": (2, 1, 5, 32)}, "the model's inputs are"),
        (INT8_STATIC, {"tokens": (2, 1, 9), "scale": (2, 1, 2)}, "have shape"),
        (INT8_STATIC, {"tokens": (0, 1, 5, 32), "scale": (0, 1, 2)}, "above 0 was expected"),
        (INT8_STATIC, {"tokens": (2, 1, 5, 32), "scale": (3, 1, 2)}, "one number above 0 was expected"),
    ]
    for scheme, shapes, message in cases:
        arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        with pytest.raises(ModelError, match=message):
            emitter.quantize(tmp_path / "m.tflite", tmp_path / "q.tflite", scheme, arrays)
        assert not (tmp_path / "q.tflite").exists()
    with pytest.raises(ValueError, match="no TFLite file is in onnx:nbits8; there are fp32, int8-weights, int8"):
        emitter.quantize(tmp_path / "m.tflite", tmp_path / "q.tflite", NBITS8)
    assert not (tmp_path / "q.tflite").exists()


def every_scheme(worker: TfliteEmitter, case: Case, folder: Path) -> list[bytes]:
    folder.mkdir()
    worker.emit(folder / "m.tflite", case.layers, case.factors)
    for scheme in (INT8_DYNAMIC, INT8_STATIC):
        worker.quantize(folder / "m.tflite", folder / f"{scheme}.tflite", scheme, case.samples)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_a_killed_worker_is_an_error_and_the_next_one_writes_the_same_bytes(
    emitter: TfliteEmitter, tmp_path: Path
) -> None:
    case = prepare("shared", tmp_path)
    emitter.load_program(case.program)
    first = every_scheme(emitter, case, tmp_path / "a")
    assert first == every_scheme(emitter, case, tmp_path / "b")
    assert not [c for c in first if os.fsencode(tmp_path) in c or b"site-packages" in c]
    pid = emitter._process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ModelError, match="killed by signal 9") as caught:
        emitter.emit(tmp_path / "m.tflite")
    assert caught.value.hint is not None
    assert "memory" in caught.value.hint
    assert first == every_scheme(emitter, case, tmp_path / "c")


def test_a_conversion_that_was_begun_gives_the_same_file(emitter: TfliteEmitter, tmp_path: Path) -> None:
    case, other = prepare("shared", tmp_path), prepare("mlp", tmp_path)
    emitter.load_program(case.program)
    emitter.emit(tmp_path / "waited.tflite")
    emitter.begin_program(case.program)
    loaded = emitter.load_program(case.program)
    assert list(loaded.inputs) == list(case.inputs)
    emitter.emit(tmp_path / "begun.tflite")
    assert (tmp_path / "begun.tflite").read_bytes() == (tmp_path / "waited.tflite").read_bytes()
    # Whatever is asked for instead, its answer is not taken for another one's.
    emitter.begin_program(case.program)
    assert list(emitter.load_program(other.program).inputs) == list(other.inputs)
    emitter.emit(tmp_path / "other.tflite")
    assert error(load(tmp_path / "other.tflite", threads=1).run(other.inputs), other.dense) < 1e-5


def test_an_error_of_a_conversion_that_was_begun_comes_when_it_is_asked_for(
    emitter: TfliteEmitter, tmp_path: Path
) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    save_program(export_program(Odd(), (torch.ones(2),)), tmp_path / "odd.pt2")
    emitter.begin_program(tmp_path / "odd.pt2")
    emitter.load_program(tmp_path / "odd.pt2")
    with pytest.raises(ModelError, match="bessel_j0"):
        emitter.emit(tmp_path / "odd.tflite")
    case = prepare("shared", tmp_path)
    emitter.load_program(case.program)
    emitter.emit(tmp_path / "m.tflite")
    assert error(load(tmp_path / "m.tflite", threads=1).run(case.inputs), case.dense) < 1e-5


def test_closing_does_not_wait_for_what_was_begun(tmp_path: Path) -> None:
    case = prepare("shared", tmp_path)
    with TfliteEmitter() as worker:
        worker.begin_program(case.program)
        folder, pid = worker._process.folder, worker._process.pid
    assert not folder.exists()
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()


def test_nothing_is_left_after_closing() -> None:
    with TfliteEmitter() as worker:
        worker.warm_up()
        folder, pid = worker._process.folder, worker._process.pid
        assert folder.exists()
    assert not folder.exists()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
