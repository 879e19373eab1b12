"""The session: the order of the measurements, what is retried, and a real quick run in both formats."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.benchmark.results import Counter, Throttle, Tool
from edgepack.benchmark.results_file import load_results, problems, save_result
from edgepack.benchmark.schedule import QUICK
from edgepack.benchmark.session import Settings, Variant, bench_variants
from edgepack.benchmark.summary import LINE_BYTES, cache_misses, summarize_result
from edgepack.devices.device import Job
from edgepack.devices.facts import choose_cpus, cluster_of, facts_from_probe
from edgepack.devices.fake import FakeDevice
from edgepack.devices.local import LocalDevice
from edgepack.errors import (
    DataError,
    ModelError,
    StableDeviceError,
    TargetsError,
    TransientDeviceError,
    UsageError,
)
from edgepack.targets.file import get_target

PROBE = {
    "machine": "aarch64",
    "device_model": "Raspberry Pi 4 Model B Rev 1.4",
    "cpu_model": "",
    "features": ["asimd"],
    "cpus": [{"cpu": n, "core": "cortex-a72", "max_khz": 1500000, "governor": "ondemand"} for n in range(4)],
    "allowed_cpus": [0, 1, 2, 3],
    "caches": [],
    "ram_bytes": 4 << 30,
    "kernel": "6.6",
    "libc": "glibc 2.36",
    "python": "3.11.2",
    "runtimes": {"onnxruntime": {"version": "1.22.0", "imports": True, "error": None}},
    "counters": {"available": True, "reason": None},
}
HELD = {"rss_bytes": 50, "pss_bytes": 40, "anon_bytes": 30, "file_bytes": 20}
HELD |= {"peak_bytes": 60, "swap_bytes": 0, "major_faults": 0}
LOAD = {"process_s": 0.05, "numpy_s": 0.1, "runtime_s": 0.1, "session_s": 0.01, "first_inference_s": 0.001}


def answer(job: Job, latency_s: float = 1e-3, drift: float = 0.0) -> Mapping[str, Any]:
    """What the runner reports on a device that is as steady as a rock."""
    clock = {"before_s": [1e-5], "after_s": [1e-5 * (1 + drift)]}
    timing = {"latency_s": [latency_s] * job.runs, "kept_every": 1, "runs": job.runs, "seconds": 1.0, "clock": clock}
    held = {**HELD, "rss_bytes": 50 if job.model is None else 80, "peak_bytes": 60 if job.model is None else 99}
    stream = {"count": 1000, "bytes": 1000 * LINE_BYTES}
    parts = {
        "latency": timing,
        "cold": {**timing, "evicted_bytes": 1 << 20},
        "memory": {"imported": held, "loaded": held, "ran": held},
        "counters": {"counters": {"l2d_cache_refill": {"runs": 10, "counts": [50, 70, 60], "stream": stream}}},
    }
    return {"load": LOAD, **parts[job.mode]}


@pytest.fixture
def variants(tmp_path: Path) -> list[Variant]:
    made = []
    for name in ("edgepack", "dense-fp32"):
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
        made.append(Variant(name, "onnx", tmp_path / f"{name}.onnx"))
    return made


def run(variants: list[Variant], device: FakeDevice, **options: Any) -> Any:
    """Quick; `options` are those of `Settings` and of `bench_variants`."""
    ways = {field.name for field in fields(Settings)}
    settings = Settings(**{"quick": True} | {name: value for name, value in options.items() if name in ways})
    others = {name: value for name, value in options.items() if name not in ways}
    return bench_variants(variants, target=get_target("rpi4"), device=device, settings=settings, **others)


def test_a_real_quick_run_of_both_formats(onnx_model: Path, tflite_models: Path, tmp_path: Path) -> None:
    from tests import bench_models

    large = bench_models.write_mlp(tmp_path / "large.onnx", [1024, 1024, 10])
    variants = [
        Variant("edgepack", "onnx", onnx_model),
        Variant("dense-fp32", "onnx", large),
        Variant("edgepack", "tflite", tflite_models / "int8.tflite"),
        Variant("dense-fp32", "tflite", tflite_models / "fp32.tflite"),
    ]
    seen: list[tuple[str, int, int]] = []
    schedule = replace(QUICK, seconds=0.02, runs=10, cold_runs=3, sustained_s=0.2)
    result = bench_variants(
        variants,
        target=get_target("host"),
        device=LocalDevice(),
        settings=Settings(quick=True, schedule=schedule, sustained=True),
        progress=lambda stage, done=0, total=0: seen.append((stage, done, total)),
    )
    assert [done for _, done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] == seen[-1][2]
    rows = {(row.variant, row.format): row for row in summarize_result(result)}
    small = rows["edgepack", "onnx"]
    # 4 MB of weights against 13 kB: 80 times the work, so the claim cannot hang on the machine's mood.
    assert small.vs_fp32 is not None
    assert small.vs_fp32.verdict == "faster"
    assert small.warm.processes == 4
    assert small.cold is not None
    assert small.sustained is not None
    assert 0 < small.sustained.last < 1
    assert (rows["dense-fp32", "onnx"].resident_bytes or 0) > 4e6
    assert rows["dense-fp32", "onnx"].vs_fp32 is None
    assert small.native
    assert small.quick
    assert "quick run: short and few measurements" in small.notes
    assert small.cache_misses is not None or small.cache_misses_note
    assert len(result.conditions.cpus) == 1
    assert result.file_name.endswith(".1t.quick.json")


def test_memory_comes_first_and_warm_processes_alternate(variants: list[Variant]) -> None:
    device = FakeDevice(PROBE, answer)
    run(variants, device)
    order = [(job.mode, Path(job.model).stem[0] if job.model else "-") for job in device.jobs]
    assert order == [
        ("memory", "-"), ("memory", "e"), ("memory", "d"),
        *[("latency", "e"), ("latency", "d")] * 4,
        ("cold", "e"), ("cold", "d"), ("counters", "e"), ("counters", "d"),
    ]  # fmt: skip
    assert {job.cpus for job in device.jobs} == {(3,)}
    assert {job.threads for job in device.jobs} == {1}
    assert not device.closed  # it is the caller's
    # The kernel of this device lists no caches; the target knows them.
    assert {job.evict_bytes for job in device.jobs if job.mode == "cold"} == {4 << 20}


@pytest.mark.parametrize(
    ("spread", "extra_s", "expected"),
    [(0.0, 60.0, 4), (0.3, 60.0, 7), (0.3, 0.0, 4)],
    ids=["narrow", "wide", "wide, and no time is left"],
)
def test_processes_are_added_while_an_interval_is_wide_and_no_longer(
    variants: list[Variant], spread: float, extra_s: float, expected: int
) -> None:
    turn = itertools.count()

    def answer_spread(job: Job) -> Mapping[str, Any]:
        wide = job.mode == "latency" and "dense" in str(job.model) and next(turn) % 2
        return answer(job, 1e-3 * (1 + spread * bool(wide)))

    seen: list[tuple[int, int]] = []
    plan = replace(QUICK, extra_processes=3, extra_s=extra_s)
    device = FakeDevice(PROBE, answer_spread)
    result = run(variants, device, schedule=plan, progress=lambda _, done=0, total=0: seen.append((done, total)))
    assert [len(variant.warm) for variant in result.variants] == [expected, expected]
    assert [block.round for block in result.variants[0].warm] == list(range(expected))
    assert [done for done, _ in seen] == list(range(1, len(device.jobs) + 1))
    assert seen[-1] == (len(device.jobs), len(device.jobs))


def test_figures_come_out_as_they_went_in(variants: list[Variant]) -> None:
    def halved(job: Job) -> Mapping[str, Any]:
        return answer(job, 1e-3 if "edgepack" in str(job.model) else 2e-3)

    result = run(variants, FakeDevice(PROBE, halved), inputs=None, model="mlp")
    row = summarize_result(result)[0]
    assert (row.model, row.target, row.native, row.warm.median) == ("mlp", "rpi4", True, 1e-3)
    assert row.vs_fp32 is not None
    assert (row.vs_fp32.speedup, row.vs_fp32.verdict) == (2.0, "faster")
    assert (row.resident_bytes, row.peak_bytes, row.cache_misses) == (30, 39, 6.0)
    assert row.load_s == LOAD
    assert row.device == "Raspberry Pi 4 Model B Rev 1.4"


def test_cold_and_counters_are_left_out_when_not_asked_or_not_there(variants: list[Variant]) -> None:
    probe = {**PROBE, "counters": {"available": False, "reason": "permission denied"}}
    device = FakeDevice(probe, answer)
    row = summarize_result(run(variants, device, cold=False))[0]
    assert {job.mode for job in device.jobs} == {"memory", "latency"}
    assert row.cold is None
    assert (row.cache_misses, row.cache_misses_note) == (None, "permission denied")


def test_a_drifting_block_is_measured_again_and_the_steady_one_stands(variants: list[Variant]) -> None:
    calls = []

    def drifting_once(job: Job) -> Mapping[str, Any]:
        calls.append(job.mode)
        first = calls.count("latency") == 1 and job.mode == "latency"
        return answer(job, 9.0 if first else 1e-3, 0.1 if first else 0.0)

    result = run(variants, FakeDevice(PROBE, drifting_once))
    blocks = result.variants[0].warm
    assert [block.rejected for block in blocks] == [True, False, False, False, False]
    row = summarize_result(result)[0]
    assert row.warm.median == 1e-3
    assert not [note for note in row.notes if "drift" in note]


def test_a_drift_that_persists_is_recorded_and_bounded(variants: list[Variant]) -> None:
    device = FakeDevice(PROBE, lambda job: answer(job, drift=0.05))
    result = run(variants, device, cold=False)
    assert len([job for job in device.jobs if job.mode == "latency"]) == 2 * 4 * (1 + QUICK.retries)
    blocks = result.variants[0].warm
    assert sum(not block.rejected for block in blocks) == 4
    assert (
        "the CPU clock drifted by up to 5.0% in 4 of the processes with edgepack.onnx"
        in summarize_result(result)[0].notes
    )


def test_blocks_are_measured_again_only_while_there_is_time(variants: list[Variant]) -> None:
    """The time is that of further processes as well; what was throttled is no matter of time."""
    device = FakeDevice(PROBE, lambda job: answer(job, drift=0.05))
    result = run(variants, device, cold=False, schedule=replace(QUICK, extra_s=0.0, extra_processes=3))
    assert [len(variant.warm) for variant in result.variants] == [4, 4]
    device = FakeDevice(PROBE, lambda job: {**answer(job), **throttle(4, 4)})
    result = run(variants, device, cold=False, schedule=replace(QUICK, extra_s=0.0))
    assert [len(variant.warm) for variant in result.variants] == [4 * (1 + QUICK.retries)] * 2


@pytest.mark.parametrize("where", ["ran", "imported"])
def test_a_swapping_device_gives_no_memory_figure(variants: list[Variant], where: str) -> None:
    def swapping(job: Job) -> Mapping[str, Any]:
        report = dict(answer(job))
        if job.mode == "memory":
            report[where] = {**HELD, "swap_bytes": 4096}
        return report

    device = FakeDevice(PROBE, swapping)
    row = summarize_result(run(variants, device))[0]
    assert row.peak_bytes is None
    again = [job for job in device.jobs if job.mode == "memory" and (job.model is None) == (where == "imported")]
    assert len(again) == (2 if where == "imported" else 4)  # each once more, and no further
    assert "the device swapped: its memory figures are left out" in row.notes


def test_a_snapshot_that_swapped_once_is_replaced(variants: list[Variant]) -> None:
    calls = itertools.count()

    def once(job: Job) -> Mapping[str, Any]:
        swapped = job.mode == "memory" and next(calls) in (0, 2)
        return {**answer(job), **({name: {**HELD, "swap_bytes": 1} for name in ("imported", "ran")} if swapped else {})}

    row = summarize_result(run(variants, FakeDevice(PROBE, once)))[0]
    assert row.peak_bytes == 39
    assert not [note for note in row.notes if "swapped" in note]


def test_a_transient_failure_is_tried_once_more_and_no_further(variants: list[Variant]) -> None:
    calls = []

    def flaky(job: Job) -> Mapping[str, Any]:
        calls.append(job.mode)
        if len(calls) == 5:
            raise TransientDeviceError("the link dropped")
        return answer(job)

    run(variants, FakeDevice(PROBE, flaky))

    def broken(job: Job) -> Mapping[str, Any]:
        raise TransientDeviceError("the link dropped")

    device = FakeDevice(PROBE, broken)
    with pytest.raises(TransientDeviceError):
        run(variants, device)
    assert len(device.jobs) == 2


def test_a_report_without_its_fields_is_the_devices_fault(variants: list[Variant]) -> None:
    device = FakeDevice(PROBE, lambda job: {"load": {}})
    with pytest.raises(StableDeviceError, match="memory of onnx on fake: the report is not as expected: KeyError"):
        run(variants, device)


def test_a_probe_without_its_fields(variants: list[Variant]) -> None:
    with pytest.raises(StableDeviceError, match="the probe report is not as expected"):
        run(variants, FakeDevice({"machine": "x"}, answer))


def test_a_runtime_that_dies_on_import_is_reported_before_anything_runs(variants: list[Variant]) -> None:
    runtimes = {"onnxruntime": {"version": "1.22.0", "imports": False, "error": "the import died of SIGILL"}}
    device = FakeDevice({**PROBE, "runtimes": runtimes}, answer)
    with pytest.raises(StableDeviceError, match=r"runs no onnx: onnxruntime 1\.22\.0: the import died of SIGILL"):
        run(variants, device)
    assert device.jobs == []


def test_a_version_that_is_known_to_fail_is_refused(variants: list[Variant]) -> None:
    runtimes = {"onnxruntime": {"version": "1.21.0", "imports": True, "error": None}}
    with pytest.raises(StableDeviceError, match=r"onnxruntime 1\.21\.0 on rpi4: dies with an illegal instruction"):
        run(variants, FakeDevice({**PROBE, "runtimes": runtimes}, answer))


def test_a_device_of_another_kind_is_named_in_every_row(variants: list[Variant]) -> None:
    probe = {**PROBE, "machine": "x86_64", "device_model": "", "cpu_model": "Some CPU", "cpus": PROBE["cpus"][:2]}
    row = summarize_result(run(variants, FakeDevice(probe, answer)))[0]
    assert not row.native
    assert "measured on 2×Some CPU, not on rpi4" in row.notes


def test_bad_requests(variants: list[Variant], tmp_path: Path) -> None:
    device = FakeDevice(PROBE, answer)
    with pytest.raises(UsageError, match="nothing to bench"):
        run([], device)
    with pytest.raises(UsageError, match="threads is 0"):
        run(variants, device, threads=0)
    with pytest.raises(UsageError, match="same name"):
        run([variants[0], variants[0]], device)
    with pytest.raises(ModelError, match="no model file at"):
        run([Variant("x", "onnx", tmp_path / "gone.onnx")], device)
    with pytest.raises(DataError, match="no example inputs at"):
        run(variants, device, inputs=tmp_path / "gone.npz")
    with pytest.raises(TargetsError, match="beaglebone-black cannot run onnx"):
        bench_variants(variants, target=get_target("beaglebone-black"), device=device)


def test_inputs_of_a_wrong_shape_are_bad_data(onnx_model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 3), np.float32))
    with pytest.raises(DataError, match=r"input x wants the shape \[1, 64\], found \[1, 3\]"):
        bench_variants(
            [Variant("m", "onnx", onnx_model)],
            target=get_target("host"),
            device=LocalDevice(),
            inputs=tmp_path / "in.npz",
        )


BIG_LITTLE = [("cortex-a55", 1800000)] * 4 + [("cortex-a76", 2256000)] * 2 + [("cortex-a76", 2304000)] * 2
"""An RK3588: three clock domains, two kinds of cores."""


def of_clusters(kinds: list[tuple[str, int]] = BIG_LITTLE) -> dict[str, Any]:
    cpus = [{"cpu": n, "core": core, "max_khz": khz, "governor": "performance"} for n, (core, khz) in enumerate(kinds)]
    return {**PROBE, "cpus": cpus, "allowed_cpus": list(range(len(kinds)))}


def test_threads_stay_on_the_cluster_that_is_named() -> None:
    facts, allowed = facts_from_probe(of_clusters(), "fake"), range(8)
    assert choose_cpus(facts, list(allowed), 1) == (7,)
    assert choose_cpus(facts, list(allowed), 4) == (4, 5, 6, 7)  # the pairs differ in speed and are one cluster
    assert choose_cpus(facts, list(allowed), 1, "cortex-a55") == (3,)
    assert choose_cpus(facts, list(allowed), 4, "cortex-a55") == (0, 1, 2, 3)
    assert choose_cpus(facts, [1, 2, 4], 2, "cortex-a55") == (1, 2)
    assert (cluster_of(facts, (0, 1)), cluster_of(facts, (3, 4)), cluster_of(facts, ())) == ("cortex-a55", None, None)


@pytest.mark.parametrize(
    ("allowed", "threads", "cluster", "message"),
    [
        (range(8), 1, "cortex-a72", r"no cluster cortex-a72 on the device: found cortex-a55 \(CPUs 0, 1, 2, 3\); "
         r"cortex-a76 \(CPUs 4, 5, 6, 7\)$"),
        (range(8), 5, "cortex-a55", r"5 threads do not fit on cortex-a55: found cortex-a55 \(CPUs 0, 1, 2, 3\)"),
        (range(4), 1, "cortex-a76", r"no cluster cortex-a76 on the device: found cortex-a55 \(CPUs 0, 1, 2, 3\)$"),
        ([], 1, "cortex-a76", "the device cannot pin a program to CPUs"),
    ],
)  # fmt: skip
def test_a_cluster_that_is_not_there(allowed: Sequence[int], threads: int, cluster: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_cpus(facts_from_probe(of_clusters(), "fake"), list(allowed), threads, cluster)


def test_a_machine_without_core_names_has_no_clusters() -> None:
    facts = facts_from_probe(of_clusters([("", 2000000)] * 2), "fake")
    with pytest.raises(UsageError, match="found CPUs without names"):
        choose_cpus(facts, [0, 1], 1, "cortex-a55")


def test_the_result_says_which_cluster(variants: list[Variant]) -> None:
    device = FakeDevice(of_clusters(), answer)
    little = Settings(quick=True, cluster="cortex-a55")
    result = bench_variants(variants, target=get_target("rk3588"), device=device, settings=little)
    assert {job.cpus for job in device.jobs} == {(3,)}
    assert result.conditions.cluster == "cortex-a55"
    assert ".cortex-a55." in result.file_name
    other = bench_variants(variants, target=get_target("rk3588"), device=device, settings=replace(little, cluster=None))
    assert other.conditions.cluster == "cortex-a76"
    assert other.file_name != result.file_name


# ---------------------------------------------------------------- what holds a CPU back


def throttle(before: int, after: int, source: str = "vcgencmd") -> dict[str, Any]:
    return {"throttle": {"source": source, "before": before, "after": after}}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of a session, which take no time."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def test_a_throttled_block_is_measured_again_after_it_has_cooled_down(
    variants: list[Variant], pauses: list[float]
) -> None:
    temperatures = iter([82.0, 76.0, 70.0])
    latencies = []

    def hot_once(job: Job) -> Mapping[str, Any]:
        if job.mode == "memory" and job.model is None:
            return {**answer(job), "temperature_c": next(temperatures) if latencies else 50.0}
        if job.mode != "latency":
            return answer(job)
        latencies.append(job)
        first = len(latencies) == 1
        return {**answer(job, 9.0 if first else 1e-3), **throttle(0, 0x40004 if first else 0)}

    plan = replace(QUICK, cool_down_s=60.0)
    said: list[str] = []
    result = run(variants, FakeDevice(PROBE, hot_once), schedule=plan, progress=lambda what, *_: said.append(what))
    assert [block.rejected for block in result.variants[0].warm] == [True, False, False, False, False]
    assert [block.throttled for block in result.variants[0].warm] == [True, False, False, False, False]
    assert pauses == [10.0, 10.0, 10.0]
    assert [one for one in said if "cool" in one] == [
        "bench: cool down", "bench: cool down from 82 °C", "bench: cool down from 76 °C",
    ]  # fmt: skip
    row = summarize_result(result)[0]
    assert row.warm.median == 1e-3
    assert not [note for note in row.notes if "throttled" in note]


def test_throttling_that_persists_is_recorded_and_the_best_block_stands(
    variants: list[Variant], pauses: list[float]
) -> None:
    """Neither is good: one was throttled, the other's clock drifted."""
    turn = itertools.count()

    def bad(job: Job) -> Mapping[str, Any]:
        if job.mode != "latency":
            return answer(job)
        throttled = next(turn) % 2 == 0
        return {**answer(job, drift=0.0 if throttled else 0.03), **throttle(4 if throttled else 0, 0)}

    result = run(variants, FakeDevice(PROBE, bad), cold=False)
    assert pauses == []  # a quick run does not wait
    assert [block.rejected for block in result.variants[0].warm] == [True, False] * 4

    device = FakeDevice(PROBE, lambda job: {**answer(job), **throttle(4, 4)})
    result = run(variants, device, cold=False, schedule=replace(QUICK, cool_down_s=15.0))
    assert len([job for job in device.jobs if job.mode == "latency"]) == 2 * 4 * (1 + QUICK.retries)
    assert pauses == [10.0, 5.0] * 8  # this device says no temperature: the whole time
    assert "the CPU was throttled in 4 of the processes with edgepack.onnx" in summarize_result(result)[0].notes


