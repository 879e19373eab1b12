"""The sweep as a device meets it: real measurements on this machine and on an emulated one, one JSON object."""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.devices.device import Job
from edgepack.devices.emulated import EmulatedDevice
from edgepack.devices.local import LocalDevice
from edgepack.devices.sweep import Sweep, sweep_from_report
from edgepack.targets.file import get_target

SWEEP = Path(__file__).parents[2] / "runtimes" / "sweep.py"
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
ROUNDS = 40
"""Of calls in turns: another process may take the core from any of them, but not from all."""
RUNS = 8
"""Of the whole sweep at most, for the same reason."""
machine_code = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64") or sys.platform != "linux", reason="no machine code for this CPU"
)


def invoke(*arguments: object, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", str(SWEEP), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=before)


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("edgepack_sweep", SWEEP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def swept() -> dict[str, Any]:
    done = invoke("--threads", 2, "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    return dict(json.loads(done.stdout))


def fastest(*calls: Callable[[], object]) -> list[float]:
    """The least seconds of each call, all in turns."""
    least = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for index, call in enumerate(calls):
            start = time.perf_counter_ns()
            call()
            least[index] = min(least[index], (time.perf_counter_ns() - start) * 1e-9)
    return least


@pytest.fixture(scope="module")
def quick() -> dict[str, Any]:
    return swept()


@pytest.fixture(scope="module")
def code(program: Any) -> Any:
    return program.Code()


def test_it_is_for_python_3_9_and_imports_the_standard_library_alone() -> None:
    tree = ast.parse(SWEEP.read_text(), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


@machine_code
def test_the_report_is_whole_and_possible(quick: dict[str, Any]) -> None:
    sweep = sweep_from_report(quick, "this machine")
    assert sweep.reader == "loads"
    assert sweep.threads == min(2, len(os.sched_getaffinity(0)))
    assert sweep.reads[0].size_bytes == 16 << 10
    assert sweep.latency[0].size_bytes == 4 << 10
    assert sweep.seconds > 0
    sweeps = [sweep]
    while not all(figures := possible(sweeps)) and len(sweeps) < RUNS:
        sweeps.append(sweep_from_report(swept(), "this machine"))
    assert all(figures), (figures, sweeps)


def possible(sweeps: Sequence[Sweep]) -> tuple[bool, ...]:
    """What must hold of the least disturbed figures of several sweeps, whatever the CPU."""
    clock_hz = max(sweep.clock_hz or 0 for sweep in sweeps)
    first, last = (min(sweep.latency[at].calm for sweep in sweeps) * clock_hz for at in (0, -1))
    single = [[read.typical for read in sweep.reads if read.threads == 1] for sweep in sweeps]
    near, far = (max(rates[at] for rates in single) for at in (0, -1))
    # A load that hits the first level takes some cycles, one that misses all levels many.
    return 0.5e9 < clock_hz < 7e9, 2 < first < 9, last > 3 * first, near > 1.2 * far


def test_blocks_cover_every_point_in_order(quick: dict[str, Any]) -> None:
    points = [*quick["bandwidth"], *quick["latency"]]
    at = 0
    for block in quick["blocks"]:
        assert block["bytes"][0] == points[at]["bytes"]
        while points[at]["bytes"] != block["bytes"][1]:
            at += 1
        at += 1
        assert 1 <= block["attempts"] <= 3
    assert at == len(points)


@machine_code
def test_the_clock_is_the_one_that_a_chain_of_another_make_shows(program: Any, code: Any) -> None:
    """A chain twice as long takes twice as long: the figure is of the additions, not of the call."""
    turns = program.turns_for(code.clock, 1e-3)
    once, twice = fastest(lambda: code.clock(turns), lambda: code.clock(2 * turns))
    assert twice == pytest.approx(2 * once, rel=0.05)


@machine_code
@pytest.mark.parametrize("lines", [64, 80, 96, 112, 1000, 4096, 20480])
def test_the_chase_goes_through_every_line_once_and_in_no_order(program: Any, code: Any, lines: int) -> None:
    memory = program.private(lines * 64)
    base = program.address_of(memory)
    code.link(base, lines * 64, program.SEED)
    following = (np.frombuffer(memory, np.uint64)[::8] - base) // 64
    assert following.max() < lines
    seen, at = [], 0
    for _ in range(lines):
        seen.append(at)
        at = int(following[at])
    assert at == 0
    assert sorted(seen) == list(range(lines))
    strides = np.diff(seen)
    assert np.unique(strides).size > lines / 4  # nothing that a prefetcher could learn
    assert code.chase(base, 1) == base + 64 * seen[64 % lines]


@machine_code
def test_the_reader_is_as_fast_as_the_best_of_others(program: Any, code: Any) -> None:
    """A sum by numpy and the C library's memchr also read; neither may be much faster out of memory."""
    size = 48 << 20
    data = np.ones(size // 4, np.int32)
    address = data.ctypes.data
    libc = program.Memchr()
    data.view(np.uint8)[:] = 1
    loads, *others = fastest(
        lambda: code.read(address, size, 1),
        lambda: libc.read(address, size, 1),
        lambda: data.view(np.int64).max(),
    )
    assert loads < 1.4 * min(others), (loads, others)


@machine_code
def test_every_byte_is_read(program: Any, code: Any) -> None:
    """A read of twice as much takes twice as long, a page that is not there ends it."""
    memory = program.private(1 << 20)
    address = program.address_of(memory)
    ctypes.memset(address, 1, 1 << 20)
    whole, half = fastest(lambda: code.read(address, 1 << 18, 200), lambda: code.read(address, 1 << 17, 200))
    assert whole == pytest.approx(2 * half, rel=0.35)


@machine_code
def test_without_the_right_to_execute_it_reads_with_memchr_and_says_why() -> None:
    def refuse() -> None:
        if ctypes.CDLL(None).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
            os._exit(77)

    done = invoke("--threads", 2, "--quick", before=refuse)
    if done.returncode == 77:
        pytest.skip("the kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    sweep = sweep_from_report(report, "this machine")
    assert (sweep.reader, sweep.clock_hz, sweep.latency, sweep.drift) == ("memchr", None, (), 0.0)
    assert "may not be made executable" in (sweep.code_unavailable or "")
    assert max(read.typical for read in sweep.reads) > 1e9


def test_it_keeps_to_the_cpus_it_is_given() -> None:
    cpu = max(os.sched_getaffinity(0))
    done = invoke("--threads", 64, "--cpus", cpu, "--quick")
    report = json.loads(done.stdout)
    assert (report["cpus"], report["threads"]) == ([cpu], 1)
    assert {point["threads"] for point in report["bandwidth"]} == {1}


def test_a_cpu_that_is_not_there_is_an_error_in_the_report() -> None:
    done = invoke("--cpus", 65535)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["kind"] == "failed"


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--cpus", "0;1"], ["--cpus", "-1"], ["now"]])
def test_bad_arguments_print_nothing(arguments: list[str]) -> None:
    done = invoke(*arguments)
    assert (done.returncode, done.stdout) == (2, "")


def test_little_memory_means_small_buffers(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "free_bytes", lambda: 3 << 20)
    monkeypatch.setattr(program, "measured", lambda what, point, sizes, *rest: [point(sizes[0]), {"sizes": sizes}])
    before = os.sched_getaffinity(0)
    try:
        report = program.sweep(program.parse(["--threads", "2", "--quick"]))
    finally:
        os.sched_setaffinity(0, before)
    largest = [entry["sizes"][-1] for entry in report["bandwidth"] if "sizes" in entry]
    assert largest == ([2 << 20, 1 << 20] if len(before) > 1 else [2 << 20])


def test_a_block_over_which_the_clock_drifts_is_measured_again_and_marked(program: Any) -> None:
    class Drifting:
        def __init__(self, *hz: float | None) -> None:
            self.left: Iterator[float | None] = iter(hz)

        def hz(self) -> float | None:
            return next(self.left)

    def run(*hz: float | None) -> tuple[list[int], list[dict[str, Any]]]:
        asked: list[int] = []
        blocks: list[dict[str, Any]] = []

        def point(size: int) -> dict[str, Any]:
            asked.append(size)
            return {"bytes": size}

        found = program.measured("it", point, [1, 2, 3], Drifting(*hz), blocks, {"block": 2})
        assert [one["bytes"] for one in found] == [1, 2, 3]
        return asked, blocks

    asked, blocks = run(1e9, 1.01e9, 1.0e9)
    assert asked == [1, 2, 3]
    assert [(block["attempts"], block["drifted"]) for block in blocks] == [(1, False), (1, False)]
    asked, blocks = run(1e9, 1.1e9, 1.1e9, 1.1e9, 1.1e9)  # the second look starts from a clock of its own
    assert asked == [1, 2, 1, 2, 3]
    assert blocks[0] == {
        "measures": "it",
        "bytes": [1, 2],
        "clock_hz": [1.1e9, 1.1e9],
        "attempts": 2,
        "drifted": False,
    }
    asked, blocks = run(1e9, 2e9, 1e9, 2e9, 1e9, 2e9, 2e9)
    assert asked == [1, 2] * 3 + [3]
    assert [(block["attempts"], block["drifted"]) for block in blocks] == [(3, True), (1, False)]
    assert [block["drifted"] for block in run(None, None, None)[1]] == [False, False]


def test_a_thread_that_fails_ends_the_others(program: Any) -> None:
    class Broken:
        def read(self, address: int, size: int, passes: int) -> None:
            if passes > 1:
                raise OSError("gone")

    reader = program.Reader(Broken(), 2, sorted(os.sched_getaffinity(0)), 1 << 16, {"repeats": 2, "read_s": 0.01})
    with pytest.raises(OSError, match="gone"):
        reader.point(1 << 14)


def test_the_local_device_runs_it_as_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("sweep", threads=2, cpus=(0,), timeout_s=120)
    assert job.program == "sweep.py"
    monkeypatch.setattr(Job, "arguments", lambda self: ["--threads", "1", "--quick"])
    assert LocalDevice().run(job)["mode"] == "sweep"


@pytest.mark.system
def test_the_code_for_arm_runs_on_an_emulated_core(emulator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its times mean nothing; that the chase comes round and every figure is well formed shows the code is right."""
    device = EmulatedDevice(get_target("rpi4"))
    try:
        arguments = Job.arguments
        monkeypatch.setattr(Job, "arguments", lambda self: [*arguments(self), "--quick"])
        report = device.run(Job("sweep", threads=2))
    finally:
        device.close()
    assert emulator.is_dir()
    sweep = sweep_from_report(report, device.name)
    assert report["machine"] == "aarch64"
    assert sweep.reader == "loads"
    assert sweep.clock_hz is not None
    assert len(sweep.latency) == len(range(12, 27)) * 2 - 1
    assert sweep.latency[-1].calm > sweep.latency[0].calm
