"""Devices without Python: the tools' texts as numbers, and stand-ins for the tools driven over adb.

No phone and no real tool: neither benchmark_model nor onnxruntime_perf_test comes in a package for this machine. The
stand-ins are scripts that print what the sources of these tools print, word for word:
tensorflow/lite/tools/benchmark/benchmark_model.cc, tensorflow/tensorflow v2.19 (and the line of v2.4 for memory);
onnxruntime/test/perftest/performance_runner.cc, microsoft/onnxruntime v1.20.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.backends.registry import FORMATS
from edgepack.benchmark.session import Settings, Variant, bench_variants
from edgepack.benchmark.summary import summarize_result
from edgepack.devices.adb import AdbLink
from edgepack.devices.device import Device, Job
from edgepack.devices.facts import choose_cpus, facts_from_probe
from edgepack.devices.native import NativeDevice
from edgepack.devices.native_probe import Figures, cpu_list, probe_report, read_benchmark_model, read_perf_test, tried
from edgepack.devices.remote import RemoteDevice
from edgepack.devices.shell import ShellFacts
from edgepack.errors import DeviceError, StableDeviceError, TransientDeviceError, UsageError
from edgepack.targets.file import get_target
from tests.devices.adbd import Adbd, Fault, private_server

BENCHMARK_MODEL = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [50]
INFO: Num threads: [4]
INFO: Graph: [m.tflite]
INFO: Loaded model m.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 8.45746
INFO: Initialized session in 143.669ms.
INFO: Session benchmark for at least 5 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=12 first=72635 curr=42240 min=42134 max=72635 avg=43536.2 std=4813 p5=42168 median=42430 p95=49447

INFO: Session benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=50 first=42142 curr=42232 min=42142 max=42763 avg=42435.4 std=147 p5=42232 median=42405 p95=42729

INFO: Inference timings in us: Init: 143669, First inference: 72635, Warmup (avg): 43536.2, Inference (avg): 42435.4
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual \
memory footprint of the model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=23.5 overall=30.25
"""
PERF_TEST = """\
Setting intra_op_num_threads to 1
Session creation time cost: 0.0102016 s
First inference time cost: 2 ms
Total inference time cost: 0.185739 s
Total inference requests: 100
Average inference time cost: 1.85739 ms
Total inference run time: 0.18581 s
Number of inferences per second: 538.184
Avg CPU usage: 96 %
Peak working set size: 36696064 bytes
"""


# ---------------------------------------------------------------- texts as numbers


def test_benchmark_model_gives_a_mean() -> None:
    found = read_benchmark_model("look", BENCHMARK_MODEL)
    assert (found.runs, found.warmup_runs, found.kept_every) == (50, 12, 1)
    assert found.latency_s == (pytest.approx(0.0424354),)
    assert found.seconds == pytest.approx(50 * 0.0424354)
    assert (found.session_s, found.first_inference_s) == (pytest.approx(0.143669), pytest.approx(0.072635))
    assert (found.loaded_bytes, found.ran_bytes) == (int(23.5 * 2**20), int(30.25 * 2**20))


def test_an_older_benchmark_model_and_large_numbers() -> None:
    old = (
        BENCHMARK_MODEL.replace("INFO: ", "")
        .replace("Memory footprint delta from the start of the tool", "Peak memory footprint")
        .replace("count=12 first=72635", "count=1 curr=1041765\nnone=")
        .replace("Inference (avg): 42435.4", "Inference (avg): 1.24027e+06")
    )
    found = read_benchmark_model("look", old)
    assert found.latency_s == (pytest.approx(1.24027),)
    assert (found.warmup_runs, found.ran_bytes) == (1, int(30.25 * 2**20))
    without = read_benchmark_model("look", BENCHMARK_MODEL.partition("INFO: Note")[0])
    assert without.ran_bytes is None, "a tool that says nothing of memory holds no zero bytes"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Inference timings in us", "Something else"),
        ("INFO: count=50", "INFO: "),
        ("INFO: count=50", "INFO: count=0"),
        ("(avg): 42435.4", "(avg): 0"),
        ("(avg): 42435.4", "(avg): -5"),
        ("(avg): 42435.4", "(avg): nan"),
        ("(avg): 42435.4", "(avg): 1e300"),
        ("Init: 143669", "Init: 9e15"),
        ("overall=30.25", "overall=1e250"),
    ],
)
def test_what_benchmark_model_cannot_mean(old: str, new: str) -> None:
    assert old in BENCHMARK_MODEL
    with pytest.raises(StableDeviceError, match=r"look: the tool's output is not as expected: found '.+'; expected"):
        read_benchmark_model("look", BENCHMARK_MODEL.replace(old, new))