@pytest.mark.parametrize(
    ("source", "before", "after", "expected"),
    [
        ("vcgencmd", 0, 0, False),
        ("vcgencmd", 0x50000, 0x50000, False),  # since boot, and over
        ("vcgencmd", 0x10000, 0x50000, True),  # over again, but it was meanwhile
        ("vcgencmd", 0x50000, 0, False),
        ("get_throttled", 0x8, 0, True),
        ("get_throttled", 0, 0x1, True),
        ("vcgencmd", 0, 0x100, False),  # a bit without a meaning
        ("core_throttle_count", 7, 7, False),
        ("core_throttle_count", 7, 8, True),
    ],
)
def test_what_counts_as_throttled(source: str, before: int, after: int, expected: bool) -> None:
    assert Throttle(source, before, after).happened is expected


def test_the_first_warm_block_waits_for_a_hot_device(variants: list[Variant], pauses: list[float]) -> None:
    temperatures = iter([81.0, 78.0, 60.0])

    def answer_hot(job: Job) -> Mapping[str, Any]:
        if job.mode == "memory" and job.model is not None:
            return {**answer(job), "temperature_c": 85.0}
        return {**answer(job), "temperature_c": next(temperatures)} if job.mode == "memory" else answer(job)

    device = FakeDevice({**PROBE, "temperature_c": 40.0}, answer_hot)
    result = run(variants, device, schedule=replace(QUICK, cool_down_s=60.0))
    assert pauses == [10.0, 10.0]
    assert result.start_temperature_c == 60.0
    jobs = [job.mode for job in device.jobs]
    assert jobs[:6] == ["memory"] * 5 + ["latency"]
    assert not [note for note in summarize_result(result)[0].notes if "°C" in note]


