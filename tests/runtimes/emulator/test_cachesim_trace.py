"""The plugin under QEMU: the plain model, fed with what it recorded, comes to its counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.runtimes.emulator.cache_model import Geometry, Hierarchy
from tests.runtimes.emulator.guest_runs import RPI4, Emulator, Line, cache_arguments, read_lines

pytestmark = pytest.mark.system
TINY = (Geometry(1024, 2, 32), Geometry(960, 3, 64), Geometry(4096, 4, 64), Geometry(12288, 6, 128, shared=True))
CASES = {
    "one thread": ("matvec", ("24", "100", "2"), TINY),
    "one thread, real caches": ("matvec", ("40", "500", "1"), RPI4),
    "two threads": ("threads", ("2", "1", "3000"), TINY),
    "two threads, real caches": ("threads", ("2", "1", "3000"), RPI4),
}


def run(
    emulator: Emulator, guest: Sequence[str | Path], folder: Path, caches: Sequence[Geometry]
) -> tuple[list[Line], list[str]]:
    trace = folder / "trace.txt"
    lines = emulator.count(guest, folder, f"trace={trace}", caches=caches)
    return lines, trace.read_text().splitlines()


@pytest.mark.parametrize("case", list(CASES))
def test_the_counters_follow_from_the_trace(
    emulator: Emulator, guest: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    name, arguments, caches = CASES[case]
    lines, trace = run(emulator, [guest(name), *arguments], tmp_path, caches)
    hierarchy = Hierarchy(caches)
    hierarchy.feed(trace)
    assert hierarchy.totals.line() == lines[-1].totals
    assert lines[-1].mark == "end"
    kinds = {tuple(record.split()[:2]) for record in trace}
    threads = 1 if name == "matvec" else 3
    assert kinds == {(str(thread), kind) for thread in range(threads) for kind in "irw"}


def test_threads_do_not_tear_the_cache_that_they_share(
    emulator: Emulator, guest: Callable[[str], Path], tmp_path: Path
) -> None:
    """A shared level that holds everything misses every line once, however its threads take turns.

    It is a single set, so that each look into it takes long: without the lock they would cross.
    """
    caches = (Geometry(64, 1, 64), Geometry(64, 1, 64), Geometry(1 << 18, 1 << 12, 64, shared=True))
    _, trace = run(emulator, [guest("threads"), "4", "1", "2000"], tmp_path, caches)
    hierarchy = Hierarchy(caches)
    hierarchy.feed(trace)
    untraced = emulator.count([guest("threads"), "4", "1", "100000"], tmp_path, caches=caches)[-1]
    assert untraced["l1d"] > 4 * 100000
    assert untraced["l2"] == pytest.approx(hierarchy.totals.misses[2], abs=8)


def test_a_trace_changes_no_counter(emulator: Emulator, guest: Callable[[str], Path], tmp_path: Path) -> None:
    command = [guest("matvec"), "24", "100", "2"]
    traced, _ = run(emulator, command, tmp_path, TINY)
    plain = emulator.count(command, tmp_path, caches=TINY)
    assert traced[-1]["instructions"] == pytest.approx(plain[-1]["instructions"], rel=0.01)
    assert traced[-1]["l1d"] == pytest.approx(plain[-1]["l1d"], rel=0.01)


def test_a_fork_leaves_the_trace_alone(emulator: Emulator, guest: Callable[[str], Path], tmp_path: Path) -> None:
    lines, trace = run(emulator, [guest("leave"), "fork"], tmp_path, TINY)
    hierarchy = Hierarchy(TINY)
    hierarchy.feed(trace)
    assert hierarchy.totals.line() == lines[-1].totals


def test_a_full_disk_under_the_trace_is_an_error(
    emulator: Emulator, guest: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "counts.txt"
    command = [guest("matvec"), "24", "100", "1"]
    done = emulator.start(command, f"out={out}", "trace=/dev/full", *cache_arguments(TINY))
    assert done.returncode == 1
    assert "cachesim: cannot write the trace: No space left on device" in done.stderr
    assert read_lines(out) == []
