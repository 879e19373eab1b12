"""Charts of what files score against what they take: measured ones, dense baselines, plans that were tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgepack.metrics.drop import Drop
from edgepack.model.scheme import Format
from edgepack.pack.facts import PackFacts
from edgepack.pack.manifest import DropEntry, Manifest
from edgepack.pipeline.explore import ExploredRow
from edgepack.report.compare import CompareRow, device_key, device_names
from edgepack.report.report import Axis, Chart, Mark, Series, Style
from edgepack.report.scores import short_name, shown_score

SIZE = Axis("size_bytes", "bytes", "size of the file", log=True)
LATENCY = Axis("latency_p50_s", "seconds", "latency, p50", log=True)
PREDICTED = Axis("latency_s", "seconds", "predicted latency of the layers", log=True)
VARIANTS = {"edgepack": "packed", "dense-int8": "dense int8", "dense-fp32": "dense fp32"}
HOW = "the dashed line is the Pareto front: no other mark is better in both"
VALIDATED = "tried plans stand as far below dense fp32 as they did on the validation samples"


class Scored(Protocol):
    """A model file of a comparison, as `CompareRow` has it."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def target(self) -> str: ...  # noqa: D102
    @property
    def format(self) -> Format: ...  # noqa: D102
    @property
    def variant(self) -> str: ...  # noqa: D102
    @property
    def size_bytes(self) -> int: ...  # noqa: D102
    @property
    def metric_name(self) -> str | None: ...  # noqa: D102
    @property
    def metric(self) -> float | None: ...  # noqa: D102


def tradeoff_charts(
    rows: Sequence[CompareRow], others: Sequence[Scored], packs: Sequence[PackFacts]
) -> Iterator[Chart]:
    """For every model and metric: the score against latency on each device, and against size.

    Args:
        rows: measured.
        others: files that have a size alone.
        packs: where the files are from: what plans were tried, and how sure scores are.
    """
    bounds = _Bounds(packs)
    names = device_names(rows)
    every: dict[tuple[str, str], list[Scored]] = {}
    for row in (*rows, *others):
        if row.metric_name is not None and row.metric is not None:
            every.setdefault((row.model, row.metric_name), []).append(row)
    for (model, metric), scored in every.items():
        measured = [row for row in rows if (row.model, row.metric_name) == (model, metric)]
        for device in dict.fromkeys((device_key(row), row.threads) for row in measured):
            own = [row for row in measured if (device_key(row), row.threads) == device and row.metric is not None]
            marks = [(row.variant, bounds.mark(row, row.latency_p50_s, _interval(row))) for row in own]
            title = f"{model}: {metric} against latency on {names[device[0]]}"
            yield _chart(title, LATENCY, metric, marks)
        marks = [(row.variant, bounds.mark(row, float(row.size_bytes))) for row in scored]
        own_packs = [pack for pack in packs if (pack.model_name, pack.metric) == (model, metric)]
        tried = tuple(mark for pack in own_packs for mark in _trials(pack, metric))
        yield _chart(f"{model}: {metric} against size", SIZE, metric, marks, tried)


def _trials(pack: PackFacts, metric: str) -> Iterator[Mark]:
    for trial in pack.trials:
        dense = pack.files.get(f"baseline/fp32.{trial.format}")
        if dense is not None and dense.metric is not None:
            score = shown_score(metric, dense.metric - trial.drop) or 0.0
            yield Mark(trial.size_bytes, score, f"{trial.format} {trial.scheme} for {pack.target}")


def _interval(row: CompareRow) -> tuple[float, float] | None:
    if row.latency_low_s is None or row.latency_high_s is None:
        return None
    return row.latency_low_s, row.latency_high_s


@dataclass(frozen=True)
class _Bounds:
    """How far below its score a file may be, by the bounds on drops that its pack states."""

    packs: Sequence[PackFacts]

    def mark(self, row: Scored, x: float, x_range: tuple[float, float] | None = None) -> Mark:
        """Of a file that has a score."""
        score = shown_score(row.metric_name, row.metric) or 0.0
        name = f"{row.model} for {row.target}, {row.format}, {VARIANTS.get(row.variant, row.variant)}"
        return Mark(x, score, name, x_range, self._range(row, score))

    def _range(self, row: Scored, score: float) -> tuple[float, float] | None:
        for pack in self.packs:
            if (pack.model_name, pack.target) == (row.model, row.target):
                file = pack.file(row.variant, row.format)
                least = shown_score(row.metric_name, file.least)
                if file.metric == row.metric and least is not None:
                    return min(least, score), max(least, score)
        return None