def test_a_device_that_stays_hot_is_measured_and_the_note_says_so(variants: list[Variant], pauses: list[float]) -> None:
    def hot(job: Job) -> Mapping[str, Any]:
        return {**answer(job), "temperature_c": 81.4} if job.mode == "memory" else answer(job)

    result = run(variants, FakeDevice(PROBE, hot), schedule=replace(QUICK, cool_down_s=25.0))
    assert pauses == [10.0, 10.0, 5.0]
    assert "it started at 81 °C, above the 75 °C at which it should" in summarize_result(result)[0].notes
    pauses.clear()
    assert run(variants, FakeDevice(PROBE, hot)).start_temperature_c == 81.4
    assert pauses == []


def test_what_a_reader_must_know_of_the_conditions(variants: list[Variant]) -> None:
    def busy(job: Job) -> Mapping[str, Any]:
        return {**answer(job), "governor": "ondemand", "others_busy": 0.31, "temperature_c": [40.0, 42.5]} if (
            job.mode in ("latency", "cold")
        ) else answer(job)  # fmt: skip

    result = run(variants, FakeDevice({**PROBE, "allowed_cpus": []}, busy))
    row = summarize_result(result)[0]
    assert result.conditions.governors == ("ondemand",)
    assert row.governor == "ondemand"
    assert result.variants[0].warm[0].temperature_c == (40.0, 42.5)
    assert row.notes == (
        "quick run: short and few measurements",
        "the CPU governor was ondemand, not performance: the clock follows the load",
        "not pinned to CPUs: the device does not allow it",
        "other programs took 31% of the CPUs' time meanwhile",
    )


