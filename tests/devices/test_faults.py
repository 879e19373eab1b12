"""Over a real sshd: a bench on a device that breaks every second; `bench/measure_faults.py` does the same for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.benchmark.session import Variant
from edgepack.devices.remote import RemoteDevice
from tests.devices import faults, sshd

pytestmark = pytest.mark.system


def test_a_bench_ends_with_a_result_whatever_breaks_and_leaves_nothing(tmp_path: Path, onnx_model: Path) -> None:
    with sshd.rig(tmp_path, disk=faults.DISK) as rig:
        variants = [Variant("edgepack", "onnx", onnx_model)]
        counts, results = faults.run(rig, variants, 6.0)
        assert counts.faults.total() >= 1
        assert counts.benches == len(results) >= 1
        assert all(len(variant.warm) == faults.SCHEDULE.processes for one in results for variant in one.variants)
        assert all(message.isprintable() for message in counts.told)
        device = RemoteDevice(rig.link())  # the next session sweeps up after those that were cut
        device.close()
        rig.machine.assert_clean()
