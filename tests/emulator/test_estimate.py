from __future__ import annotations

import pytest

from edgepack.emulator.counts import Counts
from edgepack.emulator.estimate import TimeBound, time_bound
from edgepack.targets.file import get_target
from edgepack.targets.target import HOST

COMPUTE = Counts(3e6, 1e6, 8e6, {"L1i": 0, "L1d": 1000, "L2": 0})
MEMORY = Counts(3e3, 1e3, 8e3, {"L1i": 0, "L1d": 100_000, "L2": 100_000})


def test_code_that_computes_is_bound_by_the_core() -> None:
    bound = time_bound(COMPUTE, get_target("rpi4"))
    assert isinstance(bound, TimeBound)
    assert bound.low_s == pytest.approx(3e6 / (3 * 1.5e9))
    assert bound.high_s == pytest.approx(3e6 / (0.8 * 1.5e9))


def test_code_that_reads_is_bound_by_memory() -> None:
    bound = time_bound(MEMORY, get_target("rpi4"))
    assert isinstance(bound, TimeBound)
    assert bound.low_s == pytest.approx(6.4e6 / 4.4e9)
    assert bound.high_s == pytest.approx(6.4e6 / 3.7e9 + 3e3 / (0.8 * 1.5e9))


def test_threads_share_the_instructions_and_not_the_memory() -> None:
    one, four = (time_bound(COMPUTE, get_target("rpi5"), threads) for threads in (1, 4))
    assert isinstance(one, TimeBound)
    assert isinstance(four, TimeBound)
    assert four.low_s == pytest.approx(one.low_s / 4)
    memory = time_bound(Counts(0, 0, 0, {"L3": 1000}), get_target("rpi5"), 4)
    assert isinstance(memory, TimeBound)
    assert memory.low_s == pytest.approx(64_000 / 10.6e9)


def test_the_assumptions_name_every_constant() -> None:
    bound = time_bound(COMPUTE, get_target("rpi4"))
    assert isinstance(bound, TimeBound)
    text = " ".join(bound.assumptions)
    for part in ("cortex-a72", "1500 MHz", "0.8 to 3 instructions per cycle", "3.7 to 4.4 GB/s", "no prefetcher"):
        assert part in text


def test_without_constants_there_is_no_bound() -> None:
    found = time_bound(COMPUTE, get_target(HOST))
    assert isinstance(found, str)
    assert "instructions per cycle" in found
