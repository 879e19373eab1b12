"""What `edgepack build` says: the files of a pack and its layers, and of `--explore` the plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgepack.metrics.drop import Drop
from edgepack.model.structure import Structure
from edgepack.pack.folder import file_format
from edgepack.pack.manifest import (
    CrossValidationEntry,
    DropEntry,
    File,
    FileEntry,
    FoldsRow,
    LayerEntry,
    Manifest,
    PackedFile,
)
from edgepack.pipeline.explore import ExploredRow
from edgepack.report.report import Block, Column, Field, Figure, Line, Paragraph, Report, Table, hidden, make_table
from edgepack.report.scores import score_header, score_notes, short_name, shown_score
from edgepack.report.tradeoffs import explored_charts, plan_charts
from edgepack.units import NONE


def build_report(out: Path, manifest: Manifest, *, reasons: bool = False) -> Report:
    """The warnings, the files with their sizes and metric, what became of the layers, and the result once more.

    Args:
        out: the pack folder, or the one file that was kept of it.
        manifest: of the pack.
        reasons: whether people get a row per layer, with why it is so; data always have them.
    """
    record = {("pack" if file_format(out) is None else "file"): str(out), "manifest": manifest.record()}
    manifest, files = _kept(out, manifest)
    return Report(
        title=(f"{out}: {manifest.model.name} for {manifest.target.name}, metric: {_metric(manifest)}",),
        blocks=(
            make_table(_files(manifest), [_File(name, manifest) for name in files], name="files"),
            *(Paragraph(note) for note in score_notes([(manifest.model.name, manifest.metric.name)])),
            *_judged(manifest),
            *_validated(manifest.cross_validation),
            *_distilled(manifest),
            *_corners(manifest),
            *_plans(manifest, reasons=reasons),
            *_results(out, manifest, reasons=reasons),
            *plan_charts(manifest),
        ),
        warnings=manifest.warnings,
        record=record,
    )


def _kept(out: Path, manifest: Manifest) -> tuple[Manifest, Sequence[str]]:
    """The manifest with the model files that are there, under the names that they have now; and all names to show."""
    fmt = file_format(out)
    if fmt is None:
        return manifest, sorted(manifest.files, reverse=True)
    files: dict[str, File] = {name: one for name, one in manifest.files.items() if not isinstance(one, PackedFile)}
    files[out.name] = manifest.packed(fmt)
    return replace(manifest, files=files), [out.name]


def packed_files(manifest: Manifest) -> dict[str, PackedFile]:
    """The model files of a pack that have layers, by name."""
    return {name: entry for name, entry in sorted(manifest.files.items()) if isinstance(entry, PackedFile)}


def _metric(manifest: Manifest) -> str:
    metric = manifest.metric
    if not metric.validated:
        return "none, since there are no data"
    unlabelled = metric.name == "agreement" and not manifest.data.labelled
    return f"{metric.name} with the original model (no labels)" if unlabelled else metric.name


@dataclass(frozen=True)
class _File:
    """One file and the pack that it is in."""

    name: str
    manifest: Manifest

    @property
    def entry(self) -> FileEntry:
        return self.manifest.files[self.name]

    def baseline(self, precision: str) -> FileEntry | None:
        return self.manifest.baseline(precision, self.entry.format)

    def shrink(self, precision: str) -> float | None:
        """Size of a baseline over its own; None for that baseline itself."""
        other = self.baseline(precision)
        return None if other is None or other is self.entry else other.size_bytes / self.entry.size_bytes

    @property
    def shown(self) -> float | None:
        """The score as people know the metric."""
        return shown_score(self.manifest.metric.name, self.entry.metric)

    @property
    def drop(self) -> float | None:
        """The estimate, or what the test says."""
        if self.entry.scored_on == "test":
            fp32 = self.baseline("fp32")
            if fp32 is None or fp32.metric is None or self.entry.metric is None:
                return None
            return fp32.metric - self.entry.metric
        return None if self.stated is None else self.stated.drop

    @property
    def stated(self) -> DropEntry | None:
        return self.entry.stated


_FILES: tuple[Field[_File], ...] = (
    Field(Column("file", "file"), lambda file: file.name),
    Field(Column("scheme", "scheme"), lambda file: file.entry.scheme),
    Field(Column("size_bytes", "size", "bytes"), lambda file: file.entry.size_bytes),
    Field(
        Column("archive_bytes", "on the wire", "bytes", optional=True),
        lambda file: file.entry.archive_bytes if isinstance(file.entry, PackedFile) else None,
    ),
    Field(Column("fp32_bytes_ratio", "vs fp32", "times"), lambda file: file.shrink("fp32")),
    Field(Column("int8_bytes_ratio", "vs int8", "times"), lambda file: file.shrink("int8")),
    Field(Column("metric", "", "score", optional=True), lambda file: file.shown),
    Field(Column("drop", "drop", "change", optional=True), lambda file: file.drop),
    Field(
        Column("drop_bound", "at most", "change", optional=True),
        lambda file: file.stated.bound if file.stated is not None and file.stated.samples else None,
    ),
    Field(Column("scored_on", "scored on", optional=True), lambda file: file.entry.scored_on),
)


def _files(manifest: Manifest) -> tuple[Field[_File], ...]:
    """The scores under the metric's name; on what they are is a column where that differs."""
    one_part = len({entry.scored_on for entry in manifest.files.values()}) == 1
    changed: dict[str, dict[str, Any]] = {
        "metric": {"header": score_header([manifest.metric.name])},
        "scored_on": {"only": "data" if one_part else None},
    }
    return tuple(replace(each, column=replace(each.column, **changed.get(each.column.key, {}))) for each in _FILES)


