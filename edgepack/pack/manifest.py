"""The manifest of a pack: its fields as types, how it is written, and how it is read with care.

A pack may come from a stranger: nothing but a whole manifest of this edgepack is taken, every name fit to be shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, FiniteFloat, Tag, TypeAdapter, ValidationError

from edgepack.backends.registry import KnownFormat
from edgepack.errors import PackError
from edgepack.metrics.drop import Drop
from edgepack.model.scheme import Format
from edgepack.model.types import Aim, WeightedBy
from edgepack.pack.folder import MANIFEST

if TYPE_CHECKING:
    from edgepack.model.structure import Structure
    from edgepack.model.types import Candidate, LayerPlan

SCHEMA_VERSION: Literal[1] = 1
MAX_MANIFEST_BYTES = 32 * 2**20
MAX_NAME = 400
MAX_LAYERS = 10_000
BUILD_AGAIN = "build the pack again"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it cannot be shown")
    return text


Shown = Annotated[str, Field(strict=True, min_length=1, max_length=2000), AfterValidator(_printable)]
"""Printable: names and reasons end up on terminals."""

Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Side = Annotated[int, Field(strict=True, ge=1, lt=1 << 31)]
Number = Annotated[float, Field(strict=True)]
"""Of one sample there is no standard error: a number may be NaN where it is not shown."""

Figure = Annotated[FiniteFloat, Field(strict=True, ge=0)]
Signed = Annotated[FiniteFloat, Field(strict=True)]
Extra: dict[str, bool] = {"extra": True}
"""Metadata of a field that is written only where it is known."""


@dataclass(frozen=True)
class ModelEntry:
    """The model that was compressed. `source` is how it was named, without its folder."""

    name: Shown
    source: Text
    kind: Text
    sha256: Text


@dataclass(frozen=True)
class TargetEntry:
    """What the pack was built for."""

    name: Shown


@dataclass(frozen=True)
class OptionsEntry:
    """What the build was asked for; bytes, seconds, and the drop in the metric's unit."""

    rank: Text | Annotated[int, Field(strict=True)] | Number
    precision: Text
    refit: Flag
    max_drop: Number | None
    formats: tuple[Text, ...]
    max_size_bytes: Count | None
    max_memory_bytes: Count | None
    max_latency_s: Number | None
    pick: tuple[Count, ...]
    distill: Text | None
    largest_onnx_weight_code: Count
    keep: Text | None
    only: Text | None


@dataclass(frozen=True)
class JudgeEntry:
    """How one output is judged; `labelled` says whether against labels or the original's answers."""

    output: Count
    metric: Text
    labelled: Flag
    why: Text


@dataclass(frozen=True)
class MetricEntry:
    """By what plans were chosen, and whether that was on real data.

    Attributes:
        name: of the first output's metric; `recipe` where the recipe's own `evaluate` judged the whole model.
        why: it was chosen.
        outputs: how every output is judged; none where the recipe did.
    """

    name: Shown
    why: Text
    validated: Flag
    outputs: tuple[JudgeEntry, ...]


@dataclass(frozen=True)
class DataEntry:
    """The samples. `origin` is None where there were none."""

    origin: Text | None
    calibration_samples: Count
    validation_samples: Count
    confirmation_samples: Count
    labelled: Flag
    split_seed: Count


@dataclass(frozen=True)
class DropEntry:
    """A drop with the figures behind it, in the metric's unit.

    Attributes:
        dense, emitted: scores, higher is better: errors are negative.
        drop: the estimate.
        bound: what the true drop stays under, with `confidence`, one-sided.
        output: number of the output that loses most.
    """

    metric: Text
    dense: Number
    emitted: Number
    drop: Number
    bound: Number
    confidence: Number
    standard_error: Number
    samples: Count
    output: Count

    @classmethod
    def of(cls, drop: Drop) -> DropEntry:
        """As it was measured."""
        record = asdict(drop)
        estimate = record.pop("value")
        del record["score"]
        return cls(**record, drop=estimate)


