"""What a person sees of a probed device: a targets file that is good as it stands, and the picture of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.devices.fake import FakeDevice
from edgepack.devices.profile import Probed, listed_targets, probe_target
from edgepack.report.render.terminal import sparkline
from edgepack.report.targets import entry_text, sweep_report
from edgepack.targets.file import check_file, load_targets
from tests.devices.probed_reports import probe_report
from tests.devices.probed_reports import sweep_report as answer
from tests.report.shown import terminal_text

PI = listed_targets(None)["rpi4"]
ENTRY = """\
schema_version: 1

targets:
  # differs from the shipped rpi4, which it seems to be: clusters.a72.frequency_mhz: 1500, found 1200
  # note: a72: other programs were running (load average 2): the figures may be low
  mine:
    description: Raspberry Pi 4 Model B Rev 1.4
    arch: aarch64
    isa: [neon]
    clusters:
      a72:
        core: cortex-a72
        cores: 4
        frequency_mhz: 1200
        frequency_source: probed
        ipc: {low: 0.8, high: 3}
        L1d: {size_bytes: 32K, shared: core, ways: 2, source: probed}
        L1i: {size_bytes: 48K, shared: core, ways: 3, source: probed}
        L2: {size_bytes: 1M, shared: all, ways: 16, source: probed}
        read: {low_gb_s: 4, high_gb_s: 4, source: probed}
        read_all_cores: {low_gb_s: 4, high_gb_s: 4, source: probed}
    ram_bytes: 960M
    runtimes: {onnx: onnxruntime}
    no_runtime_reason: no runtime for tflite is installed
"""
SWEEP = """\
a72: CPUs 0, 1, 2, 3, 1.200 GHz, measured in 10 s
  read, 1 thread   ███████▁▁▁▁▁▁ 16K to 64M
  read, 4 threads  █████▁▁▁▁▁▁▁▁ 16K to 64M
  latency          ▁▁▁▁▁▁▁▁▁▁▁▁▁▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▇███████████████████████ 4K to 64M

 working set   GB/s, 1 thread   GB/s, all cores   ns per load
"""


def probed(**changes: object) -> Probed:
    report = probe_report(PI, device_model="Raspberry Pi 4 Model B Rev 1.4")
    device = FakeDevice(report, lambda job: answer(PI.main_cluster, job.cpus, **changes))
    return probe_target(device, "mine", listed=[PI])


def plain(found: Probed) -> list[str]:
    return terminal_text(sweep_report(found.record()), 110).splitlines()


def test_the_entry_is_a_good_file_with_the_differences_in_comments(tmp_path: Path) -> None:
    found = probed(clock_hz=1.2e9, load_average=2.0)
    text = entry_text(found.target, found.record())
    assert text == ENTRY
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert check_file(path) == []
    assert load_targets(path)["mine"] == found.target


def test_no_difference_and_no_like_are_said() -> None:
    found = probed()
    assert "  # no difference that matters from the shipped rpi4, which it seems to be\n" in entry_text(
        found.target, found.record()
    )
    device = FakeDevice(probe_report(PI), lambda job: answer(PI.main_cluster, job.cpus))
    named = probe_target(device, "mine", PI)
    assert "  # no difference that matters from the shipped rpi4\n" in entry_text(named.target, named.record())
    alone = probe_target(device, "mine")
    assert "  # no shipped target has this architecture and core\n" in entry_text(alone.target, alone.record())


def test_the_sweep_is_a_picture_and_a_row_per_octave() -> None:
    lines = plain(probed(clock_hz=1.2e9))
    assert "\n".join(lines).startswith(SWEEP.rstrip("\n"))
    rows = {line.split()[0]: line.split()[1:] for line in lines[7:] if line}
    assert list(rows) == ["4K", "8K", *(f"{16 << i}K" for i in range(6)), *(f"{1 << i}M" for i in range(7))]
    assert rows["4K"] == ["2.69"]
    assert rows["16K"][:2] == ["16", "16"]
    assert rows["64M"] == ["4", "4", "202"]
    assert rows["32K"][3:] == ["latency", "rises", "at", "37.1K"]
    assert rows["1M"][3:] == ["latency", "rises", "at", "1.14M"]


def test_what_was_not_measured_is_left_out() -> None:
    lines = plain(probed(clock_hz=None, latency=[], reader="memchr", code_unavailable="no page may be executed"))
    assert lines[0] == "a72: CPUs 0, 1, 2, 3, clock not measured, measured in 10 s"
    assert not [line for line in lines if "latency" in line]
    assert lines[6].split()[0] == "16K"


@pytest.mark.parametrize(
    ("values", "bars"), [([1.0], "▁"), ([2.0, 2.0], "▁▁"), ([1.0, 10.0, 100.0], "▁▅█"), ([8.0, 1.0], "█▁")]
)
def test_sparkline(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars
