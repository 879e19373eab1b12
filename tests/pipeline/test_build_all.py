"""A zoo: one that fails stops none, what is finished is not built again, and a worker that is killed loses nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgepack.errors import BudgetError, DeviceError, ModelError, UsageError
from edgepack.pipeline.build_all import BUILT, ModelJob, ZooResult, _content, build_all
from edgepack.report.build_all import zoo_report
from edgepack.targets.file import get_target
from tests.e2e.e2e_models import mlp, points
from tests.report.shown import terminal_text
from tests.workers.dask_cluster import dask_cluster

SAMPLES = """
import os, signal, time
from pathlib import Path
import numpy as np

def samples():
    with np.load(Path(__file__).with_name("data.npz")) as data:
        for x, y in zip(data["x"], data["y"]):
            yield {"x": x, "y": y}

def gated():
    here = Path(__file__).parent
    (here / f"begun-{os.getpid()}").touch()
    while not (here / "gate").exists():
        time.sleep(0.01)
    yield from samples()

def dies():
    os.kill(os.getpid(), signal.SIGKILL)
    yield from samples()
"""
QUICK = ("--formats=onnx", "--max-drop=1", "--no-baseline")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    mlp(tmp_path / "one.onnx")
    x, y = points(500, 1)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    (tmp_path / "samples.py").write_text(SAMPLES)
    return tmp_path


def job(name: str, function: str = "samples", *more: str, targets: str = "rpi4") -> ModelJob:
    chosen = tuple(get_target(target) for target in targets.split(","))
    data = f"samples.py:{function}"
    return ModelJob(name, "one.onnx", "one", chosen, (f"--data={data}", *QUICK, *more), (data, "data.npz"))


def built(result: ZooResult) -> dict[tuple[str, str], bool]:
    return {(pack.model, pack.target): pack.kept for pack in result.packs}


def test_a_failure_stops_no_other_and_what_is_finished_is_not_built_again(zoo: Path) -> None:
    (zoo / "bad.onnx").write_bytes((zoo / "one.onnx").read_bytes()[:100])
    jobs = [replace(job("bad"), model="bad.onnx"), job("dies", "dies"), job("good", targets="rpi4,n100")]
    told: list[tuple[int, int]] = []
    out = zoo / "out"
    result = build_all(jobs, here=zoo, out=out, progress=lambda _, done=0, total=0: told.append((done, total)))
    assert built(result) == {("good", "rpi4"): False, ("good", "n100"): False}
    assert told[-1] == (3, 3)
    bad, dies = result.failed
    assert (bad.model, bad.failure.kind, bad.failure.exit_code) == ("bad", "ModelError", 3)
    assert "ended by signal 9" in dies.failure.message
    assert isinstance(result.failure, ModelError)
    assert result.failure.message.startswith("2 of 3 models are not built: bad: bad.onnx: it is cut short")
    report = zoo_report(result)
    assert [file["target"] for file in report.record["files"]] == ["rpi4", "n100"]
    assert report.record["error"]["exit_code"] == 3
    assert "ended by signal 9" in terminal_text(report)

    pack = out / "good" / "one.rpi4"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = build_all([job("good", targets="rpi4,n100")], here=zoo, out=out)
    assert built(again) == {("good", "rpi4"): True, ("good", "n100"): True}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.failure is None
    (pack / "model.onnx").unlink()
    assert built(build_all([job("good", targets="rpi4,n100")], here=zoo, out=out)) == {
        ("good", "rpi4"): False,
        ("good", "n100"): True,
    }
    (over,) = build_all([job("good", "samples", "--max-size=1kB")], here=zoo, out=out).packs
    assert (over.kept, over.unmet is None) == (False, False), "other options are another pack"
    unmet = build_all([job("good", "samples", "--max-size=1kB")], here=zoo, out=out)
    assert isinstance(unmet.failure, BudgetError)
    assert unmet.packs[0].kept, "it would come out the same"


def test_of_two_workers_one_is_killed_and_nothing_is_lost(zoo: Path) -> None:
    names = ["a", "b", "c"]
    found: list[ZooResult] = []
    with dask_cluster(zoo) as cluster:
        running = threading.Thread(
            target=lambda: found.append(
                build_all([job(name, "gated") for name in names], here=zoo, out=zoo / "out", scheduler=cluster.address)
            )
        )
        running.start()
        until(lambda: len(list(zoo.glob("begun-*"))) >= 2)
        begun = [int(path.name.partition("-")[2]) for path in zoo.glob("begun-*")]
        cluster.workers[0].kill()
        until(lambda: sum(alive(number) for number in begun) == 1)
        (zoo / "gate").touch()
        running.join(120)
    (result,) = found
    assert built(result) == {(name, "rpi4"): False for name in names}
    assert result.failure is None
    assert sorted(path.name for path in (zoo / "out").rglob(f"*{BUILT}")) == [f"one.rpi4{BUILT}"] * 3
    assert not list((zoo / "out").glob(".building-*"))


def test_weights_in_another_file_count(zoo: Path) -> None:
    model = onnx.load(zoo / "one.onnx")
    options = {"all_tensors_to_one_file": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save_model(model, zoo / "outside.onnx", save_as_external_data=True, **options)
    before = _content("outside.onnx", zoo)
    assert before == _content(str(zoo / "outside.onnx"), Path("elsewhere"))
    (zoo / "weights.bin").write_bytes((zoo / "weights.bin").read_bytes()[::-1])
    assert _content("outside.onnx", zoo) != before
    assert _content("samples.py:dies", zoo) == _content("samples.py:gated", zoo), "the option tells them apart"
    assert _content("package.module:function", zoo) == "package.module:function"
    (zoo / "folder").mkdir()
    empty = _content("folder", zoo)
    (zoo / "folder" / "a.npy").write_bytes(b"1")
    assert _content("folder", zoo) != empty


def until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise TimeoutError("it has not come to that")


def alive(number: int) -> bool:
    """Whether a process runs; one that waits to be buried does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_that_does_not_see_the_folder_says_so(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepack.pipeline import build_all as module

    real = module.carry_out
    monkeypatch.setattr(module, "carry_out", lambda order: real(replace(order, token=os.path.join("elsewhere", "x"))))
    result = build_all([job("a")], here=zoo, out=zoo / "out")
    assert isinstance(result.failure, DeviceError)
    assert "a worker does not see elsewhere" in result.failure.message


def test_what_makes_no_zoo(zoo: Path) -> None:
    with pytest.raises(UsageError, match="two models are called a"):
        build_all([job("a"), job("a")], here=zoo, out=zoo / "out")
    with pytest.raises(UsageError, match="a: host is whatever machine a worker runs on"):
        build_all([job("a", targets="host")], here=zoo, out=zoo / "out", scheduler="tcp://127.0.0.1:1")
    assert not (zoo / "out").exists()
