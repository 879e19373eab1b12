"""Rows of a comparison from packs and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.bench.alike import different_conditions, merge_results
from edgepack.bench.emulated_results import EmulatedResult
from edgepack.bench.results import BenchResult
from edgepack.bench.results_file import load_emulated, load_results
from edgepack.bench.summary import summarize_result
from edgepack.errors import PackError
from edgepack.pack import read_manifest
from edgepack.report.compare import CompareRow, compare_rows
from edgepack.report.emulated import EmulatedRow, emulated_rows
from edgepack.targets import Target, load_targets


@dataclass(frozen=True)
class Compared:
    """All results of some packs: measured rows and emulated ones, each in the order of the packs."""

    rows: tuple[CompareRow, ...]
    emulated: tuple[EmulatedRow, ...]


def rows_of_result(result: BenchResult, manifest: Mapping[str, Any]) -> list[CompareRow]:
    """A row per measured file of one session."""
    return compare_rows(summarize_result(result), manifest)


def rows_of_emulated(result: EmulatedResult, manifest: Mapping[str, Any], target: Target | str) -> list[EmulatedRow]:
    """A row per counted file of one session; `target` gives the time bound its constants, or says why there is none."""
    return emulated_rows(result, manifest, target)


def compare_results(results: Sequence[BenchResult], pack: Path) -> Compared:
    """The rows of sessions that were just run on one pack, each on its device.

    Raises:
        PackError: not a pack.
    """
    manifest = read_manifest(pack)
    return Compared(tuple(row for result in results for row in rows_of_result(result, manifest)), ())


def _merged(results: Sequence[BenchResult]) -> list[BenchResult]:
    """Sessions of one pack that were taken under the very same conditions become one; unlike ones stay apart."""
    groups: list[list[BenchResult]] = []
    for result in results:
        group = next((group for group in groups if not different_conditions(group[0], result)), None)
        if group is None:
            groups.append([result])
        elif result not in group:
            group.append(result)
    return [merge_results(group) for group in groups]


def compare_packs(packs: Sequence[Path], targets_file: Path | None = None) -> Compared:
    """The rows of every session of every pack; repeated sessions of a pack under like conditions count as one.

    Args:
        packs: folders, each with at least one result, measured or emulated.
        targets_file: more targets, whose constants a time bound may need.

    Raises:
        PackError: not a pack, never benched, or with a result that cannot be used.
        TargetsError: the targets file cannot be used.
    """
    rows: list[CompareRow] = []
    emulated: list[EmulatedRow] = []
    targets: dict[str, Target] = load_targets(targets_file) if targets_file is not None else {}
    for path in packs:
        manifest = read_manifest(path)
        measured, counted = load_results(path), load_emulated(path)
        if not measured and not counted:
            raise PackError(f"{path}: no results to compare", hint=f"measure it first: edgepack bench {path}")
        for result in _merged(measured):
            rows += rows_of_result(result, manifest)
        for session in counted:
            targets = targets or load_targets()
            unknown = f"no target {session.target} here; --targets-file takes the file that describes it"
            emulated += rows_of_emulated(session, manifest, targets.get(session.target, unknown))
    return Compared(tuple(rows), tuple(emulated))
