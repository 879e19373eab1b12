"""The real emulator: the target's own kernels give this machine's answers, and their counts repeat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.backend import WriterData
from edgepack.backends.onnx import schemes as onnx
from edgepack.backends.registry import backend
from edgepack.backends.schemes import SCHEMES
from edgepack.backends.tflite import schemes as tflite
from edgepack.benchmark.emulate import MAX_DB, emulate_variants
from edgepack.benchmark.session import Variant
from edgepack.data import example
from edgepack.devices.device import Job
from edgepack.devices.emulated import EmulatedDevice
from edgepack.emulator.counts import LEVELS, middle, per_inference
from edgepack.errors import DataError, ModelError, StableDeviceError, TransientDeviceError
from edgepack.methods.registry import factorizer
from edgepack.model.scheme import FileScheme, Scheme
from edgepack.pipeline.activations import Subject
from edgepack.pipeline.datasets import load_data
from edgepack.pipeline.decompositions import decompose
from edgepack.quantize.rotation import balanced
from edgepack.sources import open_model
from edgepack.targets.file import get_target
from edgepack.workspace import Cache, Workspace
from tests import bench_models

pytestmark = pytest.mark.system

RECIPE = """
import numpy as np, torch
from edgepack.model.types import Recipe

def recipe():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(192, 160), torch.nn.ReLU(), torch.nn.Linear(160, 12)).eval()
    x = np.random.default_rng(0).standard_normal((320, 192)).astype(np.float32)
    return Recipe(model, (torch.zeros(1, 192),), {"x": x})
"""
LEAST_DB = {
    onnx.FP32: 100.0,
    onnx.WEIGHTS8: 100.0,
    onnx.WEIGHTS4: 100.0,
    onnx.INT8_DYNAMIC: 60.0,
    onnx.INT8_STATIC: 30.0,
    onnx.NBITS8: 35.0,
    onnx.NBITS4: 35.0,
    tflite.FP32: 100.0,
    tflite.WEIGHTS8: 100.0,
    tflite.INT8_DYNAMIC: 60.0,
    tflite.INT8_STATIC: 30.0,
    tflite.INT4_DYNAMIC: 60.0,
}
"""Float kernels sum in different orders; a static grid turns a difference in the last bit into a whole step; whether
MatMulNBits quantizes its input depends on the CPU."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Scheme, Variant]]]:
    """Inputs, and a small network in every scheme of both formats, dense and factored, as (scheme, variant)."""
    work = tmp_path_factory.mktemp("schemes")
    recipe = work / "small.py"
    recipe.write_text(RECIPE)
    opened = open_model(f"{recipe}:recipe", work)
    data = load_data(None, opened, str(recipe), 0)
    workspace = Workspace(Cache(work / "cache"), work)
    subject = Subject(opened, data.calibration, "small")
    view, (spectrum, *_) = subject.views[0], decompose(subject, "whitened", workspace)[0]
    factors = {view.name: balanced(factorizer("whitened").factors(view, spectrum, 24), spectrum, seed=0)}
    seen = WriterData(data.calibration, example(data.validation, opened.inputs, 0), qmax=127)
    written: list[tuple[Scheme, Variant]] = []
    with backend("tflite").engine() as converter:
        for each in (
            backend("onnx").open(opened, seen, None, workspace),
            backend("tflite").open(opened, seen, converter, workspace),
        ):
            for scheme in SCHEMES[each.fmt]:
                dense, pair = (work / f"{kind}.{scheme}.{each.fmt}" for kind in ("dense", "pair"))
                each.write_dense(dense) if scheme.is_float else each.write_baseline(scheme, dense)
                each.write(factors, FileScheme.of(scheme), pair)
                written += [(scheme, Variant(path.stem, each.fmt, path)) for path in (dense, pair)]
    inputs = work / "inputs.npz"
    np.savez(inputs, x=np.random.default_rng(1).standard_normal((1, 192)).astype(np.float32))
    return inputs, written


@pytest.mark.parametrize("target", ["rpi-zero2w", "rpi5"])
def test_every_scheme_answers_as_on_this_machine(emulator: Path, files, target: str) -> None:
    """Cores with dot products (Cortex-A76) get other kernels than those without (A53)."""
    inputs, written = files
    result = emulate_variants([one for _, one in written], None, target=get_target(target), inputs=inputs)
    for (scheme, variant), found in zip(written, result.variants, strict=True):
        assert found.name == variant.name
        assert found.agreement_db is not None
        assert LEAST_DB[scheme] <= found.agreement_db <= MAX_DB, f"{variant.name}: {found.agreement_db:.1f} dB"
        assert list(found.rounds[0].misses) == list(LEVELS[: len(result.emulation.caches)])


