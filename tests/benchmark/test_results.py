"""Results: round trip, what a stranger's file may not hold, merging, and benching a pack into its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.benchmark.conditions import like_conditions, merge_results
from edgepack.benchmark.pack import bench_pack, pack_variants
from edgepack.benchmark.results import (
    BenchResult,
    Block,
    Conditions,
    Counter,
    Load,
    Memory,
    Snapshot,
    Tool,
    VariantResult,
)
from edgepack.benchmark.results_file import load_results, save_result
from edgepack.benchmark.schedule import FULL, QUICK
from edgepack.benchmark.session import Settings
from edgepack.benchmark.summary import summarize_result
from edgepack.devices.device import Job
from edgepack.devices.facts import DeviceFacts
from edgepack.devices.fake import FakeDevice
from edgepack.devices.local import LocalDevice
from edgepack.errors import PackError, TargetsError
from edgepack.targets.file import get_target

HELD = Snapshot(50, None, 30, 20, 60, 0, 0)
LOAD = Load(None, 0.1, 0.1, 0.01, 0.001)
FACTS = DeviceFacts(
    machine="aarch64",
    device_model="Board",
    cpu_model="",
    features=("asimd",),
    cpus=(),
    caches=("L2 unified 1048576 B 16-way, 4 CPUs",),
    last_level_cache_bytes=1 << 20,
    ram_bytes=1 << 30,
    kernel="6.6",
    libc="glibc 2.36",
    python="3.11",
    runtimes={"onnxruntime": "1.22.0"},
)


def block(*latency_s: float) -> Block:
    return Block(0, latency_s or (1e-3, 2e-3), 1, 2, 0.1, (1e-5,), (1e-5,), LOAD)


def variant(name: str, *blocks: Block) -> VariantResult:
    counters = (Counter("cycles", 10, (5, 6), 7, 64), Counter("instructions", unavailable="no"))
    return VariantResult(
        name, "onnx", f"{name}.onnx", 123, "ab" * 32, blocks or (block(),), (), (Memory(HELD, HELD),), counters
    )


RESULT = BenchResult(
    created="2026-01-02T03:04:05+00:00",
    edgepack_version="0.1.0",
    conditions=Conditions("mlp", "rpi4", True, FACTS, 1, (3,), True, QUICK, "seeded"),
    import_only={"onnx": (HELD,)},
    counters_unavailable=None,
    variants=(variant("edgepack"), variant("dense-fp32")),
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results" / RESULT.file_name
    save_result(RESULT, path)
    assert path.name == f"rpi4.{FACTS.fingerprint[:8]}.1t.quick.json"
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file stays
    assert load_results(tmp_path) == [RESULT]
    assert load_results(tmp_path / "nowhere") == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=50))
def test_raw_values_come_back_to_the_last_bit(tmp_path: Path, latency_s: list[float]) -> None:
    result = replace(RESULT, variants=(variant("edgepack", block(*latency_s)),))
    save_result(result, tmp_path / "results" / "r.json")
    assert load_results(tmp_path) == [result]


def written(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A pack with a result that was changed."""
    path = tmp_path / "results" / "r.json"
    save_result(RESULT, path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return tmp_path


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        at: Any = document
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("schema_version", value=2), "schema_version: Input should be 1"),
        (put("kind", value="x"), "kind: Input should be 'edgepack-bench'"),
        (put("extra", value=1), "extra: Unexpected keyword argument"),
        (put("variants", 0, "extra", value=1), "variants.0.extra: Unexpected keyword argument"),
        (put("variants", value=[]), "0 variants; expected 1 to 64"),
        (put("variants", 0, "size_bytes", value="1"), "variants.0.size_bytes: Input should be a valid integer"),
        (put("variants", 0, "size_bytes", value=-1), "variant edgepack: its size or hash is none"),
        (put("variants", 0, "sha256", value="../x"), "variant edgepack: its size or hash is none"),
        (put("variants", 0, "format", value="exe"), "variants.0.format: Input should be 'onnx' or 'tflite'"),
        (put("variants", 0, "name", value="dense-fp32"), "two variants have the same name and format"),
        (put("variants", 0, "name", value="\x1b[2Jx"), "a name holds control characters"),
        (put("variants", 0, "name", value="x\u202ey"), "a name holds control characters"),
        (put("variants", 0, "name", value="x" * 2000), "variants.0.name: String should have at most 1000 characters"),
        (put("variants", 0, "warm", value=[]), "variant edgepack: no warm latency"),
        (put("variants", 0, "warm", 0, "rejected", value=True), "variant edgepack: no warm latency"),
        (put("variants", 0, "warm", 0, "latency_s", value=[]), "round 0: expected positive times"),
        (put("variants", 0, "warm", 0, "latency_s", value=[1.0, 0.0]), "round 0: expected positive times"),
        (put("variants", 0, "warm", 0, "clock_before_s", value=[0.0]), "round 0: expected positive times"),
        (put("variants", 0, "warm", 0, "latency_s", value=[float("nan")]), "Input should be a finite number"),
        (put("variants", 0, "warm", 0, "latency_s", value=["1"]), "Input should be a valid number"),
        (put("variants", 0, "memory", 0, "ran", "rss_bytes", value=-5), "a negative amount of memory"),
        (put("variants", 0, "counters", 0, "runs", value=0), "counter cycles counted no runs"),
        (put("conditions", "threads", value=0), "threads is 0"),
        (put("conditions", "threads", value=True), "conditions.threads: Input should be a valid integer"),
        (put("conditions", "device", "cpu_model", value="\n"), "a name holds control characters"),
        (put("import_only", value={}), "no import-only memory for onnx"),
        (put("variants", 0, "warm", 0, "governor", value="\x1b[2J"), "a name holds control characters"),
        (put("variants", 0, "warm", 0, "governor", value="x" * 300), "a name of over 200 characters"),
        (put("variants", 0, "warm", 0, "throttle", value={"source": "x"}), "throttle.before: Field required"),
        (
            put("variants", 0, "warm", 0, "throttle", value={"source": "x", "before": 0, "after": -1}),
            "it was throttled a negative number of times",
        ),
        (put("variants", 0, "warm", 0, "temperature_c", value=[20.0, 999.0]), "its temperatures are (20.0, 999.0)"),
        (put("variants", 0, "warm", 0, "temperature_c", value=[20.0]), "temperature_c"),
        (put("variants", 0, "warm", 0, "others_busy", value=-0.1), "others took a share of -0.1; expected 0 to 1"),
        (put("variants", 0, "warm", 0, "clock_after_s", value=[]), "round 0: expected positive times"),
        (put("variants", 0, "warm", 0, "latency_s", value=[1e-3] * 100_001), "over 100000 times"),
        (put("variants", 0, "sustained", value=[{}]), "variants.0.sustained.0"),
        (put("conditions", "reached", value="x\u202ey"), "a name holds control characters"),
        (put("conditions", "reached", value="x" * 300), "a name of over 200 characters"),
        (put("conditions", "cluster", value="\x07"), "a name holds control characters"),
        (put("conditions", "tools", value={"exe": {"name": "x", "version": "1"}}), "conditions.tools.exe"),
        (put("conditions", "tools", value={"onnx": {"name": "\r", "version": "1"}}), "a name holds control characters"),
        (put("conditions", "governors", value=["x"] * 65), "over 64 methods or governors"),
        (put("conditions", "device", "kernel", value="\x1b]0;x"), "a name holds control characters"),
        (put("conditions", "device", "runtimes", value={"\x00": "1"}), "a name holds control characters"),
        (put("methods", value={"x": "\x9b"}), "a name holds control characters"),
        (put("methods", value={str(n): "x" for n in range(65)}), "over 64 methods or governors"),
        (put("not_measured", value={"cold": "\n"}), "a name holds control characters"),
        (put("start_temperature_c", value=1e6), "a temperature of 1e+06 °C when it started"),
    ],
)
def test_a_strangers_file_is_checked(tmp_path: Path, change: Callable[[dict[str, Any]], None], expected: str) -> None:
    with pytest.raises(PackError) as caught:
        load_results(written(tmp_path, change))
    assert expected in caught.value.message
    assert caught.value.exit_code == 3


