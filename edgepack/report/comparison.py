"""Packs and their results side by side: what `bench` and `compare` say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgepack.benchmark.conditions import different_conditions, merge_results
from edgepack.benchmark.results import BenchResult, EmulatedResult
from edgepack.benchmark.results_file import load_emulated, load_results
from edgepack.benchmark.summary import summarize_result
from edgepack.errors import PackError
from edgepack.pack.facts import PackFacts, read_facts
from edgepack.pack.manifest import BUILD_AGAIN
from edgepack.report.compare import CompareRow, compare_rows, measured_table
from edgepack.report.devices import device_blocks, side_by_side
from edgepack.report.emulated import EmulatedRow, emulated_blocks, emulated_rows
from edgepack.report.latencies import latency_charts
from edgepack.report.layer_charts import count_bars
from edgepack.report.report import Report
from edgepack.report.tradeoffs import tradeoff_charts
from edgepack.report.unmeasured import UnmeasuredRow, unmeasured_rows, unmeasured_table
from edgepack.targets.file import load_targets
from edgepack.targets.target import Target

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Source:
    """What a pack says of itself, and the sessions with raw values that were measured of it."""

    facts: PackFacts
    results: tuple[BenchResult, ...] = ()


@dataclass(frozen=True)
class Compared:
    """All results of some packs: measured rows and emulated ones, and the files of those that have neither, each in the
    order of the packs, and what they are from."""

    rows: tuple[CompareRow, ...]
    emulated: tuple[EmulatedRow, ...]
    unmeasured: tuple[UnmeasuredRow, ...] = ()
    sources: tuple[Source, ...] = ()


def rows_of_result(result: BenchResult, facts: PackFacts) -> list[CompareRow]:
    """A row per measured file of one session."""
    return compare_rows(summarize_result(result), facts)


def rows_of_emulated(result: EmulatedResult, facts: PackFacts, target: Target | str) -> list[EmulatedRow]:
    """A row per counted file of one session; `target` gives the time bound its constants, or says why there is none."""
    return emulated_rows(result, facts, target)


def compare_results(results: Sequence[BenchResult], pack: Path) -> Compared:
    """The rows of sessions that were just run on one pack, each on its device.

    Raises:
        PackError: not a pack.
    """
    facts = read_facts(pack)
    rows = tuple(row for result in results for row in rows_of_result(result, facts))
    return Compared(rows, (), sources=(Source(facts, tuple(results)),))


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
        packs: folders.
        targets_file: more targets, whose constants a time bound may need.

    Raises:
        PackError: not a pack, without a model, or with a result that cannot be used.
        TargetsError: the targets file cannot be used.
    """
    rows: list[CompareRow] = []
    emulated: list[EmulatedRow] = []
    unmeasured: list[UnmeasuredRow] = []
    sources: list[Source] = []
    targets: dict[str, Target] = load_targets(targets_file) if targets_file is not None else {}
    for path in packs:
        facts = read_facts(path)
        measured, counted = load_results(path), load_emulated(path)
        if not measured and not counted:
            unmeasured += unmeasured_rows(path, facts)
        sources.append(Source(facts, tuple(_merged(measured))))
        for result in sources[-1].results:
            rows += rows_of_result(result, facts)
        for session in counted:
            targets = targets or load_targets()
            unknown = f"no target {session.target} here; --targets-file takes the file that describes it"
            emulated += rows_of_emulated(session, facts, targets.get(session.target, unknown))
    if not rows and not emulated and not unmeasured:
        raise PackError(f"{packs[0]}: no model files, and no results", hint=BUILD_AGAIN)
    return Compared(tuple(rows), tuple(emulated), tuple(unmeasured), tuple(sources))


def comparison_report(
    rows: Sequence[CompareRow],
    emulated: Sequence[EmulatedRow] = (),
    unmeasured: Sequence[UnmeasuredRow] = (),
    sources: Sequence[Source] = (),
) -> Report:
    """The measured rows, the devices side by side where there are several, the emulated rows, their layers, and files
    that were not measured.

    Where `sources` are given, charts of them as well. Each kind has its table only where it has rows. The document is
    `{"schema_version": 1, "rows": [...], "devices": {"tables": [...], "apart": [...]}, "emulated": [...],
    "unmeasured": [...]}`.
    """
    beside = side_by_side(rows)
    return Report(
        blocks=(
            *tradeoff_charts(rows, (*emulated, *unmeasured), [source.facts for source in sources]),
            *([measured_table(rows)] if rows or not (emulated or unmeasured) else []),
            *device_blocks(beside),
            *(chart for source in sources for result in source.results for chart in latency_charts(result)),
            *emulated_blocks(emulated),
            *count_bars(emulated),
            *([unmeasured_table(unmeasured)] if unmeasured else []),
        ),
        record={
            "schema_version": SCHEMA_VERSION,
            "rows": [asdict(row) for row in rows],
            "devices": asdict(beside),
            "emulated": [asdict(row) for row in emulated],
            "unmeasured": [asdict(row) for row in unmeasured],
        },
    )
