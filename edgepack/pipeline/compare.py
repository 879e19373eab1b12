"""Rows of a comparison from packs and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepack.bench.results import BenchResult
from edgepack.bench.results_file import load_results
from edgepack.bench.summary import summarize_result
from edgepack.errors import PackError
from edgepack.pack import read_manifest
from edgepack.report.compare import CompareRow, compare_rows


def rows_of_result(result: BenchResult, manifest: Mapping[str, Any]) -> list[CompareRow]:
    """A row per measured file of one session."""
    return compare_rows(summarize_result(result), manifest)


def rows_of_packs(packs: Sequence[Path]) -> list[CompareRow]:
    """The rows of every session of every pack, in the order of the packs.

    Raises:
        PackError: not a pack, or never benched.
    """
    rows: list[CompareRow] = []
    for path in packs:
        manifest = read_manifest(path)
        results = load_results(path)
        if not results:
            raise PackError(f"{path}: no results to compare", hint=f"measure it first: edgepack bench {path}")
        for result in results:
            rows += rows_of_result(result, manifest)
    return rows