def test_a_file_from_before_these_figures_still_loads(tmp_path: Path) -> None:
    def older(document: dict[str, Any]) -> None:
        for name in ("methods", "not_measured", "start_temperature_c"):
            del document[name]
        for name in ("reached", "tools", "governors", "cluster"):
            del document["conditions"][name]
        for name in ("sustained_s", "start_below_c", "cool_down_s"):
            del document["conditions"]["schedule"][name]
        for one in document["variants"]:
            del one["sustained"]
            for name in ("temperature_c", "governor", "throttle", "others_busy"):
                del one["warm"][0][name]

    (result,) = load_results(written(tmp_path, older))
    assert result.conditions.reached == "local"
    assert result.conditions.tool("onnx").name == "edgepack runner"
    assert result.file_name == RESULT.file_name
    row = summarize_result(result)[0]
    assert (row.sustained, row.tool, row.governor) == (None, "edgepack runner 1", "")
    # It may stand beside a result of today that was taken the same way.
    assert like_conditions(result, "onnx") == like_conditions(RESULT, "onnx")
    assert like_conditions(result, "onnx")["onnxruntime"] == "1.22.0"


NATIVE = replace(block(2e-3), clock_before_s=(), clock_after_s=(), load=Load(None, None, None, None, None), runs=500)