def test_every_figure_says_how_it_was_got(variants: list[Variant]) -> None:
    device = FakeDevice(PROBE, lambda job: {**answer(job), "runtime": {"name": "onnxruntime", "version": "1.22.0"}})
    device.name = "pi@raspberrypi.local"
    result = run(variants, device, sustained=True)
    conditions = result.conditions
    assert (conditions.reached, conditions.cluster) == ("pi@raspberrypi.local", "cortex-a72")
    assert conditions.tools == {"onnx": Tool("edgepack runner", "1", "onnxruntime 1.22.0")}
    assert set(result.methods) == {"latency", "cold latency", "sustained latency", "load", "memory", "cache misses"}
    assert result.methods["latency"] == (
        "onnx: edgepack runner 1 (onnxruntime 1.22.0), each InferenceSession.run_with_iobinding between two readings "
        "of perf_counter_ns; 4 fresh processes, the variants in turns, after a warm-up of 3 runs and 0.05 s; at least "
        "20 runs and 0.1 s each; 1 thread on CPU 3; median of the process medians"
    )
    assert result.file_name == f"rpi4.{conditions.device.fingerprint[:8]}.pi@raspberrypi.local.1t.quick.json"
    row = summarize_result(result)[0]
    assert (row.reached, row.tool, row.methods) == ("pi@raspberrypi.local", "edgepack runner 1", result.methods)
    assert row.conditions == {
        "threads": "1", "schedule": "quick", "inputs": "seeded", "tool": "edgepack runner 1", "onnxruntime": "1.22.0",
        "governor": "performance or none", "CPUs": "pinned",
        "edgepack.onnx": result.variants[0].sha256[:8], "dense-fp32.onnx": result.variants[1].sha256[:8],
    }  # fmt: skip


