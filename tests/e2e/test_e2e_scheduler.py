"""Calibration and decomposition of a model on a real Dask cluster, one worker of which is killed at work."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgepack.data import Samples
from edgepack.model.types import Spectrum
from edgepack.pipeline.activations import Subject
from edgepack.pipeline.decompositions import decompose
from edgepack.sources import open_model
from edgepack.workers import Workers, cluster, workers
from edgepack.workspace import Cache, Progress, Workspace, silent
from tests.e2e.e2e_cli import assert_fails, run
from tests.workers.dask_cluster import DaskCluster, dask_cluster

SIDE, LAYERS = 320, 12


@pytest.fixture(scope="module")
def model() -> ir.Model:
    """A chain of square layers over sequences of 16 rows."""
    rng = np.random.default_rng(0)
    x = ir.val("x", ir.DataType.FLOAT, [1, 16, SIDE])
    value, nodes, weights = x, [], []
    for number in range(LAYERS):
        weight = rng.normal(size=(SIDE, SIDE)) / np.sqrt(SIDE)
        weights.append(ir.val(f"w{number}", const_value=ir.tensor(weight.astype(np.float32), name=f"w{number}")))
        nodes += [ir.node("MatMul", [value, weights[-1]])]
        nodes += [ir.node("Tanh", [nodes[-1].outputs[0]])]
        value = nodes[-1].outputs[0]
    value.name, value.type, value.shape = "y", ir.TensorType(ir.DataType.FLOAT), x.shape
    graph = ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": 17}, name="chain")
    return ir.Model(graph, ir_version=9)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Samples({"x": np.random.default_rng(1).normal(size=(1100, 1, 16, SIDE)).astype(np.float32)})


@pytest.fixture(scope="module")
def here(model: ir.Model, samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> tuple[Spectrum, ...]:
    return spectra(model, samples, tmp_path_factory.mktemp("here"), silent, None)


def spectra(
    model: ir.Model, samples: Samples, folder: Path, progress: Progress, executor: Workers | None
) -> tuple[Spectrum, ...]:
    ir.save(model, folder / "chain.onnx")
    opened = open_model(str(folder / "chain.onnx"), folder)
    workspace = Workspace(Cache(folder / "cache"), folder, workers=executor, progress=progress)
    found, unseen = decompose(Subject(opened, samples, "key"), "whitened", workspace)
    assert unseen == ()
    return found


def assert_same(found: Sequence[Spectrum], wanted: Sequence[Spectrum]) -> None:
    """Bit for bit."""
    for a, b in zip(found, wanted, strict=True):
        assert a.inputs is not None
        assert b.inputs is not None
        assert (a.inputs.low, a.inputs.high, a.inputs.row_range) == (b.inputs.low, b.inputs.high, b.inputs.row_range)
        np.testing.assert_array_equal(a.inputs.variance, b.inputs.variance)
        np.testing.assert_array_equal(a.mean, b.mean)
        np.testing.assert_array_equal(a.energies, b.energies)
        np.testing.assert_array_equal(a.basis, b.basis)


@pytest.mark.parametrize("stage", ["calibrate", "factorize"])
def test_the_result_is_the_same_although_a_worker_is_killed(
    stage: str,
    model: ir.Model,
    samples: Samples,
    here: tuple[Spectrum, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "SEND_S", 0.0)
    at_work = threading.Event()

    def progress(at: str, done: int = 0, total: int = 0) -> None:
        if at == stage:
            at_work.set()

    def kill(running: DaskCluster) -> int:
        """From beside the work, which goes on meanwhile; the cluster is watched before it begins."""
        victim = running.busy_worker(after=at_work)
        victim.kill()
        return victim.wait()

    with dask_cluster(tmp_path) as running, workers(running.address) as executor, ThreadPoolExecutor(1) as beside:
        killed = beside.submit(kill, running)
        found = spectra(model, samples, tmp_path, progress, executor)
        assert killed.result(timeout=30) == -9
        assert sum(worker.poll() is None for worker in running.workers) == 1
    assert_same(found, here)


def test_a_build_without_its_scheduler_fails_at_once(model: ir.Model, tmp_path: Path) -> None:
    path, out = tmp_path / "chain.onnx", tmp_path / "pack"
    ir.save(model, path)
    done = run("build", path, "--target", "rpi4", "--out", out, "--scheduler", "nowhere:8786")
    assert_fails(done, 4, ["'nowhere:8786' is no address of a scheduler"], out=out)