def rows(*seconds: float) -> str:
    return "".join(f"ab12,{second},36696064,96,{index}\n" for index, second in enumerate(seconds))


def perf(times: str, text: str = PERF_TEST, warmup_runs: int = 0, warmup_s: float = 0.0) -> Figures:
    return read_perf_test("look", text, times, warmup_runs=warmup_runs, warmup_s=warmup_s)


def test_perf_test_gives_every_time() -> None:
    found = perf(rows(0.002, 0.00185, 1.9e-3))
    assert found.latency_s == (0.002, 0.00185, 0.0019)
    assert (found.runs, found.warmup_runs, found.kept_every) == (3, 1, 1)
    assert (found.session_s, found.first_inference_s, found.ran_bytes) == (0.0102016, 0.002, 36696064)
    assert found.loaded_bytes is None
    statistics = "\nMin Latency: 0.00185 s\nMax Latency: 0.002 s\n"
    assert perf(rows(0.002, 0.00185) + statistics).runs == 2


def test_the_first_times_are_warm_up() -> None:
    assert perf(rows(4, 3, 2, 1), warmup_runs=2).latency_s == (2, 1)
    assert perf(rows(4, 3, 2, 1), warmup_s=7.5).latency_s == (1,)
    assert perf(rows(4, 3, 2, 1), warmup_runs=1, warmup_s=7.0).warmup_runs == 3
    assert perf(rows(4, 3), warmup_runs=9).runs == 0


def test_of_many_times_some_are_kept() -> None:
    found = perf(rows(*[0.001] * 4321))
    assert (found.runs, found.kept_every, len(found.latency_s)) == (4321, 4, 1081)
    assert found.seconds == pytest.approx(4.321)


@pytest.mark.parametrize(
    "times",
    ["", "nonsense", "ab,0.1,1,1\n", "ab,0.1,1,1,1\n", "ab,-0.1,1,1,0\n", "ab,nan,1,1,0\n", "ab,0,1,1,0\n",
     "ab,1e9,1,1,0\n", rows(0.1, 0.2).replace(",1\n", ",0\n")],
)  # fmt: skip
def test_what_perf_test_cannot_mean(times: str) -> None:
    with pytest.raises(StableDeviceError, match="look: the tool's output is not as expected"):
        perf(times)


_TEXTS = st.one_of(
    st.text(max_size=300),
    st.tuples(st.integers(0, len(BENCHMARK_MODEL)), st.text(max_size=20), st.integers(0, 60)).map(
        lambda cut: BENCHMARK_MODEL[: cut[0]] + cut[1] + BENCHMARK_MODEL[cut[0] + cut[2] :]
    ),
)


@given(_TEXTS, st.one_of(st.text(max_size=100), st.just(rows(0.1, 0.2)), st.text("0123456789.,e+-ab\n", max_size=80)))
def test_any_text_is_figures_or_a_typed_error(text: str, times: str) -> None:
    for read in (lambda: read_benchmark_model("look", text), lambda: perf(times, PERF_TEST + text, 1)):
        found = None
        with suppress(StableDeviceError):
            found = read()
        if found is not None:
            assert all(0 < second < 1e5 for second in found.latency_s)
            assert (found.ran_bytes or 0) >= 0


def test_an_error_shows_no_control_characters() -> None:
    with pytest.raises(StableDeviceError) as caught:
        read_benchmark_model("look", "\x1b[31mred\x07")
    assert caught.value.message.partition("; expected")[0].endswith("found '?[31mred?'")


def test_what_trying_a_tool_says() -> None:
    assert tried("v", "code 1\nusage: tool\n") == {"version": "v", "imports": True, "error": None}
    assert tried("v", "code 255\n")["imports"]
    assert "died of signal 4, an illegal instruction" in tried("v", "code 132\n")["error"]
    assert "another architecture" in tried("v", "code 126\nsh: tool: Exec format error\n")["error"]
    assert tried("v", "")["imports"] is False


