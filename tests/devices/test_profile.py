"""A device as a target: of every shipped kind by its reports, and this machine for real."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edgepack.devices.device import Job
from edgepack.devices.fake import FakeDevice
from edgepack.devices.local import LocalDevice
from edgepack.devices.profile import Probed, cluster_cpus, listed_targets, probe_target
from edgepack.devices.sweep import Chased, checked_probe, knees, sweep_from_report
from edgepack.devices.target_diff import Difference, differences, nearest
from edgepack.errors import StableDeviceError, UsageError
from edgepack.targets.file import check_file, load_targets
from edgepack.targets.target import Bandwidth, Cache, Target
from edgepack.targets.write import targets_file_text
from tests.devices.probed_reports import drifting, probe_report, sweep_report

LISTED = listed_targets(None)
M, K = 1 << 20, 1 << 10
DISTINCT = [name for name in LISTED if LISTED[name].arch == "aarch64"]


def device(target: Target, **changes: Any) -> FakeDevice:
    """A device of this kind; `probe_…` and `sweep_…` change its reports."""
    of_probe = {key[6:]: value for key, value in changes.items() if key.startswith("probe_")}
    of_sweep = {key[6:]: value for key, value in changes.items() if key.startswith("sweep_")}
    report = probe_report(target, **of_probe)
    clusters = {cpus[0]: cluster for cluster, cpus in zip(target.clusters, cluster_cpus(report), strict=True)}

    def answer(job: Job) -> Mapping[str, Any]:
        cluster = clusters[max(first for first in clusters if first <= job.cpus[0])]
        one = cluster.read.low_gb_s if cluster.read else 4.0
        every = cluster.read_all_cores.low_gb_s if cluster.read_all_cores else one
        return sweep_report(cluster, job.cpus, read=one * 1e9, together=every * 1e9, **of_sweep)

    return FakeDevice(report, answer)


def probed(target: Target, shipped: Target | None = None, **changes: Any) -> Probed:
    return probe_target(device(target, **changes), "mine", shipped, listed=LISTED.values())


@pytest.mark.parametrize("name", DISTINCT)
def test_a_device_of_a_shipped_kind_is_known_and_does_not_differ(name: str) -> None:
    found = probed(LISTED[name])
    assert found.shipped is not None
    assert found.shipped.name == name
    assert found.guessed
    assert found.differences == ()
    assert found.notes == ()
    for mine, listed in zip(found.target.clusters, LISTED[name].clusters, strict=True):
        assert mine.name == listed.name
        assert mine.frequency_mhz == listed.frequency_mhz
        assert mine.ipc == listed.ipc
        assert mine.frequency_source == "probed"
        for cache in mine.data_caches:
            assert cache.source == "probed"
        assert mine.read is not None
        assert mine.read.source == "probed"


@pytest.mark.parametrize("name", [name for name in DISTINCT if LISTED[name].main_cluster.data_caches])
def test_where_the_kernel_lists_no_caches_the_latency_tells_their_sizes(name: str) -> None:
    found = probed(LISTED[name], probe_caches=False)
    for mine, listed in zip(found.target.clusters, LISTED[name].clusters, strict=True):
        sizes = [(level, getattr(listed, level)) for level in ("L1d", "L2", "L3")]
        for level, cache in sizes:
            assert getattr(mine, level) == (dataclasses.replace(cache, ways=None, source="probed") if cache else None)
    assert found.notes[0].endswith("their sizes are where the latency rises, their ways are unknown")
    assert not [difference for difference in found.differences if ".L" in difference.key]


def test_without_a_listed_target_the_sizes_are_the_likeliest() -> None:
    found = probe_target(device(LISTED["rpi4"], probe_caches=False), "mine")
    main = found.target.main_cluster
    assert found.shipped is None
    assert (main.L1d, main.L2, main.L3) == (
        Cache(32 * K, "core", source="probed"),
        Cache(1 * M, "cluster", source="probed"),
        None,
    )


def test_every_cluster_is_swept_on_its_own_cpus() -> None:
    board = device(LISTED["rk3588"])
    found = probe_target(board, listed=LISTED.values())
    assert [(job.threads, job.cpus) for job in board.jobs] == [(4, (0, 1, 2, 3)), (4, (4, 5, 6, 7))]
    assert [(one.cluster, one.sweep.cpus) for one in found.swept] == [("a76", (0, 1, 2, 3)), ("a55", (4, 5, 6, 7))]
    reads = [cluster.read for cluster in found.target.clusters]
    assert reads == [Bandwidth(17.0, 17.0, "probed"), Bandwidth(6.6, 6.6, "probed")]


def test_cpus_that_are_closed_to_the_user_are_left_alone() -> None:
    found = probed(LISTED["rk3588"], probe_allowed_cpus=[1, 2])
    assert [(one.cluster, one.sweep.cpus) for one in found.swept] == [("a76", (1, 2))]
    assert found.target.clusters[1].read is None
    assert found.notes == ("a55: not measured: its CPUs [4, 5, 6, 7] are closed to this user (allowed: [1, 2])",)


def test_what_differs_is_named_with_both_values() -> None:
    pi = LISTED["rpi4"]
    odd = dataclasses.replace(
        pi.main_cluster,
        cores=2,
        frequency_mhz=1200,
        L2=Cache(512 * K, "cluster", 8),
        L3=Cache(4 * M, "all", 16),
        read=Bandwidth(2.0, 2.0),
        read_all_cores=Bandwidth(2.0, 2.0),
    )
    found = probed(
        dataclasses.replace(pi, clusters=(odd,), isa=(), ram_bytes=512 * M), pi, probe_features=["crc32", "atomics"]
    )
    key = "clusters.a72."
    assert found.differences == (
        Difference("isa", "neon", "no neon"),
        Difference("ram_bytes", "1G to 8G", "448M"),
        Difference(key + "cores", "4", "2"),
        Difference(key + "frequency_mhz", "1500", "1200"),
        Difference(key + "L2", "1M 16-way", "512K 8-way"),
        Difference(key + "L3", "none", "4M 16-way"),
        Difference(key + "read", "3.7 to 4.4 GB/s", "2 GB/s"),
        Difference(key + "read_all_cores", "3.7 to 4.4 GB/s", "2 GB/s"),
    )
    assert not found.guessed
    assert str(found.differences[4]) == "clusters.a72.L2: 1M 16-way, found 512K 8-way"


def test_another_core_and_a_missing_cluster_differ() -> None:
    keys = {difference.key: difference for difference in differences(LISTED["rpi5"], LISTED["rk3588"])}
    assert keys["clusters.a55"] == Difference("clusters.a55", "4× cortex-a55", "none")
    assert keys["clusters.a76.L3"] == Difference("clusters.a76.L3", "3M 12-way", "2M 16-way")
    keys = {difference.key: difference for difference in differences(LISTED["n100"], LISTED["rpi4"])}
    assert keys["arch"] == Difference("arch", "aarch64", "x86_64")
    assert keys["clusters.a72.core"].found == "gracemont"


@pytest.mark.parametrize("name", LISTED)
def test_no_target_differs_from_itself(name: str) -> None:
    assert differences(LISTED[name], LISTED[name]) == ()


@pytest.mark.parametrize(
    ("change", "differs"),
    [(1.04, False), (1.06, True), (0.96, False), (0.94, True)],
)
def test_a_frequency_within_five_percent_is_the_same(change: float, differs: bool) -> None:
    pi = LISTED["rpi4"]
    main = dataclasses.replace(pi.main_cluster, frequency_mhz=round(1500 * change))
    assert bool(differences(dataclasses.replace(pi, clusters=(main,)), pi)) is differs


@pytest.mark.parametrize(
    ("low", "high", "differs"),
    [(3.2, 3.2, False), (3.1, 3.1, True), (5.0, 6.0, False), (5.1, 6.0, True), (1, 9, False)],
)
def test_a_bandwidth_near_the_listed_range_is_the_same(low: float, high: float, differs: bool) -> None:
    pi = LISTED["rpi4"]
    main = dataclasses.replace(pi.main_cluster, read=Bandwidth(low, high))
    assert bool(differences(dataclasses.replace(pi, clusters=(main,)), pi)) is differs


@pytest.mark.parametrize(
    ("model", "cpu", "like", "name"),
    [
        ("Raspberry Pi 4 Model B Rev 1.4", "BCM2835", "rpi4", "raspberry-pi-4-model-b"),
        ("Raspberry Pi 400 Rev 1.0", "", "rpi4-1800mhz", "raspberry-pi-400"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "", "rpi-zero2w", "raspberry-pi-zero-2-w"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "", "rpi3b+", "raspberry-pi-3-model-b-plus"),
        ("To be filled by O.E.M.", "Intel(R) N100", "n100", "intel-n100"),
        ("Default string", "Intel(R) Celeron(R) J4125 CPU @ 2.00GHz", "j4125", "intel-celeron-j4125"),
        ("", "AMD EPYC", None, "amd-epyc"),
    ],
)
def test_a_device_is_recognised_by_what_it_calls_itself(model: str, cpu: str, like: str | None, name: str) -> None:
    target = LISTED[like or "n100"]
    report = probe_report(target, device_model=model, cpu_model=cpu)
    if target.arch == "x86_64":
        for one in report["cpus"]:
            one["core"] = ""  # as the kernel has it
    found = probe_target(
        FakeDevice(report, lambda job: sweep_report(target.main_cluster, job.cpus)), listed=LISTED.values()
    )
    assert (found.shipped.name if found.shipped else None) == like
    assert found.target.name == name
    if like is not None:
        assert found.target.main_cluster.name == target.main_cluster.name


def test_nearest_takes_the_frequency_where_the_names_say_nothing() -> None:
    late = dataclasses.replace(LISTED["rpi4-1800mhz"], description="board")
    found = nearest(late, LISTED.values())
    assert found is not None
    assert found.name == "rpi4-1800mhz"
    assert nearest(LISTED["visionfive2"], [LISTED["rpi4"]]) is None


def test_a_drifting_clock_is_measured_once_more_and_then_said() -> None:
    pi = LISTED["rpi4"]
    whole = sweep_report(pi.main_cluster, range(4))
    answers = iter([drifting(whole, 0.2), whole])
    once = probe_target(FakeDevice(probe_report(pi), lambda job: next(answers)), "mine")
    assert not [note for note in once.notes if "clock" in note]
    answers = iter([drifting(whole, 0.08), drifting(whole, 0.2)])
    twice = probe_target(FakeDevice(probe_report(pi), lambda job: next(answers)), "mine")
    assert twice.notes[0].startswith("a72: the clock changed by 8% while it was measured, twice")
    with pytest.raises(StopIteration):
        next(answers)


def test_a_busy_device_and_one_without_machine_code_say_so() -> None:
    found = probed(LISTED["rpi4"], sweep_load_average=1.25)
    assert found.notes == ("a72: other programs were running (load average 1.2): the figures may be low",)
    found = probed(
        LISTED["rpi4"], sweep_code_unavailable="no", sweep_latency=[], sweep_clock_hz=None, sweep_reader="memchr"
    )
    assert found.target.main_cluster.frequency_mhz == 1500  # the kernel's
    assert found.target.main_cluster.L2 is not None  # likewise
    assert found.target.main_cluster.L2.size_bytes == 1 * M
    assert found.notes[0].startswith("a72: no: the clock and the latency of the caches are not measured")


def test_kernel_and_latency_may_disagree() -> None:
    pi = LISTED["rpi4"]
    smaller = dataclasses.replace(pi.main_cluster, L2=Cache(256 * K, "cluster"))
    report = probe_report(pi)
    found = probe_target(FakeDevice(report, lambda job: sweep_report(smaller, job.cpus)), "mine")
    assert found.target.main_cluster.L2 is not None
    assert found.target.main_cluster.L2.size_bytes == 1 * M
    assert found.notes == ("a72: L2: the kernel lists 1M, but latency rises at about 292K (9.43 to 202 ns)",)
    report["caches"] = [cache for cache in report["caches"] if cache["level"] == 1]
    found = probe_target(FakeDevice(report, lambda job: sweep_report(smaller, job.cpus)), "mine")
    assert found.notes == ("a72: latency also rises at about 292K (9.43 to 202 ns), where the kernel lists no cache",)


def test_caches_and_rises_are_paired_in_order() -> None:
    """A neighbour on the same memory took most of both caches: neither may be blamed for the other's rise."""
    pi = LISTED["rpi5"]
    taken = dataclasses.replace(pi.main_cluster, L2=Cache(192 * K, "core"), L3=Cache(512 * K, "all"))
    found = probe_target(FakeDevice(probe_report(pi), lambda job: sweep_report(taken, job.cpus)), "mine")
    starts = ["a76: L2: the kernel lists 512K, but latency rises", "a76: L3: the kernel lists 2M, but latency rises"]
    assert [note.startswith(start) for note, start in zip(found.notes, starts, strict=True)] == [True, True]
    one = dataclasses.replace(pi.main_cluster, L2=None)
    found = probe_target(FakeDevice(probe_report(pi), lambda job: sweep_report(one, job.cpus)), "mine")
    assert found.notes == ("a76: L2: the kernel lists 512K, but latency does not rise near it",)


