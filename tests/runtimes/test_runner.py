"""The runner as a device meets it: a file of its own, run by a Python, one JSON object on stdout."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.backends.registry import backend

RUNTIMES = Path(__file__).parents[2] / "runtimes"
RUNNER = RUNTIMES / "runner.py"


def invoke(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(path)} if path is not None else None
    command = [sys.executable, str(RUNNER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def report(*arguments: object, path: Path | None = None) -> dict[str, Any]:
    done = invoke(*arguments, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    return dict(json.loads(done.stdout))


def error(*arguments: object, path: Path | None = None) -> tuple[str, str]:
    done = invoke(*arguments, path=path)
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)["error"]
    return found["kind"], found["message"]


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("edgepack_runner", RUNNER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["onnx", "tflite"])
def model(request: pytest.FixtureRequest) -> tuple[str, Path]:
    if request.param == "onnx":
        return "onnx", request.getfixturevalue("onnx_model")
    return "tflite", request.getfixturevalue("tflite_models") / "int8.tflite"


def fake_module(folder: Path, name: str, code: str) -> Path:
    """A runtime of the given name, installed in `folder`, that runs `code` when imported."""
    package = folder / name.replace("-", "_")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "interpreter.py").write_text(code)
    info = folder / f"{name.replace('-', '_')}-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    return folder


WATCHED = {"clock", "temperature_c", "governor", "throttle", "others_busy"}


# ---------------------------------------------------------------- the file


def test_it_is_python_3_9_and_needs_nothing_but_the_standard_library_to_start() -> None:
    tree = ast.parse(RUNNER.read_text(), feature_version=(3, 9))
    names = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert names <= set(sys.stdlib_module_names)
    imported = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not [node for node in imported if "edgepack" in ast.unparse(node)]
    strict = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "strict"]
    assert not strict  # zip(strict=) came with 3.10
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Match)]


def test_the_contract_names_every_mode_option_and_error(runner) -> None:
    contract = (RUNTIMES / "CONTRACT.md").read_text()
    source = RUNNER.read_text()
    words = set(re.findall(r'add_argument\("(--[\w-]+)"', source)) - {"--runtime"}
    words |= {f"`{mode}`" for mode in runner.MODES if mode != "import-check"}
    words |= {f"`{kind}`" for kind in re.findall(r'RunnerError\("([\w-]+)"', source)}
    assert {word for word in words if word not in contract} == set()


# ---------------------------------------------------------------- measuring


def test_turns(model: tuple[str, Path], tmp_path: Path) -> None:
    fmt, path = model
    blank = tmp_path / f"blank.{fmt}"
    backend(fmt).blank(blank)  # type: ignore[arg-type]
    options = ("--format", fmt, "--rounds", 4, "--seconds", 0.002, "--warmup-runs", 2, "--warmup-seconds", 0)
    found = report("turns", "--model", blank, *options, "--runs", 3, "--more-models", path, path)
    assert (found["schema_version"], found["mode"], found["format"], found["threads"]) == (1, "turns", fmt, 1)
    assert found["rounds"] == 4
    assert len(found["models"]) == 3
    for one in found["models"]:
        assert len(one["turns_s"]) == len(one["cpu_s"]) == 4
        assert all(0 < seconds < 1 for seconds in one["turns_s"])
        assert all(0 <= seconds < 1 for seconds in one["cpu_s"])
        assert one["calls"] >= 3
    assert found["models"][0]["calls"] > 20  # a blank model's call takes far less than a turn
    assert len(found["clock"]["before_s"]) == len(found["clock"]["after_s"]) == 5
    assert set(found) >= WATCHED
    alone = report("turns", "--model", blank, *options, "--runs", 7, "--seconds", 0, "--threads", 2)
    assert [one["calls"] for one in alone["models"]] == [7]


def test_turns_name_the_model_that_is_rejected(onnx_model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    options = ("--format", "onnx", "--model", onnx_model, "--more-models", tmp_path / "bad.onnx")
    kind, message = error("turns", *options)
    assert kind == "model-rejected"
    assert message.startswith("bad.onnx: ")


def test_latency(model: tuple[str, Path]) -> None:
    fmt, path = model
    cpu = max(os.sched_getaffinity(0))
    found = report(
        "latency",
        "--format",
        fmt,
        "--model",
        path,
        "--runs",
        30,
        "--warmup-runs",
        4,
        "--warmup-seconds",
        0,
        "--cpus",
        cpu,
    )
    assert (found["schema_version"], found["mode"], found["format"]) == (1, "latency", fmt)
    assert found["runs"] == len(found["latency_s"]) == 30
    assert found["warmup_runs"] == 4
    assert found["kept_every"] == 1
    assert min(found["latency_s"]) > 0
    assert found["cpus"] == [cpu]
    assert found["runtime"]["version"]
    assert set(found["load"]) == {"process_s", "numpy_s", "runtime_s", "session_s", "first_inference_s"}
    assert len(found["clock"]["before_s"]) == len(found["clock"]["after_s"]) == 5
    assert found["inputs"] == "seeded"
    assert set(found) >= WATCHED
    assert len(found["temperature_c"]) == 2
    assert found["others_busy"] is None  # too short to tell


def test_latency_runs_for_the_asked_time_and_thins_what_it_keeps(model: tuple[str, Path]) -> None:
    found = report("latency", "--format", model[0], "--model", model[1], "--runs", 3000, "--seconds", 0.05)
    assert found["seconds"] >= 0.05
    assert found["runs"] >= 3000
    assert 1000 <= len(found["latency_s"]) < 2000
    assert len(found["latency_s"]) == -(-found["runs"] // found["kept_every"])


def test_cold_empties_the_caches_with_at_least_four_times_the_largest(model: tuple[str, Path]) -> None:
    found = report("cold", "--format", model[0], "--model", model[1], "--runs", 3)
    assert len(found["latency_s"]) == 3
    assert set(found) >= WATCHED
    assert (
        found["evicted_bytes"] >= 4 * (found["last_level_cache_bytes"] or 0) > 0 or found["evicted_bytes"] == 64 << 20
    )
    small = report("cold", "--format", model[0], "--model", model[1], "--runs", 1, "--evict-bytes", 4096)
    assert small["evicted_bytes"] == 4096


def test_memory_counts_the_weights_of_a_large_model(tmp_path: Path) -> None:
    from tests import bench_models

    path = bench_models.write_mlp(tmp_path / "large.onnx", [2048, 2048, 10])  # 16.8 MB of weights
    baseline = report("memory", "--format", "onnx", "--import-only")
    found = report("memory", "--format", "onnx", "--model", path)
    assert baseline["import_only"] is True
    assert "temperature_c" in baseline
    assert "loaded" not in baseline
    held = found["loaded"]["rss_bytes"] - baseline["imported"]["rss_bytes"]
    assert 16e6 < held < 80e6
    assert found["ran"]["peak_bytes"] >= found["loaded"]["anon_bytes"]
    assert set(found["ran"]) == {
        "rss_bytes",
        "pss_bytes",
        "anon_bytes",
        "file_bytes",
        "peak_bytes",
        "swap_bytes",
        "major_faults",
    }


def test_counters_count_or_say_why_not(model: tuple[str, Path]) -> None:
    """task-clock is a software event: where the kernel has perf at all it counts without a PMU."""
    found = report(
        "counters",
        "--format",
        model[0],
        "--model",
        model[1],
        "--runs",
        50,
        "--warmup-seconds",
        0,
        "--counter",
        "task-clock=1:1",
    )
    clock = found["counters"].pop("task-clock")
    if "unavailable" not in clock:
        assert clock["runs"] == 50
        assert len(clock["counts"]) == 5
        assert min(clock["counts"]) > 0
        assert clock["stream"]["bytes"] > 0
    assert {"instructions", "cycles", "cache-misses"} <= set(found["counters"])
    for counter in found["counters"].values():
        assert counter.get("unavailable") or len(counter["counts"]) == 5


# ---------------------------------------------------------------- outputs


def test_outputs_are_the_models_own(tmp_path: Path, onnx_model: Path) -> None:
    import onnxruntime

    x = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    found = report(
        "outputs",
        "--format",
        "onnx",
        "--model",
        onnx_model,
        "--inputs",
        tmp_path / "in.npz",
        "--outputs",
        tmp_path / "out.npz",
    )
    assert found["inputs"] == "name"
    assert found["outputs"] == {"y": {"shape": [1, 10], "dtype": "float32"}}
    expected = onnxruntime.InferenceSession(onnx_model).run(None, {"x": x})[0]
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["outputs", "marks"])
def test_answers_that_are_maps_are_written_as_rows(tmp_path: Path, mode: str) -> None:
    """As classifiers of scikit-learn are exported; a sequence of tensors is written as none."""
    import onnx
    from onnx import TensorProto, helper

    shares = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    row = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    outputs = {"shares": shares, "rows": row}
    graph = helper.make_graph(
        [
            helper.make_node("ZipMap", ["x"], ["shares"], domain="ai.onnx.ml", classlabels_int64s=[7, 8, 9]),
            helper.make_node("SplitToSequence", ["x"], ["rows"], axis=0),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_value_info(name, helper.make_sequence_type_proto(each)) for name, each in outputs.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    path, answers = tmp_path / "m.onnx", tmp_path / "out.npz"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    x = np.array([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]], np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    report(mode, "--format", "onnx", "--model", path, "--inputs", tmp_path / "in.npz", "--outputs", answers)
    with np.load(answers) as archive:
        found = {name.removeprefix("0:"): archive[name] for name in archive.files}
    np.testing.assert_array_equal(found["shares"], x)
    assert found["rows"].size == 0


@pytest.mark.parametrize(("name", "how"), [("args_0", "name"), ("pixels", "order")])
def test_tflite_inputs_match_by_bare_name_or_by_order(tmp_path: Path, tflite_models: Path, name: str, how: str) -> None:
    from ai_edge_litert.interpreter import Interpreter

    x = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    np.savez(tmp_path / "in.npz", **{name: x})
    model = tflite_models / "fp32.tflite"
    found = report(
        "outputs",
        "--format",
        "tflite",
        "--model",
        model,
        "--inputs",
        tmp_path / "in.npz",
        "--outputs",
        tmp_path / "out.npz",
    )
    assert found["inputs"] == how
    interpreter = Interpreter(str(model))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    (got,) = np.load(tmp_path / "out.npz").values()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((1, 63), np.float32)}, "input x wants the shape [1, 64], found [1, 63]"),
        ({"x": np.zeros((1, 64), np.complex64)}, "input x wants float32, found complex64"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, "the model takes ['x'], the file holds ['a', 'b']"),
        ({"x": np.array([[{}] * 64])}, "allow_pickle=False"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, onnx_model: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    kind, text = error("latency", "--format", "onnx", "--model", onnx_model, "--inputs", tmp_path / "in.npz")
    assert kind == "inputs"
    assert message in text


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_inputs_that_are_no_npz(tmp_path: Path, onnx_model: Path, content: bytes) -> None:
    (tmp_path / "in.npz").write_bytes(content)
    kind, _ = error("latency", "--format", "onnx", "--model", onnx_model, "--inputs", tmp_path / "in.npz")
    assert kind == "inputs"


def test_a_dynamic_batch_is_fed_as_given_and_seeded_as_one(tmp_path: Path) -> None:
    from tests import bench_models

    path = bench_models.write_mlp(tmp_path / "dynamic.onnx", [8, 4], batch="n")
    np.savez(tmp_path / "in.npz", x=np.ones((3, 8), np.float32))
    found = report(
        "outputs", "--format", "onnx", "--model", path, "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "o.npz"
    )
    assert found["outputs"]["y"]["shape"] == [3, 4]
    report("latency", "--format", "onnx", "--model", path, "--runs", 1, "--warmup-seconds", 0)


# ---------------------------------------------------------------- probe and failures


def test_probe_imports_the_runtimes_that_are_here() -> None:
    found = report("probe")
    assert found["machine"] == os.uname().machine
    assert found["ram_bytes"] > 0
    assert len(found["cpus"]) >= 1
    for name in ("onnxruntime", "ai-edge-litert"):
        assert found["runtimes"][name]["imports"] is True
        assert found["runtimes"][name]["error"] is None
    assert found["counters"]["available"] or found["counters"]["reason"]
    quick = report("probe", "--no-imports")
    assert quick["runtimes"]["onnxruntime"]["imports"] is None


def test_an_illegal_instruction_is_a_report_and_no_crash(tmp_path: Path) -> None:
    path = fake_module(tmp_path, "tflite-runtime", "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    found = report("probe", path=path)["runtimes"]["tflite-runtime"]
    assert found == {"version": "9.9", "imports": False, "error": "the import died of SIGILL"}


def test_stdout_is_the_reports_alone(tmp_path: Path) -> None:
    """A runtime that prints from C writes to descriptor 1; that must not reach the report."""
    code = "import os\nos.write(1, b'noise from C\\n')\nprint('noise')\nraise ImportError('broken')\n"
    path = fake_module(fake_module(tmp_path, "ai-edge-litert", code), "tflite-runtime", code)
    done = invoke("latency", "--format", "tflite", "--model", "m.tflite", path=path)
    kind = json.loads(done.stdout)["error"]["kind"]
    assert (done.returncode, kind) == (1, "runtime-missing")
    assert "noise from C" in done.stderr


def test_model_missing_and_rejected(tmp_path: Path, model: tuple[str, Path]) -> None:
    fmt = model[0]
    assert error("latency", "--format", fmt, "--model", tmp_path / "none")[0] == "model-missing"
    (tmp_path / "bad").write_bytes(b"not a model")
    assert error("latency", "--format", fmt, "--model", tmp_path / "bad")[0] == "model-rejected"


@pytest.mark.parametrize(
    "arguments",
    [
        ["latency"],
        ["latency", "--format", "onnx"],
        ["latency", "--format", "onnx", "--import-only"],
        ["memory", "--format", "onnx", "--import-only", "--model", "m"],
        ["latency", "--format", "onnx", "--model", "m", "--threads", "0"],
        ["latency", "--format", "onnx", "--model", "m", "--counter", "x=y"],
        ["dance"],
    ],
)
def test_bad_arguments_are_exit_code_2_with_nothing_on_stdout(arguments: list[str]) -> None:
    done = invoke(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error:" in done.stderr


# ---------------------------------------------------------------- parts


@given(st.sets(st.integers(0, 200), min_size=1))
def test_cpu_list_reads_what_the_kernel_writes(runner, cpus: set[int]) -> None:
    groups = [list(g) for _, g in itertools.groupby(enumerate(sorted(cpus)), lambda pair: pair[1] - pair[0])]
    spans = [(group[0][1], group[-1][1]) for group in groups]
    text = ",".join(f"{a}-{b}" if a != b else str(a) for a, b in spans)
    assert runner.cpu_list(text) == sorted(cpus)


def test_caches_come_from_sysfs_once_each(runner, tmp_path: Path) -> None:
    for cpu in range(2):
        for index, (level, kind, size, shared) in enumerate([(1, "Data", "32K", cpu), (2, "Unified", "1M", "0-1")]):
            folder = tmp_path / f"cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            facts = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
            facts |= {"ways_of_associativity": 0, "coherency_line_size": 64}
            for name, value in facts.items():
                (folder / name).write_text(f"{value}\n")
    found = runner.read_caches(str(tmp_path))
    assert [(c["level"], c["size_bytes"], c["cpus"]) for c in found] == [
        (1, 32768, [0]),
        (2, 1 << 20, [0, 1]),
        (1, 32768, [1]),
    ]
    assert found[0]["ways"] is None


def kernel(root: Path, files: dict[str, object]) -> str:
    """A folder with these files, as the runner takes it for /sys or /proc."""
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")
    return str(root)


def vcgencmd(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "bin" / "vcgencmd"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_the_temperature_is_the_hottest_zones_that_is_a_sensor(runner, tmp_path: Path) -> None:
    zones = {"0": "51540", "1": "48000", "2": "-274000", "3": "2147483647", "4": "", "5": "broken"}
    root = kernel(tmp_path, {f"class/thermal/thermal_zone{name}/temp": value for name, value in zones.items()})
    assert runner.temperature_c(root) == 51.54
    assert runner.temperature_c(str(tmp_path / "none")) is None


def test_the_governor_is_that_of_the_cpus_in_use(runner, tmp_path: Path) -> None:
    names = ["ondemand", "ondemand", "performance"]
    files = {f"devices/system/cpu/cpu{n}/cpufreq/scaling_governor": name for n, name in enumerate(names)}
    root = kernel(tmp_path, files)
    assert runner.governor([0, 1], root) == "ondemand"
    assert runner.governor([1, 2], root) == "ondemand, performance"
    assert runner.governor([3], root) is None


FIRMWARE = "devices/platform/soc/soc:firmware/get_throttled"


def test_throttling_of_a_raspberry_pi(runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = kernel(tmp_path, {FIRMWARE: "50005"})
    assert runner.throttle(root) == ("get_throttled", 0x50005)
    vcgencmd(tmp_path, monkeypatch, "[ $1 = get_throttled ] && echo throttled=0x70000")
    assert runner.throttle(root) == ("vcgencmd", 0x70000)


@pytest.mark.parametrize("script", ["echo VCHI initialization failed; exit 255", "echo throttled=0x", "echo -n"])
def test_a_vcgencmd_that_may_not_ask_is_no_answer(
    runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    vcgencmd(tmp_path, monkeypatch, script)
    assert runner.throttle(str(tmp_path)) is None
    assert runner.throttle(kernel(tmp_path, {FIRMWARE: "0"})) == ("get_throttled", 0)


def test_throttling_of_an_x86_is_the_sum_over_its_cores(runner, tmp_path: Path) -> None:
    files = {f"devices/system/cpu/cpu{n}/thermal_throttle/core_throttle_count": 3 * n for n in range(3)}
    assert runner.throttle(kernel(tmp_path, files)) == ("core_throttle_count", 9)


def test_a_watch_reports_what_it_saw_before_and_after(runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = tmp_path / "count"
    counted.write_text("0")
    vcgencmd(tmp_path, monkeypatch, f"n=$(cat {counted}); echo $((n + 4)) > {counted}; echo throttled=0x$n")
    watch = runner.Watch(np)
    watch.begin()
    found = watch.end()
    assert found["throttle"] == {"source": "vcgencmd", "before": 0, "after": 4}
    assert set(found) == WATCHED


def test_the_share_of_others_is_what_this_process_did_not_take(runner, tmp_path: Path) -> None:
    root = kernel(tmp_path, {"stat": "cpu  100 20 30 1000 50 5 5 40 7 7\ncpu0 1 1 1 1 1 1 1 1 0 0"})
    busy, idle, own = runner.cpu_seconds(root)
    tick = os.sysconf("SC_CLK_TCK")
    assert (busy, idle) == (200 / tick, 1050 / tick)
    assert own > 0
    assert runner.others_busy((10.0, 20.0, 1.0), (14.0, 24.0, 3.0)) == 0.25
    assert runner.others_busy((10.0, 20.0, 1.0), (11.0, 29.0, 3.0)) == 0.0
    assert runner.others_busy((10.0, 20.0, 1.0), (10.3, 20.3, 1.1)) is None
    assert runner.cpu_seconds(kernel(tmp_path, {"stat": "cpu 1 2"})) is None
    assert runner.others_busy(None, (1.0, 1.0, 1.0)) is None


def test_another_program_on_the_cpus_is_seen(onnx_model: Path) -> None:
    burn = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        found = report("latency", "--format", "onnx", "--model", onnx_model, "--runs", 1, "--seconds", 1.5)
    finally:
        for process in burn:
            process.kill()
            process.wait()
    assert found["others_busy"] > 0.2


@pytest.mark.parametrize("runs", [1, 1000, 1999, 2000, 2001, 3999, 4000, 9000])
def test_thinning_is_even_and_bounded(runner, runs: int) -> None:
    found = runner.timed(lambda: None, runs, 0.0)
    assert found["runs"] == runs
    assert len(found["latency_s"]) == -(-runs // found["kept_every"])
    assert len(found["latency_s"]) < 2 * runner.KEEP_SAMPLES


def test_marks_says_what_lies_between_them(model: tuple[str, Path], tmp_path: Path) -> None:
    """On a machine without the plugin the marks do nothing; the order of intervals is what the caller relies on."""
    fmt, path = model
    answers = tmp_path / "answers.npz"
    np.savez(tmp_path / "x.npz", x=np.ones((1, 64), np.float32))
    options = ("--inputs", tmp_path / "x.npz", "--outputs", answers, "--runs", 3, "--rounds", 2, "--warmup-runs", 1)
    found = report("marks", "--format", fmt, "--model", path, "--more-models", path, *options)
    each = [{"model": 0, "runs": 3}, {"model": 0, "runs": 6}, None]
    dry = [None, None, None]
    second = [interval and {**interval, "model": 1} for interval in each]
    assert found["models"] == 2
    assert found["intervals"] == (dry + each * 2 + dry + second * 2)[:-1]
    with np.load(answers) as archive:
        assert sorted({name.partition(":")[0] for name in archive.files}) == ["0", "1"]
        first, other = (archive[name] for name in archive.files)
    assert first.shape == (1, 10)
    assert np.array_equal(first, other)


def test_a_chain_feeds_every_segment_from_those_before_it(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    def segment(name: str, op: str, inputs: list[str], output: str) -> Path:
        put = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in (*inputs, output)}
        graph = helper.make_graph(
            [helper.make_node(op, inputs, [output])], name, [put[n] for n in inputs], [put[output]]
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / name)
        return tmp_path / name

    first, second = segment("1.onnx", "Neg", ["x"], "h"), segment("2.onnx", "Add", ["h", "x"], "y")
    third = segment("3.onnx", "Add", ["y", "h"], "z")
    answers = tmp_path / "answers.npz"
    np.savez(tmp_path / "x.npz", x=np.array([[1, 2, 3, 4]], np.float32))
    blank = segment("0.onnx", "Abs", ["b"], "c")
    options = ("--inputs", tmp_path / "x.npz", "--outputs", answers, "--chain", "--rounds", 1, "--warmup-runs", 1)
    found = report("marks", "--format", "onnx", "--model", blank, "--more-models", first, second, third, *options)
    turn = [part for index in range(4) for part in ({"model": index, "runs": 1}, None)]
    assert found["intervals"] == ([None] * 8 + turn)[:-1]
    with np.load(answers) as archive:
        assert archive["2:y"].tolist() == [[0, 0, 0, 0]]
        assert archive["3:z"].tolist() == [[-1, -2, -3, -4]]


def test_a_missing_model_among_several_is_named(model: tuple[str, Path], tmp_path: Path) -> None:
    fmt, path = model
    kind, message = error("marks", "--format", fmt, "--model", path, "--more-models", tmp_path / "none")
    assert kind == "model-missing"
    assert str(tmp_path / "none") in message


def test_more_models_belong_to_turns_and_marks(model: tuple[str, Path]) -> None:
    fmt, path = model
    done = invoke("latency", "--format", fmt, "--model", path, "--more-models", path)
    assert done.returncode == 2
    assert "belongs to the modes turns and marks" in done.stderr