def test_facts_of_a_phone() -> None:
    """Written after the files of a Pixel 6a; its shell shows no caches."""
    part = {cpu: "0xd05" if cpu < 4 else "0xd0b" if cpu < 6 else "0xd44" for cpu in range(8)}
    info = "\n\n".join(f"processor\t: {cpu}\nFeatures\t: fp asimd asimddp\nCPU part\t: {part[cpu]}" for cpu in range(8))
    cpu = "/sys/devices/system/cpu"
    speeds = {f"{cpu}/cpu{n}/cpufreq/cpuinfo_max_freq": str(1803000 + 500000 * (n // 2)) for n in range(8)}
    found = {
        "/proc/cpuinfo": info,
        "/proc/meminfo": "MemTotal:  5854432 kB\nMemAvailable:  2000000 kB\n",
        f"{cpu}/online": "0-7",
        **speeds,
        f"{cpu}/cpu0/cpufreq/scaling_governor": "sched_pixel",
        "/sys/class/thermal/thermal_zone0/temp": "41500",
        "/sys/class/thermal/thermal_zone1/temp": "-274000",
        "allowed": "Cpus_allowed_list:\t0-7",
        "android": "model Google Pixel 6a\nchip GS101\nrelease 14",
    }
    shell = ShellFacts("/data/local/tmp/edgepack", "b", "aarch64", "5.10.149-android13", "shell")
    report = probe_report(found, shell, {"benchmark_model": tried("v", "code 1\n")})
    facts = facts_from_probe(report, "adb X1")
    assert (facts.device_model, facts.cpu_model, facts.libc) == ("Google Pixel 6a", "GS101", "bionic of Android 14")
    assert [one.core for one in facts.cpus] == ["cortex-a55"] * 4 + ["cortex-a76"] * 2 + ["cortex-x1"] * 2
    assert facts.runtimes == {"benchmark_model": "v"}
    assert report["temperature_c"] == 41.5
    assert choose_cpus(facts, report["allowed_cpus"], 2) == (6, 7)
    assert cpu_list("0-99999") == []


# ---------------------------------------------------------------- stand-ins on a device


# What Android's toybox has of what the device's half needs; no Python.
SMALL = """
    sh cat echo printf mkdir rm rmdir mv touch chmod df tail head tr cut sed grep find sort id uname wc date sleep kill
    setsid timeout sha256sum dd taskset base64 ls getconf expr
"""


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if shutil.which("adb") is None:
        yield
        return
    with private_server(tmp_path_factory.mktemp("home")):
        yield


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Adbd]:
    if shutil.which("adb") is None:
        pytest.skip("no adb client here: apt-get install adb")
    programs, folder = tmp_path / "bin", tmp_path / "device"
    programs.mkdir()
    folder.mkdir()
    for name in SMALL.split():
        program = shutil.which(name)
        if program is not None:
            (programs / name).symlink_to(program)
    with Adbd(folder, path=str(programs)) as running:
        yield running


@pytest.fixture
def remote(daemon: Adbd) -> Iterator[RemoteDevice]:
    device = RemoteDevice(AdbLink(daemon.serial, root=str(daemon.folder / "edgepack")))
    yield device
    device.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.tflite"
    path.write_bytes(b"a model")
    return path


def script(tmp_path: Path, name: str, body: str) -> Path:
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    return path


def benchmark_model(tmp_path: Path, before: str = "") -> Path:
    """Prints what the tool prints, and writes down how it was called and where it may run."""
    log = tmp_path / "device" / "calls"
    keep = f'echo "$@" >> {log}; grep Cpus_allowed_list /proc/self/status >> {log}'
    return script(tmp_path, "benchmark_model", f"{before}\n{keep}\ncat << 'end'\n{BENCHMARK_MODEL}end")


def perf_test(tmp_path: Path, each_s: str = "0.002", most: int = 1000) -> Path:
    """Appends to its result file as many times as it was asked for: in mode duration as many as fit."""
    body = f"""
echo "$@" >> {tmp_path}/device/calls
while [ $# -gt 2 ]; do
    case $1 in -t) runs={most} ;; -r) runs=$2 ;; esac
    shift
done
i=0
while [ $i -lt $runs ]; do echo "ab12,{each_s},36696064,96,$i" >> "$2"; i=$((i + 1)); done
cat << 'end'
{PERF_TEST}end"""
    return script(tmp_path, "onnxruntime_perf_test", body)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "device" / "calls").read_text().splitlines()


def native(remote: RemoteDevice, tflite: Path | None = None, onnx: Path | None = None) -> NativeDevice:
    return NativeDevice(remote, benchmark_model=tflite, perf_test=onnx)


def failure(device: Device, job: Job, kind: type[DeviceError]) -> DeviceError:
    with pytest.raises(kind) as caught:
        device.run(job)
    return caught.value


def test_a_device_without_python_is_probed(remote: RemoteDevice, tmp_path: Path) -> None:
    with pytest.raises(StableDeviceError, match="has no Python 3"):
        remote.interpreter()
    broken = script(tmp_path, "onnxruntime_perf_test", "kill -ILL $$")
    device: Device = native(remote, benchmark_model(tmp_path), broken)
    report = device.probe()
    facts = facts_from_probe(report, device.name)
    assert facts.machine == os.uname().machine
    assert list(facts.runtimes) == ["benchmark_model"]
    assert facts.runtimes["benchmark_model"].startswith("sha256 ")
    assert "illegal instruction" in report["runtimes"]["onnxruntime_perf_test"]["error"]
    assert report["allowed_cpus"] == sorted(os.sched_getaffinity(0))
    assert report["ram_bytes"] > 0
    assert report["counters"]["available"] is False
    assert device.modes == {"latency", "memory"}


def test_latency_by_benchmark_model(remote: RemoteDevice, tmp_path: Path, model: Path) -> None:
    device = native(remote, benchmark_model(tmp_path))
    cpu = min(os.sched_getaffinity(0))
    there = device.push(model)
    job = Job(
        "latency", "tflite", there, "/left/alone.npz", threads=4, cpus=(cpu,), runs=50, seconds=1.0, warmup_s=0.5,
        timeout_s=150.0,
    )  # fmt: skip
    report = device.run(job)
    arguments, allowed = calls(tmp_path)
    assert arguments == (
        f"--graph={there} --num_threads=4 --num_runs=50 --min_secs=1.0 --max_secs=150.0 --warmup_runs=5 "
        "--warmup_min_secs=0.5"
    )
    assert allowed.split() == ["Cpus_allowed_list:", str(cpu)]
    assert report["latency_s"] == [pytest.approx(0.0424354)]
    assert (report["runs"], report["kept_every"], report["warmup_runs"]) == (50, 1, 12)
    assert report["tool"]["name"] == "benchmark_model"
    assert (report["inputs"], report["clock"], report["throttle"], report["runtime"]) == ("random", None, None, None)
    assert report["load"] == {
        "process_s": None, "numpy_s": None, "runtime_s": None,
        "session_s": pytest.approx(0.143669), "first_inference_s": pytest.approx(0.072635),
    }  # fmt: skip
    assert len(report["temperature_c"]) == 2


def test_memory_by_benchmark_model(remote: RemoteDevice, tmp_path: Path, model: Path) -> None:
    device = native(remote, benchmark_model(tmp_path))
    report = device.run(Job("memory", "tflite", device.push(model)))
    baseline = device.run(Job("memory", "tflite", None))
    assert report["ran"]["peak_bytes"] - baseline["imported"]["peak_bytes"] == int(30.25 * 2**20)
    assert report["loaded"]["peak_bytes"] == int(23.5 * 2**20)
    assert report["ran"]["rss_bytes"] is None


def test_latency_by_perf_test(remote: RemoteDevice, tmp_path: Path, model: Path) -> None:
    device = native(remote, onnx=perf_test(tmp_path))
    there = device.push(model)
    report = device.run(Job("latency", "onnx", there, threads=2, runs=100, seconds=1.5, warmup_runs=5, warmup_s=0.2))
    (arguments,) = calls(tmp_path)
    assert arguments == f"-e cpu -I -S 1 -x 2 -y 1 -m duration -t 2 {there} times.csv"
    assert (report["runs"], report["warmup_runs"]) == (900, 101)
    assert report["latency_s"] == [0.002] * 900
    assert report["tool"]["name"] == "onnxruntime_perf_test"
    memory = device.run(Job("memory", "onnx", there))
    assert memory["ran"]["peak_bytes"] == 36696064
    assert memory["loaded"]["peak_bytes"] is None
    assert device.run(Job("memory", "onnx", None))["imported"]["peak_bytes"] is None


def test_a_slow_model_is_run_as_often_as_asked_for(remote: RemoteDevice, tmp_path: Path, model: Path) -> None:
    """In the seconds that were asked for it runs three times."""
    device = native(remote, onnx=perf_test(tmp_path, each_s="0.5", most=3))
    job = Job("latency", "onnx", device.push(model), runs=10, seconds=1.0, warmup_runs=5)
    assert device.run(job)["runs"] >= 10
    assert ["-m duration" in call for call in calls(tmp_path)] == [True, False]
    assert device.run(job)["runs"] >= 10
    assert len(calls(tmp_path)) == 3, "that it is slow was known by then"


def test_a_tool_that_dies_or_fails_is_told_apart(remote: RemoteDevice, tmp_path: Path, model: Path) -> None:
    there = remote.push(model)
    job = Job("latency", "tflite", there, timeout_s=30)
    error = failure(native(remote, benchmark_model(tmp_path, "kill -ILL $$")), job, StableDeviceError)
    assert "latency of m.tflite on adb 127.0.0.1" in error.message
    assert "the process died of SIGILL" in error.message
    failing = benchmark_model(tmp_path, "echo 'ERROR: Failed to load model m.tflite' >&2; exit 1")
    error = failure(native(remote, failing), job, StableDeviceError)
    assert "benchmark_model failed with exit code 1; it says: ERROR: Failed to load model m.tflite" in error.message
    error = failure(native(remote, script(tmp_path, "quiet", "echo hello")), job, StableDeviceError)
    assert "output is not as expected: found 'hello'" in error.message
    killed = failure(native(remote, benchmark_model(tmp_path, "kill -KILL $$")), job, TransientDeviceError)
    assert "SIGKILL" in killed.message


def test_a_tool_for_another_architecture(remote: RemoteDevice, tmp_path: Path, model: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(100))
    device = native(remote, foreign)
    assert "another architecture" in device.probe()["runtimes"]["benchmark_model"]["error"]
    error = failure(device, Job("latency", "tflite", remote.push(model)), StableDeviceError)
    assert "benchmark_model cannot be started there" in error.message
    assert error.hint is not None
    assert os.uname().machine in error.hint


def test_a_tool_that_hangs_is_ended(remote: RemoteDevice, tmp_path: Path, model: Path) -> None:
    device = native(remote, benchmark_model(tmp_path, "sleep 60"))
    error = failure(device, Job("latency", "tflite", remote.push(model), timeout_s=2), TransientDeviceError)
    assert "no answer within 2 s, killed" in error.message


def test_a_lost_connection_loses_nothing(daemon: Adbd, remote: RemoteDevice, tmp_path: Path, model: Path) -> None:
    device = native(remote, benchmark_model(tmp_path, "sleep 1"))
    there = device.push(model)
    device.probe()
    daemon.fault = Fault("shell", "cut", after_bytes=3)
    assert device.run(Job("latency", "tflite", there))["runs"] == 50
    assert daemon.fault is None
    assert len(calls(tmp_path)) == 4, "the probe and the job: nothing ran twice"


def test_what_tools_cannot_do(remote: RemoteDevice, tmp_path: Path, model: Path) -> None:
    device = native(remote, benchmark_model(tmp_path))
    there = device.push(model)
    assert "needs Python there" in str(failure(device, Job("cold", "tflite", there), StableDeviceError).hint)
    assert "there is no tool for onnx" in failure(device, Job("latency", "onnx", there), StableDeviceError).message
    with pytest.raises(UsageError, match="no benchmark_model at"):
        native(remote, tmp_path / "missing")
    with pytest.raises(UsageError, match="no tool"):
        native(remote)


def test_a_whole_session_with_tools(remote: RemoteDevice, tmp_path: Path) -> None:
    device = native(remote, benchmark_model(tmp_path), perf_test(tmp_path))
    variants = []
    for name in ("dense-fp32", "thin"):
        for fmt in FORMATS:
            path = tmp_path / f"{name}.{fmt}"
            path.write_text(f"{name} as {fmt}")
            variants.append(Variant(name, fmt, path))
    result = bench_variants(variants, target=get_target("host"), device=device, settings=Settings(quick=True))
    assert {fmt: tool.name for fmt, tool in result.conditions.tools.items()} == {
        "onnx": "onnxruntime_perf_test",
        "tflite": "benchmark_model",
    }
    assert result.conditions.inputs == "random"
    assert not any(variant.cold or variant.counters for variant in result.variants)
    medians = {(row.variant, row.format): row.warm.median for row in summarize_result(result)}
    assert medians["thin", "onnx"] == 0.002
    assert medians["thin", "tflite"] == pytest.approx(0.0424354)
    memory = {(row.variant, row.format): row.peak_bytes for row in summarize_result(result)}
    assert memory["thin", "tflite"] == int(30.25 * 2**20)
    assert memory["thin", "onnx"] is None, "perf_test tells no baseline"