POINT_ONLY = (
    "drop: the difference of two scores of the recipe's own evaluate, which the plans were chosen by; one number a "
    "file tells no interval"
)


def _judged(manifest: Manifest) -> Iterator[Block]:
    """How the outputs were judged, on how many samples, and how sure that is."""
    drops = [entry.stated for entry in packed_files(manifest).values()]
    stated = next((drop for drop in drops if drop is not None), None)
    if stated is None:
        return
    if not stated.samples:
        yield Paragraph((f"{manifest.metric.name}, since {manifest.metric.why}\n{POINT_ONLY}",))
        return
    judges = manifest.metric.outputs
    several = len(judges) > 1
    said = "; ".join(f"{f'output {one.output}: ' if several else ''}{one.metric}, since {one.why}" for one in judges)
    kept = "kept back from every choice" if manifest.data.confirmation_samples else "that the plans were chosen on"
    parts = {entry.scored_on for entry in manifest.files.values()}
    on = f"on the {parts.pop()} samples: " if len(parts) == 1 else ""
    looks = " with all plans that were looked at" if manifest.data.confirmation_samples else ""
    sure = f"at most: {stated.confidence:.0%} sure{looks}, one-sided, on {stated.samples} samples {kept}"
    yield Paragraph((f"{on}{said}\n{sure}",))


def _validated(found: CrossValidationEntry | None) -> Iterator[Block]:
    """How the rank was chosen: a row per share; those that were given up early have no mean."""
    if found is None:
        return
    kept = Figure(found.percent, "percent")
    yield Paragraph((f"rank by {found.folds} folds of {found.samples} samples: ", kept, " of each layer's weights"))
    fields: tuple[Field[FoldsRow], ...] = (
        Field(Column("percent", "weights kept", "percent")),
        Field(Column("mean", "accuracy", "score")),
        Field(Column("standard_error", "± error", "score")),
        Field(Column("note"), lambda row: _fold_notes(row, found)),
    )
    yield make_table(fields, found.table, name="cross-validation")


def _fold_notes(row: FoldsRow, found: CrossValidationEntry) -> str:
    notes = [name for name, own in (("chosen", found.percent), ("best", found.best)) if row.percent == own]
    if row.mean is None:
        notes.append(f"given up after {len(row.scores)} of {found.folds} folds")
    return ", ".join(notes)


def _distilled(manifest: Manifest) -> Iterator[Block]:
    for name, entry in packed_files(manifest).items():
        found = entry.distillation
        if found is not None:
            before, after = (
                Figure(loss, "fine loss") for loss in (found.held_out_loss.before, found.held_out_loss.after)
            )
            rest = f"; not trained: {', '.join(found.not_trained)}" if found.not_trained else ""
            steps = f"{found.steps} steps" + (f" on {found.samples} samples" if found.samples else "")
            if found.kept:
                yield Paragraph((f"{name}: distilled in {steps}, held-out loss ", before, " → ", after, rest))
            else:
                said = ": training made the file no better, so it is as it was without"
                yield Paragraph((f"{name}: not distilled in {steps}, held-out loss ", before, " → ", after, said))