# ---------------------------------------------------------------- sustained


def test_sustained_latency_comes_last_and_says_how_it_changed(variants: list[Variant]) -> None:
    def slowing(job: Job) -> Mapping[str, Any]:
        found = dict(answer(job))
        if job.mode == "latency" and job.seconds == QUICK.sustained_s:
            found["latency_s"] = [1e-3] * 20 + [1.5e-3] * 60 + [2e-3] * 20
            found |= {"runs": 100, "temperature_c": [50.0, 79.0], **throttle(0, 4)}
        return found

    device = FakeDevice(PROBE, slowing)
    result = run(variants, device, sustained=True)
    assert [job.seconds for job in device.jobs[-2:]] == [3.0, 3.0]
    assert [len(variant.sustained) for variant in result.variants] == [1, 1]  # throttled, and not measured again
    row = summarize_result(result)[0]
    assert row.sustained is not None
    assert (row.sustained.first, row.sustained.last, row.sustained.temperature_c) == (1e-3, 2e-3, (50.0, 79.0))
    assert row.warm.median == 1e-3
    assert summarize_result(run(variants, device))[0].sustained is None


# ---------------------------------------------------------------- devices that can do less


def native(job: Job) -> Mapping[str, Any]:
    """What a tool that stands in for the runner reports: one mean, and nothing of what it does not know."""
    assert job.mode == "latency"
    load = dict.fromkeys(LOAD)
    return {
        "latency_s": [2e-3], "kept_every": 1, "runs": 500, "seconds": 1.0, "load": load, "clock": None,
        "tool": {"name": "onnxruntime_perf_test", "version": "1.22"}, "runtime": None, "inputs": "random",
    }  # fmt: skip


