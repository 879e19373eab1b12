"""The same build again: the same bytes, nothing computed twice, and an interrupted one goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Built
from tests.e2e.e2e_cli import command, invoke

MODELS = ("model.onnx", "model.tflite", "baseline/int8.onnx", "baseline/int8.tflite", "baseline/fp32.onnx")


def options(recipe_file: Path, out: Path) -> list[object]:
    return ["build", f"{recipe_file}:recipe", "--target", "rpi4", "--max-drop", "1", "--out", out]


def entries(cache: Path) -> dict[str, int]:
    """File below the cache → when it was written."""
    return {str(p.relative_to(cache)): p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file()}


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob(".*"))


def workers_of(parent: int) -> list[int]:
    """Converter processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            line = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"converter_worker" in line:
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def copy(rpi4_pack: Built, tmp_path: Path) -> Built:
    """The pack and its cache, to be changed."""
    shutil.copytree(rpi4_pack.path, tmp_path / "dist" / "pack")
    shutil.copytree(rpi4_pack.cache, tmp_path / "cache")
    return Built(tmp_path / "dist" / "pack", rpi4_pack.done, tmp_path / "cache")


def test_rebuild_takes_everything_from_the_cache_and_keeps_results(copy: Built, recipe_file: Path) -> None:
    (copy.path / "results").mkdir()
    (copy.path / "results" / "old.json").write_text("{}")
    kept, before = copy.manifest, entries(copy.cache)
    assert {Path(name).parts[0] for name in before} >= {"spectra", "trials", "tflite"}
    done = invoke(*options(recipe_file, copy.path), env={"EDGEPACK_CACHE": str(copy.cache)})
    assert done.code == 0, done.err
    assert entries(copy.cache) == before
    assert copy.manifest == kept
    assert (copy.path / "results" / "old.json").read_text() == "{}"
    assert [p.name for p in copy.path.parent.iterdir()] == ["pack"]


def test_another_model_does_not_inherit_the_results(tmp_path: Path, model: Path, data: Path) -> None:
    out = tmp_path / "pack"
    base = ("build", model, "--target", "rpi4", "--formats", "onnx", "--out", out, "--data", data)
    assert invoke(*base).code == 0
    (out / "results").mkdir()
    (out / "results" / "old.json").write_text("{}")
    assert invoke(*base, "--rank", "3").code == 0
    assert not (out / "results").exists()


def test_fresh_computes_again_and_comes_to_the_same(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    base = ("build", model, "--target", "rpi4", "--formats", "onnx", "--out", tmp_path / "pack", "--data", data)
    assert invoke(*base).code == 0
    manifest, before = (tmp_path / "pack" / "manifest.json").read_bytes(), entries(tmp_path / "cache")
    assert before
    assert invoke(*base, "--no-cache").code == 0
    after = entries(tmp_path / "cache")
    assert after.keys() == before.keys()
    assert all(after[name] > before[name] for name in before)
    assert (tmp_path / "pack" / "manifest.json").read_bytes() == manifest


def test_damaged_cache_entries_are_made_again(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    base = ("build", model, "--target", "rpi4", "--formats", "onnx", "--out", tmp_path / "pack", "--data", data)
    assert invoke(*base).code == 0
    manifest = (tmp_path / "pack" / "manifest.json").read_bytes()
    damaged = [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".npz", ".json")]
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[:7])
    done = invoke(*base)
    assert done.code == 0, done.err
    assert (tmp_path / "pack" / "manifest.json").read_bytes() == manifest


def interrupted(args: list[object], folder: Path, number: signal.Signals, ready: Callable[[], bool]) -> tuple[int, str]:
    """Start a build, send the signal to it and its children as a terminal does, once `ready`; (exit code, stderr)."""
    (folder / "tmp").mkdir(exist_ok=True)
    env = {**os.environ, "EDGEPACK_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    process = subprocess.Popen(
        command(*args), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None:
        assert time.monotonic() < deadline, "the build never came so far"
        time.sleep(0.01)
    children = workers_of(process.pid)
    assert process.poll() is None, "the build was over before it could be interrupted"
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "the converter outlived the build"
        time.sleep(0.05)
    return process.returncode, err


def test_interrupt_and_kill_then_resume(rpi4_pack: Built, recipe_file: Path, tmp_path: Path) -> None:
    """Ctrl-C in mid-search, a kill in mid-conversion, then a run that ends with the bytes of another cache."""
    out, cache = tmp_path / "dist" / "pack", tmp_path / "cache"
    args = options(recipe_file, out)
    code, err = interrupted(args, tmp_path, signal.SIGINT, lambda: any(cache.glob("trials/*/*.json")))
    assert code == 130
    assert err.splitlines() == ["error: interrupted", "  hint: run the same command again: it goes on where it was"]
    assert list(out.parent.iterdir()) == []
    assert [p.name for p in (tmp_path / "tmp").glob("edgepack*")] == []
    assert hidden(cache) == []
    kept = entries(cache)
    assert any(name.startswith("trials/") for name in kept)

    done_before = len(list(cache.glob("tflite*/*/*.tflite")))
    ready = lambda: len([p for p in cache.glob("tflite*/*/*.tflite") if not p.name.startswith(".")]) > done_before  # noqa: E731
    code, _ = interrupted(args, tmp_path, signal.SIGKILL, ready)
    assert code == -signal.SIGKILL
    assert not out.exists()

    kept |= {name: when for name, when in entries(cache).items() if not Path(name).name.startswith(".")}
    done = invoke(*args, env={"EDGEPACK_CACHE": str(cache)})
    assert done.code == 0, done.err
    after = entries(cache)
    assert {name: after[name] for name in kept} == kept, "what was there is not computed again"
    assert len(after) > len(kept)
    for name in (*MODELS, "manifest.json"):
        assert (out / name).read_bytes() == (rpi4_pack.path / name).read_bytes(), name


def test_interrupt_as_json_is_json(model: Path, data: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "dist" / "pack", tmp_path / "cache"
    args = ["build", model, "--target", "rpi4", "--formats", "onnx", "--data", data, "--out", out, "--json"]
    env = {**os.environ, "EDGEPACK_CACHE": str(cache)}
    process = subprocess.Popen(command(*args), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(cache.glob("trials/*/*.json")) and process.poll() is None:  # libraries are imported by then
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    shown, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(shown)["error"]["kind"] == "Interrupted"
    assert err == ""
