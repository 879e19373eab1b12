"""The session: the order of the measurements, what is retried, and a real quick run in both formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.bench.devices.device import Job
from edgepack.bench.devices.fake import FakeDevice
from edgepack.bench.devices.local import LocalDevice
from edgepack.bench.facts import choose_cpus, facts_from_probe
from edgepack.bench.results import Counter
from edgepack.bench.schedule import QUICK
from edgepack.bench.session import Variant, bench_variants
from edgepack.bench.summary import LINE_BYTES, cache_misses, summarize_result
from edgepack.errors import (
    DataError,
    ModelError,
    StableDeviceError,
    TargetsError,
    TransientDeviceError,
    UsageError,
)
from edgepack.targets import get_target

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
    return bench_variants(variants, target=get_target("rpi4"), device=device, quick=True, **options)


def test_a_real_quick_run_of_both_formats(onnx_model: Path, tflite_models: Path, tmp_path: Path) -> None:
    import bench_models

    large = bench_models.write_mlp(tmp_path / "large.onnx", [1024, 1024, 10])
    variants = [
        Variant("edgepack", "onnx", onnx_model),
        Variant("dense-fp32", "onnx", large),
        Variant("edgepack", "tflite", tflite_models / "int8.tflite"),
        Variant("dense-fp32", "tflite", tflite_models / "fp32.tflite"),
    ]
    seen: list[tuple[str, int, int]] = []
    schedule = replace(QUICK, seconds=0.02, runs=10, cold_runs=3)
    result = bench_variants(
        variants,
        target=get_target("host"),
        device=LocalDevice(),
        quick=True,
        schedule=schedule,
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


def test_a_swapping_device_gives_no_memory_figure(variants: list[Variant]) -> None:
    def swapping(job: Job) -> Mapping[str, Any]:
        report = dict(answer(job))
        if job.mode == "memory":
            report["ran"] = {**HELD, "swap_bytes": 4096}
        return report

    row = summarize_result(run(variants, FakeDevice(PROBE, swapping)))[0]
    assert row.peak_bytes is None
    assert "the device swapped: its memory figures are left out" in row.notes


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