def native_device(**changes: Any) -> FakeDevice:
    runtimes = {"onnxruntime_perf_test": {"version": "1.22", "imports": True, "error": None}}
    device = FakeDevice({**PROBE, "runtimes": runtimes, "python": "", **changes}, native)
    device.modes = frozenset({"latency"})
    device.name = "adb 0123"
    return device


def test_a_tool_in_place_of_the_runner_measures_what_it_can(variants: list[Variant], tmp_path: Path) -> None:
    (tmp_path / "in.npz").write_bytes(b"x")
    result = run(variants, native_device(), inputs=tmp_path / "in.npz", sustained=True)
    assert result.import_only == {}
    assert result.conditions.inputs == "random"
    assert result.conditions.tools == {"onnx": Tool("onnxruntime_perf_test", "1.22", None)}
    assert set(result.methods) == {"latency", "sustained latency"}
    assert result.methods["latency"].startswith(
        "onnx: onnxruntime_perf_test 1.22, as it times itself; 4 fresh processes"
    )
    row = summarize_result(result)[0]
    assert (row.warm.median, row.cold, row.resident_bytes, row.sustained, row.load_s) == (2e-3, None, None, None, {})
    assert row.notes == (
        "quick run: short and few measurements",
        "onnxruntime_perf_test 1.22 gives one mean per process: p50 and p90 are of these means",
        "cold latency not measured: onnxruntime_perf_test cannot empty the caches",
        "memory not measured: onnxruntime_perf_test does not say what it holds",
        "sustained latency not measured: onnxruntime_perf_test gives one mean of all its runs",
    )
    assert row.cache_misses_note == "onnxruntime_perf_test counts no events"
    assert row.conditions["tool"] == "onnxruntime_perf_test 1.22"
    assert row.conditions["runtime"] == "not named"
    save_result(result, tmp_path / "results" / "r.json")
    assert load_results(tmp_path) == [result]
    assert "cold" not in "".join(summarize_result(run(variants, native_device(), cold=False))[0].notes)