def test_a_working_set_too_small_for_the_memory_is_said() -> None:
    pi = LISTED["rpi4"]
    whole = sweep_report(pi.main_cluster, range(4))
    small = {**whole, "bandwidth": [point for point in whole["bandwidth"] if point["bytes"] <= 2 * M]}
    found = probe_target(FakeDevice(probe_report(pi), lambda job: small), "mine")
    assert "a72: read: the largest working set is 2M, less than 4 × the last-level cache of" in found.notes[0]


@pytest.mark.parametrize("name", ["host", "two words", "", "-x", "a" * 65])
def test_a_name_that_no_targets_file_takes_is_refused_before_anything_is_measured(name: str) -> None:
    board = device(LISTED["rpi4"])
    with pytest.raises(UsageError, match="is no name for a target"):
        probe_target(board, name)
    assert board.jobs == []


def test_a_device_without_python_is_refused() -> None:
    board = device(LISTED["rpi4"])
    board.modes = frozenset({"latency"})  # type: ignore[misc, assignment]
    with pytest.raises(StableDeviceError, match="cannot be probed: it runs no Python"):
        probe_target(board)


@pytest.mark.parametrize("sizes", [[32 * K], [32 * K, 512 * K], [64 * K, 512 * K, 3 * M], [48 * K, 2 * M, 12 * M]])
@pytest.mark.parametrize("seed", range(4))
def test_knees_are_found_under_noise(sizes: list[int], seed: int) -> None:
    import numpy as np

    from tests.devices.probed_reports import load_cycles

    random = np.random.default_rng(seed)
    curve = []
    for octave in range(15):
        for part in (4, 5, 6, 7):
            size = (4 * K << octave) * part // 4
            noise = 1 + np.abs(random.normal(0, 0.03, 5)) + (random.random(5) < 0.1) * 3
            curve.append(Chased(size, tuple(load_cycles(sizes, size) * 1e-9 * noise)))
    found = knees(curve[:57])
    assert [knee.size_bytes for knee in found] == sizes
    assert all(knee.agrees(size) for knee, size in zip(found, sizes, strict=True))
    assert all(knee.before_s < knee.after_s for knee in found)