def test_counts_repeat_and_a_pair_executes_less(emulator: Path, files) -> None:
    _, written = files
    chosen = [one for scheme, one in written if scheme == tflite.INT8_DYNAMIC]
    first, second = (emulate_variants(chosen, None, target=get_target("rpi4")).variants for _ in range(2))
    for one, other in zip(first, second, strict=True):
        counts = [middle(found.rounds).instructions for found in (one, other)]
        assert counts[0] == pytest.approx(counts[1], rel=0.01)
        spread = [round_.instructions for round_ in one.rounds]
        assert max(spread) - min(spread) <= 0.01 * counts[0]
    dense, pair = (middle(found.rounds).instructions for found in first)
    assert pair < dense


def test_twice_the_layer_executes_and_reads_twice_as_much(emulator: Path, tmp_path: Path) -> None:
    """512x512 and 512x1024 in float32: the matrix streams through a 32K cache, a line for every 16 weights."""
    paths = [bench_models.write_mlp(tmp_path / f"{rows}.onnx", [512, rows]) for rows in (512, 1024)]
    device = EmulatedDevice(get_target("rpi4"))
    first, second = map(device.push, paths)
    _, found = device.count(Job("marks", "onnx", first, more_models=(second,), warmup_runs=2, runs=2))
    device.close()
    small, large = (middle(per_inference(found, index)) for index in range(2))
    more = large - small
    assert more.misses["L1d"] == pytest.approx(512 * 512 / 16, rel=0.05)
    assert 512 * 512 / 4 / 4 < more.instructions < 512 * 512


def test_an_x86_target_runs_without_a_root_folder(emulator: Path, onnx_model: Path) -> None:
    result = emulate_variants([Variant("mlp", "onnx", onnx_model)], None, target=get_target("j4125"))
    assert middle(result.variants[0].rounds).instructions > 64 * 48 / 8
    assert "-avx2" in result.emulation.cpu


@pytest.fixture
def device(emulator: Path) -> Iterator[EmulatedDevice]:
    made = EmulatedDevice(get_target("rpi4"))
    yield made
    made.close()


def test_the_device_is_the_target(device: EmulatedDevice) -> None:
    report = device.probe()
    assert report["machine"] == "aarch64"
    assert {cpu["core"] for cpu in report["cpus"]} == {"cortex-a72"}
    assert report["runtimes"]["onnxruntime"]["version"] == "1.31.1"


def test_a_model_that_is_none_is_rejected(device: EmulatedDevice, tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(b"nothing of a model")
    with pytest.raises(StableDeviceError, match=r"no\.onnx.*model-rejected"):
        device.count(Job("marks", "onnx", device.push(path)))


def test_inputs_that_do_not_fit_are_named(device: EmulatedDevice, onnx_model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 7), np.float32))
    with pytest.raises(DataError, match="wants the shape"):
        device.count(Job("marks", "onnx", device.push(onnx_model), device.push(tmp_path / "x.npz")))


def test_a_missing_model_is_named(emulator: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model file at"):
        emulate_variants([Variant("a", "onnx", tmp_path / "a.onnx")], {}, target=get_target("rpi4"))


@pytest.mark.parametrize(("name", "kind"), [("SIGILL", StableDeviceError), ("SIGKILL", TransientDeviceError)])
def test_a_guest_that_dies_is_reported_with_its_signal(
    device: EmulatedDevice, onnx_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, kind: type
) -> None:
    """A real aarch64 process that ends itself so, in the place of the runner."""
    runner = tmp_path / "runner.py"
    runner.write_text(
        "import os, signal, sys\nprint('about to die', file=sys.stderr, flush=True)\n"
        f"os.kill(os.getpid(), signal.{name})\n"
    )
    monkeypatch.setattr("edgepack.devices.local.shipped", lambda _: runner)
    with pytest.raises(kind, match=rf"marks of mlp\.onnx on emulated rpi4: the process died of {name}.*about to die"):
        device.count(Job("marks", "onnx", device.push(onnx_model)))
