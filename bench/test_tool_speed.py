"""How fast the tool itself is, and how much memory a build takes. Times are noted; only memory is held to its limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure_tool
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from watched import edgepack_command, fastest_s

from edgepack.units import size


def test_help(benchmark: BenchmarkFixture, note: Callable[[str], None]) -> None:
    command = [edgepack_command(), "--help"]
    benchmark.extra_info["goal_s"] = measure_tool.HELP_GOAL_S
    benchmark.pedantic(fastest_s, (command,), {"times": 1}, rounds=10)
    note(f"tool edgepack --help: {measure_tool.help_s():.3f} s, goal {measure_tool.HELP_GOAL_S} s")


@pytest.mark.parametrize("case", list(measure_tool.CASES))
def test_command(benchmark: BenchmarkFixture, note: Callable[[str], None], case: str) -> None:
    row: dict[str, Any] = benchmark.pedantic(measure_tool.CASES[case], rounds=1)
    benchmark.extra_info.update(row)
    goal = "" if row["goal_s"] is None else f", goal {row['goal_s']:g} s"
    limit = row["memory_limit_bytes"]
    within = "" if limit is None else f", goal {size(limit)}"
    note(
        f"tool {row['command']}: {row['seconds']:.1f} s{goal}; peak {size(row['peak_bytes'])}{within}"
        f" (largest process {size(row['largest_peak_bytes'])})"
    )