@dataclass(frozen=True)
class TrialEntry:
    """One plan that was emitted and measured on the way. `ranks` are those of its factored layers."""

    format: Text
    scheme: Text
    size_bytes: Count
    predicted_latency_s: Number
    predicted_loss: Number
    weight_parameters: Count
    ranks: Mapping[Text, Side]
    drop: DropEntry


@dataclass(frozen=True)
class AlternativeEntry:
    """What another method made of a layer."""

    method: Shown
    share: Figure
    parameters: Count


def _several(structure: Structure) -> tuple[int, ...] | None:
    """The ranks of a structure that has more than one."""
    return structure.ranks if len(structure.ranks) > 1 else None


@dataclass(frozen=True)
class CandidateEntry:
    """One way to write a layer, with what it was predicted to cost; `rank` and `ranks` are as in `LayerEntry`."""

    scheme: Shown
    structure: Text
    rank: Side | None
    loss: Figure
    size_bytes: Count
    ram_bytes: Count
    latency_s: Figure
    source: Text
    alternative: AlternativeEntry | None
    ranks: tuple[Side, ...] | None = field(default=None, metadata=Extra)

    @classmethod
    def of(cls, candidate: Candidate) -> CandidateEntry:
        """As the solver had it."""
        other = candidate.alternative
        return cls(
            scheme=candidate.scheme.name,
            structure=candidate.structure.name,
            rank=candidate.structure.rank,
            loss=candidate.loss,
            size_bytes=candidate.size_bytes,
            ram_bytes=candidate.ram_bytes,
            latency_s=candidate.latency_s,
            source=candidate.source,
            alternative=None if other is None else AlternativeEntry(**asdict(other)),
            ranks=_several(candidate.structure),
        )


@dataclass(frozen=True)
class LostShares:
    """Shares of a layer's output energy: what truncation, rounding of weights, the latent's grid … lose."""

    truncation: Figure
    rounding: Figure
    latent: Figure
    offset: Signed
    cross: Signed
    total: Signed


@dataclass(frozen=True)
class LayerEntry:
    """What became of one layer.

    Attributes:
        rank: of its low-rank factors, the first of several; None where there are none.
        ranks: all of them, where there are several.
        products: sides of the matrices of all its products, where they are not those of factors of one matrix, or B is
            one of another layer's.
        scheme: None where it is the file's.
        predicted: None where nothing was chosen from.
        others: the best of each other kind.
        lost_shares: on the calibration data; None where nothing is lost or no data reached it.
        shares: layers that have one B, itself among them; it is one of the products of the first. None where it has its
            own.
    """

    layer: Shown
    out_features: Side
    in_features: Side
    structure: Shown
    rank: Side | None
    break_even_rank: Count
    lost_energy_share: Signed
    reason: Shown
    alternative: AlternativeEntry | None
    scheme: Shown | None
    weight_parameters: Count
    predicted: CandidateEntry | None
    others: tuple[CandidateEntry, ...]
    lost_shares: LostShares | None
    ranks: tuple[Side, ...] | None = field(default=None, metadata=Extra)
    products: tuple[tuple[Side, Side], ...] | None = field(default=None, metadata=Extra)
    shares: tuple[Shown, ...] | None = field(default=None, metadata=Extra)

    @classmethod
    def of(cls, plan: LayerPlan, lost: LostShares | None = None) -> LayerEntry:
        """As it was planned."""
        other = plan.alternative
        apart = not plan.structure.of_a_matrix or plan.layer in plan.shares[1:]
        return cls(
            layer=plan.layer,
            out_features=plan.dense[-1].rows,
            in_features=plan.dense[0].inputs,
            structure=plan.structure.name,
            rank=plan.rank,
            break_even_rank=plan.break_even_rank,
            lost_energy_share=plan.lost_energy_share,
            reason=plan.reason,
            alternative=None if other is None else AlternativeEntry(**asdict(other)),
            scheme=None if plan.scheme is None else plan.scheme.name,
            weight_parameters=plan.weight_parameters,
            predicted=None if plan.predicted is None else CandidateEntry.of(plan.predicted),
            others=tuple(map(CandidateEntry.of, plan.others)),
            lost_shares=lost,
            ranks=_several(plan.structure),
            products=tuple((op.rows, op.inputs) for op in plan.ops) if apart else None,
            shares=plan.shares or None,
        )


