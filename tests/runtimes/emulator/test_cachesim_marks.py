"""What stands between two marks: exact where the loop is known, the same with and without `start=mark`."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.runtimes.emulator.cache_model import Geometry
from tests.runtimes.emulator.guest_runs import FIELDS, Emulator, intervals

pytestmark = pytest.mark.system

Guest = Callable[[str], Path]


def test_a_known_loop_is_counted_exactly(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    """Four instructions and a read of a new line per step; the second walk of a length meets the caches warm."""
    caches = (Geometry(32768, 4, 64), Geometry(32768, 4, 64), Geometry(1 << 21, 16, 64))
    lines = emulator.count([guest("walk"), "1000", "3000", "3000", "5000", "5000"], tmp_path, caches=caches)
    assert [line.mark for line in lines] == ["0", "1", "2", "3", "4", "5", "end"]
    assert {line.thread for line in lines} == {0}
    _, long, again, longer, last = intervals(lines)[:5]
    assert again["instructions"] == long["instructions"]
    assert last["instructions"] - again["instructions"] == 4 * 2000
    assert last["accesses"] - again["accesses"] == 2000
    assert last["bytes"] - again["bytes"] == 8 * 2000
    assert last["l1d"] - again["l1d"] == 2000  # the walks are longer than l1d: every line is missed again
    assert long["l2"] == pytest.approx(2000, abs=3)  # those that the first walk did not bring
    assert again["l2"] == 0
    assert longer["l2"] == pytest.approx(2000, abs=3)


def test_start_at_a_mark_counts_what_full_simulation_counts(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    command = [guest("walk"), "20000", "20000", "40000", "40000"]
    full = emulator.count(command, tmp_path)
    late = emulator.count(command, tmp_path, "start=mark")
    assert [line.mark for line in full] == ["0", "1", "2", "3", "4", "end"]
    assert [line.mark for line in late] == ["1", "2", "3", "4", "end"]
    assert late[0]["instructions"] == pytest.approx(intervals(full)[0]["instructions"], rel=0.01)
    for one, other in zip(intervals(late)[:3], intervals(full)[1:4], strict=True):
        for name in FIELDS:
            assert one[name] == pytest.approx(other[name], rel=0.01, abs=2)


def test_start_at_a_mark_sees_threads_that_were_there_before(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    """Mark 1 starts; the other thread, older than it, makes mark 2."""
    lines = emulator.count([guest("gap")], tmp_path, "start=mark")
    assert [(line.mark, line.thread) for line in lines] == [("2", 2), ("3", 0), ("end", 0)]
    assert all(after["instructions"] > before["instructions"] > 0 for before, after in pairwise(lines))


def test_only_the_thread_that_marks_is_counted_where_asked(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    every = emulator.count([guest("gap")], tmp_path)
    own = emulator.count([guest("gap")], tmp_path, "threads=marking")
    assert [(line.mark, line.thread) for line in own] == [(line.mark, line.thread) for line in every]
    again = emulator.count([guest("gap")], tmp_path, "threads=marking")
    # The first thread only waits, asleep; the other two wait by turning, and no two runs of them are alike.
    for index in (0, 2):
        mine, then, of_all = (lines[index]["instructions"] for lines in (own, again, every))
        assert mine == pytest.approx(then, rel=0.01)
        assert mine < of_all


def test_a_guest_that_never_marks_counts_nothing(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    (line,) = emulator.count([guest("matvec"), "4", "4", "1"], tmp_path, "start=mark")
    assert line.mark == "end"
    assert set(line.totals) == {0}


def test_two_runs_agree(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    first, second = (emulator.count([guest("matvec"), "100", "700", "3"], tmp_path)[-1] for _ in range(2))
    for name in FIELDS:
        assert first[name] == pytest.approx(second[name], rel=0.01)


def test_a_thread_that_ended_leaves_no_gap_in_the_totals(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    lines = emulator.count([guest("gap")], tmp_path)
    assert [(line.mark, line.thread) for line in lines] == [("1", 0), ("2", 2), ("3", 0), ("end", 0)]
    totals = [line["instructions"] for line in lines]
    assert totals == sorted(totals)


def test_many_threads_count_as_the_same_work_in_few(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    """Together or one after another, and more of them than CPUs."""
    none = emulator.count([guest("threads"), "60", "1", "0"], tmp_path)[-1]
    together = emulator.count([guest("threads"), "60", "1", "2000"], tmp_path)[-1]
    once = emulator.count([guest("threads"), "1", "60", "0"], tmp_path)[-1]
    one_by_one = emulator.count([guest("threads"), "1", "60", "2000"], tmp_path)[-1]
    work = one_by_one["accesses"] - once["accesses"]
    assert work == pytest.approx(4 * 60 * 2000, rel=0.01)
    assert together["accesses"] - none["accesses"] == pytest.approx(work, rel=0.02)


def test_a_forked_process_writes_nothing(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    lines = emulator.count([guest("leave"), "fork"], tmp_path)
    assert [line.mark for line in lines] == ["1", "2", "end"]


def test_a_guest_that_becomes_another_program_writes_no_end(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    if not shutil.which("/bin/true"):
        pytest.skip("no /bin/true")
    assert [line.mark for line in emulator.count([guest("leave"), "exec"], tmp_path)] == ["1"]


def test_a_guest_that_is_killed_writes_no_end(emulator: Emulator, guest: Guest, tmp_path: Path) -> None:
    lines = emulator.count([guest("leave"), "abort"], tmp_path, code=-signal.SIGABRT)
    assert [line.mark for line in lines] == ["1"]