def test_a_result_of_a_tool_that_knows_less_comes_back_whole(tmp_path: Path) -> None:
    one = replace(variant("edgepack", NATIVE), memory=(), counters=())
    tools = {"onnx": Tool("onnxruntime_perf_test", "1")}
    conditions = replace(RESULT.conditions, reached="adb 0123", tools=tools, inputs="random", cpus=())
    result = replace(RESULT, variants=(one,), import_only={}, conditions=conditions, not_measured={"memory": "no"})
    save_result(result, tmp_path / "results" / "r.json")
    assert load_results(tmp_path) == [result]
    assert one.warm[0].clock_drift is None
    assert one.warm[0].is_mean


@pytest.mark.parametrize(
    ("reached", "part"),
    [
        ("local", ""), ("pi@raspberrypi.local", "pi@raspberrypi.local."), ("pi@a:2222", "pi@a-2222-"),
        ("adb 0123", "adb-0123-"), ("../../etc/passwd", "etc-passwd-"), ("x" * 300, "x" * 60 + "-"), ("°", "1ee6c7."),
    ],
)  # fmt: skip
def test_boards_of_one_kind_have_files_of_their_own(reached: str, part: str) -> None:
    name = replace(RESULT, conditions=replace(RESULT.conditions, reached=reached)).file_name
    start, end = f"rpi4.{FACTS.fingerprint[:8]}.", "1t.quick.json"
    assert name.startswith(start + part)
    assert name.endswith(end)
    assert "/" not in name
    assert len(name) < 120


def test_names_that_need_the_same_change_are_told_apart() -> None:
    names = [
        replace(RESULT, conditions=replace(RESULT.conditions, reached=one)).file_name for one in ("a b", "a:b", "a-b")
    ]
    assert len(set(names)) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100000, b"\xff\xff", b"null", b"5"])
def test_a_file_that_is_no_result(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "r.json").write_bytes(content)
    with pytest.raises(PackError, match="not a result of this edgepack"):
        load_results(tmp_path)


def test_a_file_without_an_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "results" / "r.json"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(PackError, match="over 64 MiB"):
        load_results(tmp_path)
    path.unlink()
    path.symlink_to("gone.json")
    with pytest.raises(PackError, match="cannot read the results: No such file"):
        load_results(tmp_path)


def test_a_result_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PackError, match="cannot write the results to"):
        save_result(RESULT, tmp_path / "file" / "r.json")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results" / "r.json"
    save_result(RESULT, path)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_result(replace(RESULT, created="later"), path)
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]
    assert load_results(tmp_path) == [RESULT]


