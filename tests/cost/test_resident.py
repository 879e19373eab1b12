"""What a runtime holds per byte of the file, measured again for one scheme of each."""

from __future__ import annotations

import pytest

from edgepack.backends.onnx.schemes import INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.schemes import SCHEMES
from edgepack.backends.tflite import schemes as tflite
from edgepack.cost.layer_files import layer_files
from edgepack.cost.sizes import resident_bytes
from edgepack.devices.device import Job
from edgepack.devices.local import LocalDevice
from edgepack.model.point import linear_point
from edgepack.model.scheme import Scheme


def test_every_scheme_has_a_factor() -> None:
    assert resident_bytes(INT8_STATIC, 1000) == 3200
    every = [scheme for schemes in SCHEMES.values() for scheme in schemes]
    assert all(1 <= scheme.ram_per_byte <= 32 for scheme in every)


@pytest.mark.parametrize("scheme", [INT8_DYNAMIC, tflite.INT8_DYNAMIC], ids=lambda scheme: scheme.key)
def test_the_factor_is_what_a_fresh_process_holds(scheme: Scheme) -> None:
    dense, pair = (linear_point(scheme, 2048, 2048, rank, 1) for rank in (None, 256))
    files = layer_files([dense, pair])
    device = LocalDevice()
    peaks = [
        device.run(Job("memory", scheme.backend, str(files[point])))["ran"]["peak_bytes"] for point in (dense, pair)
    ]
    if None in peaks:
        pytest.skip("this kernel does not say what a process held")
    sizes = [files[point].stat().st_size for point in (dense, pair)]
    factor = (peaks[0] - peaks[1]) / (sizes[0] - sizes[1])
    assert factor == pytest.approx(scheme.ram_per_byte, rel=0.4)