def _chart(title: str, x: Axis, metric: str, marks: Sequence[tuple[str, Mark]], tried: tuple[Mark, ...] = ()) -> Chart:
    """Each mark with its variant, and those of the plans that were tried."""
    series = [
        Series(name, tuple(mark for own, mark in marks if own == variant), _style(variant))
        for variant, name in VARIANTS.items()
    ]
    front = Series("Pareto front", pareto_front((mark for _, mark in marks), metric), "steps")
    note = f"{HOW}; {VALIDATED}" if tried else HOW
    every = (*series, front, Series("tried plans", tried, "small"))
    return Chart(title, x, _score(metric), tuple(one for one in every if one.marks), note=note)


def _style(variant: str) -> Style:
    return "fixed" if variant.startswith("dense-") else "point"


def _score(metric: str) -> Axis:
    return Axis("metric", "score", short_name(metric))


def _shown(drop: Drop | DropEntry) -> float:
    return shown_score(drop.metric, drop.emitted) or 0.0


def pareto_front(marks: Iterable[Mark], metric: str) -> tuple[Mark, ...]:
    """Those that no other beats in both: least x, best score; ascending."""
    sign = -1.0 if shown_score(metric, 1.0) == -1.0 else 1.0
    front: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, -sign * mark.y)):
        if not front or sign * mark.y > sign * front[-1].y:
            front.append(Mark(mark.x, mark.y, mark.name))
    return tuple(front)


def plan_charts(manifest: Manifest) -> Iterator[Chart]:
    """The plans that a build tried, for each format, and the one that it wrote."""
    metric = manifest.metric.name
    for fmt in dict.fromkeys(trial.format for trial in manifest.trials):
        trials = [trial for trial in manifest.trials if trial.format == fmt]
        written = manifest.files.get(f"model.{fmt}")
        of_size = [Mark(trial.size_bytes, _shown(trial.drop), _plan(trial.scheme, trial.ranks)) for trial in trials]
        of_time = [
            Mark(trial.predicted_latency_s, _shown(trial.drop), _plan(trial.scheme, trial.ranks)) for trial in trials
        ]
        chosen: tuple[Mark, ...] = ()
        if written is not None and written.validation is not None:
            chosen = (Mark(written.size_bytes, _shown(written.validation), f"model.{fmt}"),)
        yield _plans(f"plans tried for model.{fmt}: {metric} against size", SIZE, metric, (of_size, chosen))
        yield _plans(f"plans tried for model.{fmt}: {metric} against latency", PREDICTED, metric, (of_time, ()))


def explored_charts(rows: Sequence[ExploredRow]) -> Iterator[Chart]:
    """The plans that were explored, for each format: by latency and by size, the front in view."""
    axes: tuple[tuple[Axis, Callable[[ExploredRow], float], str], ...] = (
        (PREDICTED, lambda row: row.latency_s, "latency"),
        (SIZE, lambda row: float(row.size_bytes), "size"),
    )
    for fmt in dict.fromkeys(row.format for row in rows):
        own = [row for row in rows if row.format == fmt]
        for axis, get, name in axes:
            marks = [
                (row.on_front, Mark(get(row), _shown(row.drop), f"plan {row.number}: {_plan(row.scheme, row.ranks)}"))
                for row in own
            ]
            sides = [mark for front, mark in marks if not front], tuple(mark for front, mark in marks if front)
            metric = own[0].drop.metric
            yield _plans(f"{fmt}: {metric} against {name}", axis, metric, sides, "on the front of drop, latency, size")


def _plans(
    title: str, x: Axis, metric: str, marks: tuple[Sequence[Mark], tuple[Mark, ...]], chosen: str = "written"
) -> Chart:
    tried, best = marks
    front = Series("Pareto front", pareto_front((*tried, *best), metric), "steps")
    every = (Series(chosen, best, "point"), Series("tried plans", tuple(tried), "small"), front)
    return Chart(title, x, _score(metric), tuple(one for one in every if one.marks), note=HOW)


def _plan(scheme: str, ranks: object) -> str:
    values = sorted(ranks.values()) if isinstance(ranks, dict) else []
    return f"{scheme}, ranks {values[0]}–{values[-1]}" if values else scheme