def test_merging_puts_the_raw_values_together() -> None:
    later = replace(RESULT, created="2027-01-01", variants=(variant("edgepack", block(5.0)), variant("dense-fp32")))
    merged = merge_results([RESULT, later])
    assert [b.latency_s for b in merged.variants[0].warm] == [(1e-3, 2e-3), (5.0,)]
    assert len(merged.variants[0].memory) == 2
    assert len(merged.import_only["onnx"]) == 2
    assert merged.created == "2027-01-01"
    assert summarize_result(merged)[0].warm.processes == 2


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"threads": 4}, "threads"),
        ({"quick": False, "target": "rpi5"}, "target, quick"),
        ({"device": replace(FACTS, kernel="6.12")}, "device.kernel"),
        ({"device": replace(FACTS, runtimes={"onnxruntime": "1.23.0"})}, "device.runtimes"),
        ({"schedule": replace(QUICK, runs=3)}, "schedule"),
        ({"inputs": "ab" * 32}, "inputs"),
        ({"reached": "pi@a", "governors": ("ondemand",)}, "reached, governors"),
        ({"tools": {"onnx": Tool("x", "1")}, "cluster": "cortex-a55"}, "tools, cluster"),
    ],
)
def test_unlike_runs_are_not_merged(change: Mapping[str, Any], names: str) -> None:
    other = replace(RESULT, conditions=replace(RESULT.conditions, **change))
    with pytest.raises(PackError, match=f"they differ in {names}$"):
        merge_results([RESULT, other])


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({}, set()),
        ({"device": replace(FACTS, kernel="6.12"), "reached": "pi@a", "cluster": "cortex-a55"}, set()),
        ({"schedule": replace(QUICK, cool_down_s=5.0, retries=9)}, set()),
        ({"threads": 4, "cpus": (0, 1, 2, 3)}, {"threads"}),
        ({"cpus": ()}, {"CPUs"}),
        ({"schedule": FULL, "quick": False}, {"schedule"}),
        ({"schedule": replace(QUICK, runs=3)}, {"schedule"}),
        ({"governors": ("performance",)}, set()),
        ({"governors": ("ondemand",)}, {"governor"}),
        ({"device": replace(FACTS, runtimes={"onnxruntime": "1.23.0"})}, {"onnxruntime"}),
        ({"tools": {"onnx": Tool("edgepack runner", "1", "onnxruntime 1.22.0")}}, set()),
        ({"tools": {"onnx": Tool("onnxruntime_perf_test", "1")}}, {"tool", "onnxruntime", "runtime"}),
        ({"inputs": "random"}, {"inputs"}),
    ],
)
def test_which_conditions_part_two_devices(change: Mapping[str, Any], differing: set[str]) -> None:
    other = replace(RESULT, conditions=replace(RESULT.conditions, **change))
    one, two = like_conditions(RESULT, "onnx"), like_conditions(other, "onnx")
    assert {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)} == differing


def test_how_conditions_read() -> None:
    changed = replace(RESULT.conditions, schedule=replace(QUICK, runs=3, warmup_s=0.5))
    assert like_conditions(replace(RESULT, conditions=changed), "onnx") == {
        "threads": "1", "schedule": "quick with warmup_s 0.5 and runs 3", "inputs": "seeded",
        "tool": "edgepack runner 1", "onnxruntime": "1.22.0", "governor": "performance or none", "CPUs": "pinned",
        "edgepack.onnx": "abababab", "dense-fp32.onnx": "abababab",
    }  # fmt: skip


def test_other_model_files_are_not_merged() -> None:
    rebuilt = replace(RESULT.variants[0], sha256="cd" * 32)
    with pytest.raises(PackError, match=r"they differ in edgepack \(onnx\)$"):
        merge_results([RESULT, replace(RESULT, variants=(rebuilt, RESULT.variants[1]))])
    with pytest.raises(PackError, match=r"they differ in variants$"):
        merge_results([RESULT, replace(RESULT, variants=RESULT.variants[:1])])


# ---------------------------------------------------------------- packs