def test_a_tool_that_is_not_there_is_missed_by_its_name(variants: list[Variant]) -> None:
    with pytest.raises(
        StableDeviceError, match="the device runs no onnx: onnxruntime_perf_test or onnxruntime-web is not given"
    ) as caught:
        run(variants, native_device(runtimes={}))
    assert "give the path of onnxruntime_perf_test" in (caught.value.hint or "")
    device = native_device()
    device.modes = frozenset({"memory"})
    with pytest.raises(StableDeviceError, match="adb 0123 measures no latency: found memory"):
        run(variants, device)


# ---------------------------------------------------------------- nothing from a device is trusted


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        ("latency", {"latency_s": ["1"]}), ("latency", {"latency_s": [-1.0]}), ("latency", {"latency_s": []}),
        ("latency", {"latency_s": [float("nan")]}), ("latency", {"latency_s": [1e-3] * 100_001}),
        ("latency", {"latency_s": 5}), ("latency", {"runs": 0}), ("latency", {"runs": True}),
        ("latency", {"clock": []}), ("latency", {"clock": {"before_s": [], "after_s": [1.0]}}),
        ("latency", {"governor": "x\x1b[2J"}), ("latency", {"governor": "x" * 500}), ("latency", {"governor": 5}),
        ("latency", {"throttle": {"source": "vcgencmd", "before": -1, "after": 0}}), ("latency", {"throttle": "hot"}),
        ("latency", {"throttle": {"source": "\u202e", "before": 0, "after": 0}}),
        ("latency", {"temperature_c": [1e9, 0.0]}), ("latency", {"temperature_c": 50.0}),
        ("latency", {"others_busy": 1.5}), ("latency", {"load": {"process_s": "x"}}),
        ("latency", {"tool": {"name": "\x07", "version": "1"}}), ("latency", {"tool": {}}), ("latency", {"tool": "x"}),
        ("latency", {"runtime": {"name": "x", "version": 5, "more": 1}, "tool": {"name": 1, "version": "1"}}),
        ("memory", {"loaded": {**HELD, "rss_bytes": "50"}}), ("memory", {"imported": {**HELD, "extra": 1}}),
        ("memory", {"loaded": {**HELD, "rss_bytes": -5}}), ("memory", {"load": {"first_inference_s": "soon"}}),
        ("memory", {"load": {"first_inference_s": float("inf")}}), ("memory", {"load": {"first_inference_s": -1.0}}),
        ("counters", {"counters": {"\x1b": {"unavailable": "x"}}}), ("counters", {"counters": [1]}),
    ],
)  # fmt: skip
def test_a_report_that_cannot_be_is_the_devices_fault(
    variants: list[Variant], mode: str, change: dict[str, Any]
) -> None:
    device = FakeDevice(PROBE, lambda job: {**answer(job), **change} if job.mode == mode else answer(job))
    with pytest.raises(StableDeviceError, match=r"the report is not as expected|its reports cannot be"):
        run(variants, device)


