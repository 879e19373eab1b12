from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.emulator.counts import Counts, intervals, middle, per_inference, read_marks
from edgepack.errors import StableDeviceError


def _line(mark: object, *values: int) -> str:
    return " ".join(map(str, (mark, 0, *values)))


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "counters"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


# Every inference costs 100 instructions; a mark and the loop cost 7 more each time, which must cancel.
RUNS = [
    _line(1, 1000, 500, 4000, 10, 20, 30, 0, 0),
    _line(2, 1207, 603, 4824, 12, 26, 32, 0, 0),
    _line(3, 1614, 806, 6448, 16, 38, 36, 0, 0),
    _line("end", 9999, 0, 0, 0, 0, 0, 0, 0),
]
LABELS = [{"model": 0, "runs": 2}, {"model": 0, "runs": 4}]


def test_marks_and_loop_cancel_in_the_difference_of_run_counts(tmp_path: Path) -> None:
    found = intervals(read_marks(_file(tmp_path, *RUNS), 3), LABELS)
    [counts] = per_inference(found, 0)
    assert counts == Counts(100.0, 50.0, 400.0, {"L1i": 1.0, "L1d": 3.0, "L2": 1.0})
    assert counts.last_level == "L2"


def test_an_interval_without_a_label_is_left_out(tmp_path: Path) -> None:
    found = intervals(read_marks(_file(tmp_path, *RUNS), 3), [None, {"model": 3, "runs": 1}])
    assert [(model, runs, counts.instructions) for model, runs, counts in found] == [(3, 1, 407.0)]


def test_the_median_is_taken_event_by_event() -> None:
    rounds = [Counts(i, 10 - i, 5, {"L1d": m}) for i, m in ((1, 9), (2, 1), (3, 5))]
    assert middle(rounds) == Counts(2, 8, 5, {"L1d": 5})


def test_counters_that_break_off_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(StableDeviceError, match="break off"):
        read_marks(_file(tmp_path, *RUNS[:2]), 3)


@pytest.mark.parametrize(
    "line", ["", "1 0 3", _line(3, 1, 1, 1, 1, 1, 1, 0, 0), _line(1, -1, 1, 1, 1, 1, 1, 0, 0), "x"]
)
def test_a_foreign_line_is_an_error(tmp_path: Path, line: str) -> None:
    with pytest.raises(StableDeviceError, match="not as expected"):
        read_marks(_file(tmp_path, line, RUNS[-1]), 3)


def test_more_marks_than_the_runner_made_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(StableDeviceError, match="saw 3 marks, expected 2"):
        intervals(read_marks(_file(tmp_path, *RUNS), 3), LABELS[:1])
