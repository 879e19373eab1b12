"""What a runtime holds per byte of the file, measured again for one scheme of each."""

from __future__ import annotations

import pytest

from edgepack.bench.devices.device import Job
from edgepack.bench.devices.local import LocalDevice
from edgepack.formats import FORMS, Format
from edgepack.pipeline.layer_files import layer_files
from edgepack.plan.resident import RESIDENT_PER_BYTE, resident_bytes
from edgepack.plan.table import Point


def test_every_scheme_has_a_factor() -> None:
    assert set(RESIDENT_PER_BYTE) == {(fmt, scheme) for fmt, schemes in FORMS.items() for scheme in schemes}
    assert resident_bytes("onnx", "int8-static-qdq", 1000) == 3200
    assert all(1 <= factor <= 4 for factor in RESIDENT_PER_BYTE.values())


@pytest.mark.parametrize(("fmt", "scheme"), [("onnx", "int8-dynamic"), ("tflite", "int8-dynamic-range")])
def test_the_factor_is_what_a_fresh_process_holds(fmt: Format, scheme: str) -> None:
    dense, pair = (Point(fmt, scheme, 2048, 2048, rank, 1) for rank in (None, 256))
    files = layer_files([dense, pair])
    device = LocalDevice()
    peaks = [device.run(Job("memory", fmt, str(files[point])))["ran"]["peak_bytes"] for point in (dense, pair)]
    if None in peaks:
        pytest.skip("this kernel does not say what a process held")
    sizes = [files[point].stat().st_size for point in (dense, pair)]
    factor = (peaks[0] - peaks[1]) / (sizes[0] - sizes[1])
    assert factor == pytest.approx(RESIDENT_PER_BYTE[fmt, scheme], rel=0.4)