@pytest.fixture
def pack(tmp_path: Path, onnx_model: Path) -> Path:
    folder = tmp_path / "mlp.rpi4"
    (folder / "baseline").mkdir(parents=True)
    (folder / "manifest.json").write_text('{"schema_version": 1, "model": {"name": "mlp"}}')
    for name in ("model.onnx", "baseline/fp32.onnx"):
        (folder / name).write_bytes(onnx_model.read_bytes())
    return folder


def test_a_pack_is_benched_on_its_example_inputs_and_keeps_the_result(pack: Path) -> None:
    import numpy as np

    np.savez(pack / "example_inputs.npz", x=np.ones((1, 64), np.float32))
    warm = Settings(quick=True, cold=False)
    result = bench_pack(pack, target=get_target("host"), device=LocalDevice(), settings=warm)
    assert load_results(pack) == [result]
    assert result.conditions.model == "mlp"
    assert len(result.conditions.inputs) == 64
    assert [(v.name, v.file) for v in result.variants] == [("edgepack", "model.onnx"), ("dense-fp32", "fp32.onnx")]


def test_repeated_sessions_of_a_pack_count_as_one_and_unlike_ones_do_not(pack: Path) -> None:
    from edgepack.report.comparison import compare_packs, compare_results

    later = replace(RESULT, created="2027", variants=(variant("edgepack", block(3e-3)), variant("dense-fp32")))
    other = replace(RESULT, conditions=replace(RESULT.conditions, threads=4))
    for name, result in {"a": RESULT, "b": later, "copy": later, "c": other}.items():
        save_result(result, pack / "results" / f"{name}.json")
    rows = [row for row in compare_packs([pack]).rows if row.variant == "edgepack"]
    assert [(row.threads, row.latency_p50_s, row.session) for row in rows] == [
        (1, (1.5e-3 + 3e-3) / 2, "2027"), (4, 1.5e-3, RESULT.created),
    ]  # fmt: skip
    assert [row.latency_p50_s for row in compare_results([later, other], pack).rows] == [3e-3, 1.5e-3, 1.5e-3, 1.5e-3]


def test_variants_follow_the_files_and_the_target(pack: Path) -> None:
    (pack / "model.tflite").write_bytes(b"x")
    (pack / "baseline" / "int8.tflite").write_bytes(b"x")
    names = [(v.name, v.format) for v in pack_variants(pack, get_target("rpi4"))]
    assert names == [("edgepack", "onnx"), ("dense-fp32", "onnx"), ("edgepack", "tflite"), ("dense-int8", "tflite")]
    only_onnx = replace(get_target("rpi4"), runtimes={"onnx": "onnxruntime"})
    assert {v.format for v in pack_variants(pack, only_onnx)} == {"onnx"}
    assert {v.format for v in pack_variants(pack, get_target("rpi4"), ["tflite"])} == {"tflite"}
    with pytest.raises(TargetsError, match="visionfive2 cannot run onnx"):
        pack_variants(pack, get_target("visionfive2"))
    with pytest.raises(TargetsError, match="cannot run tflite"):
        pack_variants(pack, only_onnx, ["tflite"])


def test_bad_packs(pack: Path, tmp_path: Path) -> None:
    def refuse(job: Job) -> Mapping[str, Any]:
        raise AssertionError("nothing may run")

    def bench(folder: Path) -> None:
        bench_pack(folder, target=get_target("rpi4"), device=FakeDevice({}, refuse))

    with pytest.raises(PackError, match="not a pack, there is no manifest"):
        bench(tmp_path / "gone")
    with pytest.raises(PackError, match=r"no model\.tflite; it holds onnx"):
        pack_variants(pack, get_target("rpi4"), ["tflite"])
    (pack / "manifest.json").write_text("{")
    with pytest.raises(PackError, match="not JSON"):
        bench(pack)
    (pack / "manifest.json").write_text('{"schema_version": 1}')
    (pack / "model.onnx").unlink()
    with pytest.raises(PackError, match=r"no model\.onnx and no model\.tflite"):
        bench(pack)