@pytest.mark.parametrize(
    "change",
    [
        {"device_model": "x\x1b[2J"}, {"cpu_model": "x" * 2000}, {"kernel": 5}, {"features": [5]}, {"features": None},
        {"cpus": [{"cpu": "0", "core": "", "max_khz": None, "governor": None}]}, {"ram_bytes": "4"}, {"cpus": 5},
        {"allowed_cpus": 5}, {"allowed_cpus": ["x"]}, {"runtimes": []}, {"caches": [{}]}, {"counters": [1]},
        {"runtimes": {"onnxruntime": {"version": 5, "imports": True, "error": None}}},
    ],
)  # fmt: skip
def test_a_probe_that_cannot_be_is_the_devices_fault(variants: list[Variant], change: dict[str, Any]) -> None:
    with pytest.raises(StableDeviceError, match=r"the (probe )?report is not as expected"):
        run(variants, FakeDevice({**PROBE, **change}, answer))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_device_says_it_is_a_result_or_an_error_of_its_own(variants: list[Variant], data: Any) -> None:
    odd = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    probe, chosen = dict(PROBE), data.draw(st.sampled_from([*PROBE, "none"]))
    if chosen != "none":
        probe[chosen] = data.draw(odd)

    def strange(job: Job) -> Mapping[str, Any]:
        found = dict(answer(job))
        for key in data.draw(st.sets(st.sampled_from([*found, "tool", "throttle", "governor", "runtime"]), max_size=2)):
            found[key] = data.draw(odd)
        return found

    plan = replace(QUICK, processes=1, retries=0)
    try:
        result = run(variants, FakeDevice(probe, strange), schedule=plan)
    except StableDeviceError:
        return
    summarize_result(result)
    assert not list(problems(result))


def test_threads_stay_on_the_fastest_cluster_where_they_fit() -> None:
    speeds = [1800000] * 4 + [2300000] * 4
    cpus = [{"cpu": n, "core": "", "max_khz": speeds[n], "governor": None} for n in range(8)]
    facts = facts_from_probe({**PROBE, "cpus": cpus}, "fake")
    allowed = list(range(8))
    assert choose_cpus(facts, allowed, 1) == (7,)
    assert choose_cpus(facts, allowed, 4) == (4, 5, 6, 7)
    assert choose_cpus(facts, allowed, 6) == tuple(range(8))
    assert choose_cpus(facts, [0, 1, 2], 2) == (1, 2)
    assert choose_cpus(facts, [], 1) == ()


def test_the_fingerprint_is_the_hardwares() -> None:
    facts = facts_from_probe(PROBE, "fake")
    newer = facts_from_probe({**PROBE, "kernel": "6.12", "python": "3.13", "runtimes": {}}, "fake")
    assert newer.fingerprint == facts.fingerprint
    assert facts_from_probe({**PROBE, "ram_bytes": 8 << 30}, "fake").fingerprint != facts.fingerprint


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        ([Counter("cache-misses", 10, (100, 90, 120), 1000, 64000)], (10.0, None)),
        ([Counter("cache-misses", 10, (100,), 10, 64000)], (None, "cache-misses saw 10 of 1000 lines streamed")),
        ([Counter("cache-misses", unavailable="EPERM")], (None, "cache-misses: EPERM")),
        (
            [Counter("cache-misses", 10, (100,), 1000, 64000), Counter("l3d_cache_refill", 10, (50,), 990, 64000)],
            (5.0, None),
        ),
        ([], (None, "no event counts them")),
    ],
)
def test_a_miss_counter_is_only_believed_if_it_saw_the_streamed_buffer(counters: list[Counter], expected: Any) -> None:
    assert cache_misses(counters, None) == expected