@dataclass(frozen=True)
class ProofEntry:
    """One property of the file, shown or not."""

    passed: Flag
    detail: Text


@dataclass(frozen=True)
class HeldOutLoss:
    """On held-out calibration samples."""

    before: Number
    after: Number


@dataclass(frozen=True)
class DistillationEntry:
    """What training of the factors came to.

    Attributes:
        not_trained: layers that the torch program lacks.
        samples: that were trained on, each once in an epoch.
        kept: whether the file has the trained factors: not where their loss is no smaller, or the file loses more on
            the validation samples with them.
    """

    steps: Count
    held_out_loss: HeldOutLoss
    not_trained: tuple[Shown, ...]
    samples: Count | None = field(default=None, metadata=Extra)
    kept: Flag = field(default=True, metadata=Extra)


@dataclass(frozen=True)
class ArchiveEntry:
    """The archive of a model file: its path in the pack and its digest."""

    file: Shown
    sha256: Text


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A model file.

    Attributes:
        metric: its score on the untouched test where there is one, else on the confirmation samples where some were
            kept back, else on the validation samples; None without data.
        scored_on: which of these.
        scheme: of the file, for people.
        validation: its drop on the samples that it was chosen on.
        confirmation: its drop on those that were kept back.
        test: its score there.
        scheme_chosen_by: what its scheme was chosen by.
        channels_last: names of its inputs that take images (N, H, W, C), unlike the source; None where there are none.
    """

    format: KnownFormat
    scheme: Shown
    size_bytes: Count
    sha256: Text
    metric: Signed | None
    scored_on: Literal["validation", "confirmation", "test"] | None
    validation: DropEntry | None
    confirmation: DropEntry | None
    test: Signed | None
    channels_last: tuple[Text, ...] | None = field(default=None, metadata=Extra)

    @property
    def stated(self) -> DropEntry | None:
        """The drop that is said of it: on the samples that were kept back where there are some."""
        return self.confirmation or self.validation


@dataclass(frozen=True, kw_only=True)
class DenseFile(FileEntry):
    """A baseline. Of the int8 one, also which quantizer made it."""

    quantizer: Text | None = field(default=None, metadata=Extra)
    scheme_chosen_by: Shown | None = field(default=None, metadata=Extra)


@dataclass(frozen=True)
class CornerEntry:
    """What `--optimize` comes to, predicted of the whole file at the predicted loss of the plan that was chosen."""

    optimize: Aim
    size_bytes: Count
    latency_s: Figure


@dataclass(frozen=True, kw_only=True)
class PackedFile(FileEntry):
    """A model file with factored layers.

    Attributes:
        corners: the plan itself, then those that other aims would have chosen, where they gain something; None where
            no plan was chosen from others.
        tables: what became of embedding tables, where they were chosen for with the layers.
        archive_bytes, archive: of its compressed file, where asked for.
    """

    scheme_chosen_by: Shown
    distillation: DistillationEntry | None
    matrix_parameters: Count
    matrix_parameters_share: Figure
    layers: Annotated[tuple[LayerEntry, ...], Field(max_length=MAX_LAYERS)]
    proofs: Mapping[Text, ProofEntry]
    corners: tuple[CornerEntry, ...] | None = field(default=None, metadata=Extra)
    tables: Annotated[tuple[LayerEntry, ...], Field(max_length=MAX_LAYERS)] | None = field(default=None, metadata=Extra)
    archive_bytes: Count | None = field(default=None, metadata=Extra)
    archive: ArchiveEntry | None = field(default=None, metadata=Extra)


@dataclass(frozen=True)
class FoldsRow:
    """One share of each layer's weights. Without a mean it was given up before all folds were looked at."""

    percent: Count
    scores: tuple[Signed, ...]
    mean: Signed | None
    standard_error: Figure | None


@dataclass(frozen=True)
class CrossValidationEntry:
    """How `--rank cv` chose: the chosen share in per cent, the best one, and every one that was looked at."""

    metric: Text
    percent: Count
    best: Count
    threshold: Signed
    folds: Count
    samples: Count
    table: tuple[FoldsRow, ...]