def test_a_flat_or_a_slowly_rising_curve_has_no_knees() -> None:
    sizes = [(4 * K << octave) * part // 4 for octave in range(15) for part in (4, 5, 6, 7)]
    assert knees([]) == ()
    assert knees([Chased(4096, (1e-9,))]) == ()
    assert knees([Chased(size, (1e-9,)) for size in sizes]) == ()
    assert knees([Chased(size, (1e-9 * 1.2 ** math.log2(size),)) for size in sizes]) == ()
    assert knees([*(Chased(size, (1e-9,)) for size in sizes), Chased(128 * M, (9e-9,))]) == ()


BAD = [
    ("probe", ["machine"], "vax", "machine"),
    ("probe", ["ram_bytes"], 0, "ram_bytes"),
    ("probe", ["ram_bytes"], 1e9, "ram_bytes"),
    ("probe", ["cpus"], [], "cpus"),
    ("probe", ["cpus", 0, "max_khz"], -5, "cpus.0.max_khz"),
    ("probe", ["cpus", 0, "cpu"], 1, "the same CPU twice"),
    ("probe", ["caches", 0, "size_bytes"], "32K", "caches.0.size_bytes"),
    ("probe", ["caches", 0, "line_bytes"], 7, "caches.0.line_bytes"),
    ("probe", ["device_model"], "x" * 301, "device_model"),
    ("probe", ["runtimes"], {"onnxruntime": True}, "runtimes.onnxruntime"),
    ("sweep", ["clock_hz"], 1e12, "clock_hz"),
    ("sweep", ["clock_hz"], math.nan, "clock_hz"),
    ("sweep", ["threads"], 0, "threads"),
    ("sweep", ["threads"], 3, "expected rising sizes for threads 3"),
    ("sweep", ["bandwidth"], [], "bandwidth"),
    ("sweep", ["bandwidth", 0, "bytes_per_s"], [math.inf], "bandwidth.0.bytes_per_s.0"),
    ("sweep", ["bandwidth", 0, "bytes_per_s"], [], "bandwidth.0.bytes_per_s"),
    ("sweep", ["bandwidth", 0, "bytes"], 1 << 60, "bandwidth.0.bytes"),
    ("sweep", ["bandwidth", 0, "bytes"], 64 << 20, "expected rising sizes for threads 1"),
    ("sweep", ["latency", 0, "load_s"], [0.0], "latency.0.load_s.0"),
    ("sweep", ["latency", 0, "bytes"], 64 << 20, "latency: expected rising sizes"),
    ("sweep", ["blocks", 0, "clock_hz"], [1e9], "blocks.0.clock_hz"),
    ("sweep", ["reader"], "magic", "reader"),
    ("sweep", ["code_unavailable"], 7, "code_unavailable"),
]


@pytest.mark.parametrize(("which", "path", "value", "says"), BAD)
def test_a_report_that_is_not_one_names_what_is_wrong(which: str, path: list[Any], value: Any, says: str) -> None:
    pi = LISTED["rpi4"]
    report = copy.deepcopy(probe_report(pi) if which == "probe" else sweep_report(pi.main_cluster, range(4)))
    at: Any = report
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    judge = checked_probe if which == "probe" else sweep_from_report
    with pytest.raises(StableDeviceError, match=f"fake: the {which}'s report is not as expected") as caught:
        judge(report, "fake")
    assert says in caught.value.message
    del at[path[-1]]
    if which == "probe" and len(path) == 1:
        with pytest.raises(StableDeviceError, match="Field required"):
            judge(report, "fake")


texts = st.text(max_size=80) | st.sampled_from(["a: b", "# x", "- ", "\x1b[31m", "null", "\u202e", "host", "‮", "{"])
values = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(st.integers(), max_size=3)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_device_sends_is_a_good_entry_or_a_typed_error(data: st.DataObject, tmp_path: Path) -> None:
    """Names and figures of any kind; what comes out is a file that loads, in one line per fact."""
    pi = LISTED["rk3588"]
    probe = probe_report(pi, device_model=data.draw(texts), cpu_model=data.draw(texts))
    core = data.draw(texts)
    for cpu in probe["cpus"][: data.draw(st.integers(0, 8))]:
        cpu["core"] = core
    sweep = sweep_report(pi.main_cluster, [0])
    if data.draw(st.booleans()):
        broken = data.draw(st.sampled_from([probe, sweep]))
        broken[data.draw(st.sampled_from(sorted(broken)))] = data.draw(values)

    try:
        found = probe_target(FakeDevice(probe, lambda job: sweep), listed=LISTED.values())
    except StableDeviceError:
        return
    path = tmp_path / "entry.yaml"
    path.write_text(targets_file_text(found.target, [*map(str, found.differences), *found.notes]), encoding="utf-8")
    assert check_file(path) == []
    assert load_targets(path)[found.target.name] == found.target
    json.dumps(found.record(), allow_nan=False)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no machine code for this CPU")
def test_this_machine_for_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = Job.arguments
    monkeypatch.setattr(Job, "arguments", lambda job: [*arguments(job), "--quick"])
    steps: list[tuple[str, int, int]] = []
    found = probe_target(
        LocalDevice(),
        "mine",
        listed=LISTED.values(),
        progress=lambda stage, done=0, total=0: steps.append((stage, done, total)),
    )
    host = load_targets()["host"]
    main = found.target.main_cluster
    assert main.data_caches == host.main_cluster.data_caches
    assert main.read is not None
    assert 0.1 < main.read.low_gb_s <= main.read.high_gb_s < 1000
    assert 500 < (main.frequency_mhz or 0) < 7000
    assert steps[0] == ("probe", 0, 0)
    assert steps[-1][1] == steps[-1][2] == len(found.target.clusters)
    path = tmp_path / "mine.yaml"
    path.write_text(targets_file_text(found.target), encoding="utf-8")
    assert load_targets(path)["mine"] == found.target


def test_the_command_prints_a_file_that_replaces_the_one_it_is_written_to(tmp_path: Path) -> None:
    """`edgepack targets probe … > targets.yaml`: the shell empties the file of the working folder first."""
    out = tmp_path / "targets.yaml"
    command = [sys.executable, "-m", "edgepack", "targets", "probe", "--local", "--name", "mine", "--target", "rpi4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with out.open("w") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment, timeout=120
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert check_file(out) == []
    assert load_targets(out)["mine"].main_cluster.read is not None
    assert "# differs from the shipped rpi4: clusters.a72" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "error: which device is meant?"),
        (["--local", "--name", "host"], 2, 'error: "host" is no name for a target'),
        (["--local", "--target", "rpi"], 3, 'error: unknown target "rpi": did you mean'),
    ],
)
def test_the_command_refuses_what_makes_no_sense(arguments: list[str], code: int, says: str) -> None:
    from edgepack.cli import app

    result = CliRunner().invoke(app, ["targets", "probe", *arguments])
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(says)