def _corners(manifest: Manifest) -> Iterator[Block]:
    """What other aims would have come to: a line for each."""
    for name, entry in packed_files(manifest).items():
        if not entry.corners:
            continue
        own, *others = entry.corners
        for corner in others:
            size = Figure(corner.size_bytes, "bytes"), " instead of ", Figure(own.size_bytes, "bytes")
            latency = Figure(corner.latency_s, "seconds"), " instead of ", Figure(own.latency_s, "seconds")
            head = f"--optimize {corner.optimize} would make {name} "
            yield Paragraph((head, *size, " and ", *latency, " (predicted, at an equal loss)"))


def planned(entry: PackedFile) -> tuple[LayerEntry, ...]:
    """The layers of a file, and its embedding tables where these were chosen for."""
    return (*entry.layers, *(entry.tables or ()))


def _plans(manifest: Manifest, *, reasons: bool) -> Iterator[Block]:
    """One table of layers where all formats have the same plan, else one for each, under its file's name; or for
    people a line for each."""
    plans = {name: own for name, entry in packed_files(manifest).items() if (own := planned(entry))}
    if not plans:
        return
    first = next(iter(plans.values()))
    if all(plan == first for plan in plans.values()):
        plans = {", ".join(plans): first}
    for name, plan in plans.items():
        table = layer_table(plan, name)
        if reasons:
            yield Paragraph(f"layers of {name}")
            yield table
        else:
            yield replace(table, only="data")
            yield Paragraph(_counted(name, plan))


def _counted(name: str, layers: Sequence[LayerEntry]) -> str:
    """How many layers have become what."""
    ranks = sorted(layer.rank for layer in layers if layer.rank is not None)
    low_rank = f"{len(ranks)} of {len(layers)} {'layer' if len(layers) == 1 else 'layers'} low-rank"
    low_rank += f" ({_ends(ranks)})" if ranks else ""
    by_scheme = Counter(_written(layer) for layer in layers)
    schemes = ", ".join(f"{count} in {scheme}" for scheme, count in by_scheme.most_common())
    return f"{name}: {low_rank}; {schemes}"


def _ends(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}"


def _results(out: Path, manifest: Manifest, *, reasons: bool) -> Iterator[Block]:
    """Where the reasons are, and what came of the build: a line for each model file."""
    alone = file_format(out) is not None
    if not reasons and any(map(planned, packed_files(manifest).values())):
        where = "-v shows" if alone else f"-v, or edgepack inspect {out}, shows"
        yield Paragraph(f"{where} each layer with its rank and its reason")
    for name in packed_files(manifest):
        yield Paragraph(_result(out if alone else out / name, _File(name, manifest)))


def _times(ratio: float) -> tuple[str | Figure, ...]:
    """A ratio of sizes, to stand before what they are compared with."""
    if round(ratio, 1) == 1.0:
        return ("as large as",)
    larger = ratio < 1
    return (Figure(1 / ratio if larger else ratio, "times"), f" {'larger' if larger else 'smaller'} than")


def _result(path: Path, file: _File) -> Line:
    """One line: the file, its bytes and what these are against dense int8, its score and its drop."""
    said: list[str | Figure] = [f"{path}: ", Figure(file.entry.size_bytes, "bytes")]
    against = next((precision for precision in ("int8", "fp32") if file.shrink(precision) is not None), None)
    if against is not None:
        said += [", ", *_times(file.shrink(against) or 1.0), f" dense {against}"]
    if file.shown is not None and file.drop is not None:
        said += [f", {short_name(file.manifest.metric.name)} ", Figure(file.shown, "score")]
        said += [", drop ", Figure(file.drop, "change")]
        if file.stated is not None and file.stated.samples:
            said += [" (at most ", Figure(file.stated.bound, "change"), ")"]
    return tuple(said)


SHORT = ("layer", "out×in", "scheme", "rank", "weights", "why")
LONG = ("layer", "out×in", "scheme", "rank", "break-even", "weights", "size", "latency", "loss", "lost", "why")


def layer_table(layers: Sequence[LayerEntry], file: str, headers: Sequence[str] = SHORT, *, title: Line = "") -> Table:
    """One row per layer.

    Args:
        layers: of a manifest's entry for a model file.
        file: its name, or those of all that have these layers.
        headers: `SHORT` or `LONG`, for people.
        title: the line above it.
    """
    named: Field[LayerEntry] = Field(hidden("file"), lambda _: file)
    return make_table((named, *(_for(headers, each) for each in _LAYER)), layers, title=title, name="layers")


def _for(headers: Sequence[str], each: Field[LayerEntry]) -> Field[LayerEntry]:
    """The same where its header is wanted, else for data alone."""
    return each if each.column.header in headers else replace(each, column=replace(each.column, only="data"))


def _predicted(key: str) -> Callable[[LayerEntry], object]:
    return lambda layer: None if layer.predicted is None else getattr(layer.predicted, key)