def file_path(variant: str, fmt: Format) -> str:
    """Where a variant's file is in a pack."""
    return f"baseline/{variant.removeprefix('dense-')}.{fmt}" if variant.startswith("dense-") else f"model.{fmt}"


def _kind(entry: Any) -> str:
    return "packed" if isinstance(entry, PackedFile) or (isinstance(entry, Mapping) and "layers" in entry) else "dense"


File = Annotated[Annotated[PackedFile, Tag("packed")] | Annotated[DenseFile, Tag("dense")], Discriminator(_kind)]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a pack says of itself.

    Attributes:
        files: by path in the pack.
        latency_s: measured while choosing, by format and file.
        cost_sources: where predicted latencies come from, by format.
        loss_weighted_by: what predicted losses are.
    """

    model: ModelEntry
    target: TargetEntry
    options: OptionsEntry
    seed: Count
    versions: Mapping[Text, Text]
    method: Text
    cross_validation: CrossValidationEntry | None
    loss_weighted_by: WeightedBy
    cost_sources: Mapping[Text, Text]
    metric: MetricEntry
    data: DataEntry
    trials: tuple[TrialEntry, ...]
    files: Mapping[Shown, File]
    latency_s: Mapping[Text, Number]
    budget_met: Flag
    warnings: tuple[Text, ...]
    schema_version: Literal[1] = SCHEMA_VERSION

    def packed(self, fmt: Format) -> PackedFile:
        """The entry of `model.<format>`.

        Raises:
            KeyError: the pack has none.
        """
        entry = self.files[f"model.{fmt}"]
        if not isinstance(entry, PackedFile):
            raise KeyError(f"model.{fmt}")
        return entry

    def baseline(self, precision: str, fmt: str) -> FileEntry | None:
        """The entry of `baseline/<precision>.<format>`; None in a pack without baselines."""
        return self.files.get(f"baseline/{precision}.{fmt}")

    def record(self) -> dict[str, Any]:
        """The JSON document."""
        return dict(_plain(self))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        named = {each.name: (getattr(value, each.name), "extra" in each.metadata) for each in fields(value)}
        return {name: _plain(own) for name, (own, extra) in named.items() if not (extra and own is None)}
    if isinstance(value, Mapping):
        return {name: _plain(own) for name, own in value.items()}
    return [_plain(own) for own in value] if isinstance(value, tuple | list) else value


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with stable key order."""
    text = json.dumps(manifest.record(), indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n")


def read_manifest(pack: Path) -> Manifest:
    """The whole manifest of a pack folder, every name printable and every figure finite.

    Raises:
        PackError: no pack, or a manifest that this edgepack did not write.
    """
    return parse_manifest(read_document(pack), pack)


def parse_manifest(document: Mapping[str, Any], pack: Path) -> Manifest:
    """The same of a document that was read already; `pack` is what errors name."""
    try:
        return _adapter().validate_python(document)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if str(part).isprintable())[:MAX_NAME]
        raise PackError(
            f"{pack}: its manifest is not one of this edgepack: {where}: {first['msg']}", hint=BUILD_AGAIN
        ) from err


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def read_document(pack: Path) -> dict[str, Any]:
    """The manifest as it stands in the file, of this schema version and otherwise unchecked.

    Raises:
        PackError: no pack, a manifest that is no JSON object, or of another schema version.
    """
    path = pack / MANIFEST
    if not path.is_file():
        raise PackError(
            f"{pack}: not a pack, there is no {MANIFEST}", hint="give the folder that `edgepack build` wrote"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise PackError(f"{path}: {path.stat().st_size} bytes, a manifest has at most {MAX_MANIFEST_BYTES}")
    try:
        document = json.loads(path.read_text())
    except (ValueError, RecursionError) as err:
        raise PackError(f"{path}: not JSON ({err})", hint=BUILD_AGAIN) from err
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise PackError(f"{path}: schema version {version}, this edgepack reads {SCHEMA_VERSION}")
    return dict(document)