def _written(layer: LayerEntry) -> str:
    """Its scheme for people: with the method that it is by, and whether a pair stands beside the matrix."""
    scheme = layer.scheme or NONE
    shown = f"{scheme} + correction" if layer.structure == "low-rank-correction" else scheme
    return shown if layer.alternative is None else f"{layer.alternative.method} {shown}"


def _rank(layer: LayerEntry) -> int | str | None:
    if layer.structure == "constexpr":
        return None
    if layer.rank is None:
        return "dense"
    structure = Structure(layer.structure, layer.ranks or (layer.rank,))
    return structure.shown if structure.is_shared or not structure.of_a_matrix else layer.rank


def _lost(layer: LayerEntry) -> tuple[float | None, float, float | None] | None:
    """To truncation, rounding, and what flows between the two; of a dense layer to rounding alone."""
    shares = layer.lost_shares
    if shares is None:
        return None
    pair = layer.rank is not None
    return (shares.truncation if pair else None, shares.rounding, shares.latent if pair else None)


_LAYER: tuple[Field[LayerEntry], ...] = (
    Field(Column("layer", "layer")),
    Field(
        Column("shape", "out×in", "shape", parts=("out_features", "in_features")),
        lambda layer: (layer.out_features, layer.in_features),
    ),
    Field(Column("written_as", "scheme"), _written),
    *(Field[LayerEntry](hidden(key)) for key in ("structure", "scheme")),
    Field(hidden("method"), lambda layer: None if layer.alternative is None else layer.alternative.method),
    Field(Column("rank", "rank", "integer"), _rank),
    Field(Column("break_even_rank", "break-even", "integer")),
    Field(hidden("weight_parameters", "integer")),
    Field(
        Column("weights_share", "weights", "share"),
        lambda layer: layer.weight_parameters / (layer.out_features * layer.in_features),
    ),
    Field(Column("size_bytes", "size", "bytes"), _predicted("size_bytes")),
    Field(Column("latency_s", "latency", "seconds"), _predicted("latency_s")),
    Field(Column("loss", "loss", "loss"), _predicted("loss")),
    Field(Column("lost", "lost", "lost", parts=("lost_truncation", "lost_rounding", "lost_latent")), _lost),
    Field(Column("reason", "why")),
)


def _explored_drop(drop: Drop) -> str:
    if not drop.samples:
        return f"{POINT_ONLY}."
    return (
        f"drop: of {drop.metric} on {drop.samples} validation samples; at most: with {drop.confidence:.0%} confidence, "
        "one-sided."
    )


def explored_report(rows: Sequence[ExploredRow], warnings: Sequence[str] = ()) -> Report:
    """One line per plan, the front marked, how to build one of them, and the warnings."""
    sources = {row.format: row.source for row in rows}
    notes = (
        "* on the Pareto front: no other plan of its format is as good in drop, latency and size, and better in one.",
        _explored_drop(rows[0].drop),
        *(f"latency: linear layers of {fmt}, predicted by the {source}." for fmt, source in sources.items()),
        "Build one with --pick NUMBER, or one per format with --pick NUMBER,NUMBER, and the same other options.",
    )
    return Report(
        blocks=(*explored_charts(rows), make_table(_EXPLORED, rows, notes=notes)),
        warnings=tuple(warnings),
        record={"plans": [asdict(row) for row in rows], "warnings": list(warnings)},
    )


def _ranks(row: ExploredRow) -> str | None:
    """Of the factored layers, the least and the largest; of one where they are alike."""
    ends = sorted({min(row.ranks.values()), max(row.ranks.values())}) if row.ranks else []
    return "–".join(map(str, ends)) or None


_EXPLORED: tuple[Field[ExploredRow], ...] = (
    Field(Column("plan", "plan", "integer"), lambda row: row.number),
    Field(Column("on_front", "", "mark")),
    Field(Column("format", "format")),
    Field(Column("scheme", "scheme")),
    Field(Column("factored", "factored", "of", parts=("factored_layers", "layers"))),
    Field(Column("ranks", "rank"), _ranks),
    Field(Column("weights_share", "weights", "share")),
    Field(Column("size_bytes", "size", "bytes")),
    Field(Column("latency_s", "latency", "seconds")),
    Field(hidden("source")),
    Field(Column("drop", "drop", "score"), lambda row: row.drop.value),
    Field(
        Column("drop_bound", "at most", "score", optional=True),
        lambda row: row.drop.bound if row.drop.samples else None,
    ),
)
