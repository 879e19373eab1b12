"""One file of one plan: written, proved and measured on the validation samples; scored once on the untouched test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgepack.backends.backend import THREADS, Session, Writer
from edgepack.backends.registry import FACTS
from edgepack.backends.runtime import answers, load
from edgepack.backends.schemes import CONSTEXPR, FP32
from edgepack.data import Samples, example
from edgepack.metrics.choose import choose
from edgepack.metrics.classes import layout_of
from edgepack.metrics.drop import Drop, Scale
from edgepack.metrics.values import sqnr_db
from edgepack.model.constexpr import plain
from edgepack.model.layer import Layer
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement, of_structure
from edgepack.model.scheme import FileScheme, Format
from edgepack.model.serialize import packed_part
from edgepack.model.types import Array, Contents, LayerPlan, Proof, Written
from edgepack.natives import native
from edgepack.pipeline import verify
from edgepack.pipeline.distill import Outcome
from edgepack.pipeline.recipe_score import RecipeScore, evaluated
from edgepack.plan.candidates import exceptions
from edgepack.workspace import digest

KNOWN, KNOWN_BEYOND, FEWEST_KNOWN = 99.8, 1.0, 200
"""Accuracy in percent, and points of it above the test's, from which samples are taken for those that the model was
trained on; and how many samples tell."""
NOTHING_WRITTEN = Written({}, {})
"""Of a file whose layers are all as they were."""


@dataclass(frozen=True)
class EvaluationSet:
    """Samples that files are scored on, and the dense fp32 model's answers to them.

    Attributes:
        scale: the answers, and how files' answers are compared with them.
        has_data: whether real data stand behind it; without, the samples are seeded stand-ins and prove only the file.
        exact: whether integer sums are to be exact, as on most targets, and not as this machine's CPU does them.
        recipe: the recipe's own `evaluate`, where that judges files; None where these samples do.
    """

    samples: Samples
    scale: Scale
    has_data: bool
    exact: bool
    recipe: RecipeScore | None = None

    @property
    def reference(self) -> Sequence[Array]:
        """(N, …) each, all outputs of the dense fp32 model."""
        return self.scale.reference

    @property
    def metric(self) -> str:
        """Of the first output that is judged."""
        return self.scale.judges[0].metric.name

    def answers(self, path: Path, fmt: Format) -> tuple[Array, ...]:
        """(N, …) each, all outputs of a file."""
        return answers(load(path, fmt, threads=THREADS, exact=self.exact), self.samples)

    def drop(self, outputs: Sequence[Array]) -> Drop | None:
        """Drop of these answers against the dense fp32 model; None without data."""
        return self.scale.drop(outputs) if self.has_data else None

    def drop_of(self, path: Path, fmt: Format, outputs: Sequence[Array] | None = None) -> Drop | None:
        """Drop of a file, by the recipe's `evaluate` where that judges; `outputs` are its answers where known."""
        if self.recipe is not None:
            return self.recipe.drop(load(path, fmt, threads=THREADS, exact=self.exact))
        return self.drop(self.answers(path, fmt) if outputs is None else outputs)


@dataclass(frozen=True)
class FileTrial:
    """An emitted file with its proofs and its drop.

    Attributes:
        drop: on the validation samples, that it was chosen on; None without data.
        confirmation: on samples that no plan was chosen on; None where none were kept back, or before it was chosen.
        distillation: what training of its pairs came to; None where they were not trained.
        tables: what was planned of its embedding tables.
    """

    fmt: Format
    scheme: FileScheme
    path: Path
    layers: tuple[LayerPlan, ...]
    proofs: tuple[Proof, ...]
    drop: Drop | None
    confirmation: Drop | None = None
    distillation: Outcome | None = None
    tables: tuple[LayerPlan, ...] = ()

    @property
    def stated(self) -> Drop | None:
        """The drop that is said of the file: on the confirmation samples where there are any."""
        return self.drop if self.confirmation is None else self.confirmation

    @property
    def sound(self) -> bool:
        """Whether every proof passed."""
        return all(proof.passed for proof in self.proofs)

    @property
    def lost(self) -> float:
        """What the drop stays under, in the metric's unit; 0 without data."""
        return 0.0 if self.stated is None else self.stated.bound

    @property
    def failed_layers(self) -> dict[str, str]:
        """Layers that a proof failed for, and why; empty where none failed, or one did for the whole file."""
        failed = [proof for proof in self.proofs if not proof.passed]
        if not all(proof.layers for proof in failed):
            return {}
        return {name: why for proof in failed for name, why in proof.layers.items()}

    @property
    def failure(self) -> str:
        """What the failed proofs say."""
        return "; ".join(f"{p.name}: {p.detail}" for p in self.proofs if not p.passed)

    def within(self, limit: float | None) -> bool:
        """Whether the drop stays within the limit, with the confidence that was asked for."""
        return limit is None or self.stated is None or self.stated.bound <= limit


class FileEvaluator:
    """Measures files on one set of samples. Answers of the fp32 factored model are kept per plan."""

    def __init__(self, validation: EvaluationSet, opened: Model, work: Path):
        self.validation = validation
        self._opened = opened
        self._work = work
        self._answers: dict[str, Sequence[Array]] = {}

    def trial(
        self,
        files: Writer,
        plan: tuple[LayerPlan, ...],
        factors: Mapping[str, Replacement],
        scheme: FileScheme,
        out: Path,
    ) -> FileTrial:
        """Write the plan in a scheme and measure the file."""
        written = files.write(factors, scheme, out, exceptions(plan, scheme))
        return self.measure(files, as_written(plan, written), factors, scheme, out, written)

    def measure(
        self,
        files: Writer,
        plan: tuple[LayerPlan, ...],
        factors: Mapping[str, Replacement],
        scheme: FileScheme,
        path: Path,
        written: Written = NOTHING_WRITTEN,
    ) -> FileTrial:
        """Prove and score a file that is already there."""
        outputs = self.validation.answers(path, files.fmt)
        contents = files.read(path)
        proofs = (
            verify.same_outputs(*_least_alike(outputs, self._factored_answers(factors, plan)), scheme, plan),
            verify.structures_kept(contents, files.read_optimized(path), written, plan),
            *self._static_proofs(files, contents, plan, factors, scheme, path),
        )
        return FileTrial(files.fmt, scheme, path, plan, proofs, self.validation.drop_of(path, files.fmt, outputs))

    def example(self, seed: int) -> dict[str, Array]:
        """One run's inputs, by the names of the model's: the first samples."""
        return example(self.validation.samples, self._opened.inputs, seed)

    def drop_of(self, path: Path, fmt: Format) -> Drop:
        """Drop of a file on the validation samples, without its proofs.

        Raises:
            ValueError: there are no data.
        """
        measured = self.validation.drop_of(path, fmt)
        if measured is None:
            raise ValueError("a drop was asked for where there are no data to validate on")
        return measured

    def _static_proofs(
        self,
        files: Writer,
        contents: Contents,
        plan: tuple[LayerPlan, ...],
        factors: Mapping[str, Replacement],
        scheme: FileScheme,
        path: Path,
    ) -> tuple[Proof, ...]:
        biases = {layer.name: _bias(layer, factors) for layer in self._opened.layers}
        present = {name: bias for name, bias in biases.items() if bias is not None and np.any(bias)}
        return (
            verify.weights_as_planned(contents, files.dense_contents, plan, scheme, of_structure(factors, "constexpr")),
            self._bias_proof(files, verify.biases_intact(contents, present), factors, plan),
            *_constexpr_proofs(factors, path),
        )

    def _bias_proof(
        self, files: Writer, found: Proof, factors: Mapping[str, Replacement], plan: tuple[LayerPlan, ...]
    ) -> Proof:
        """A bias that a converter folded into its neighbours (a normalisation's scale and shift go into the next layer)
        cannot be read back. Then the float file of the same plan has to answer like the reference, to the last bits."""
        if found.passed or not FACTS[files.fmt].folds:
            return found
        path = self._work / f"float.{files.fmt}"
        parts = _changed(factors, plan)
        exact = FileScheme.of(FP32[files.fmt])
        files.write(parts, exact, path, dict.fromkeys(of_structure(parts, "constexpr"), CONSTEXPR[files.fmt]))
        answered = self.validation.answers(path, files.fmt)
        same = verify.same_outputs(*_least_alike(answered, self._factored_answers(factors, plan)), exact)
        detail = f"some are folded into their neighbours; the float file of this plan answers to {same.detail}"
        return Proof(found.name, same.passed, detail if same.passed else f"{found.detail}; {same.detail}")

    def _factored_answers(self, factors: Mapping[str, Replacement], plan: tuple[LayerPlan, ...]) -> Sequence[Array]:
        parts = _changed(factors, plan)
        if not parts:
            return self.validation.reference
        arrays = [(name, *packed_part(part).values()) for name, part in sorted(parts.items())]
        key = digest(*(each for part in arrays for each in part))
        if key not in self._answers:
            opened, exact = self._opened, self.validation.exact
            session = native(opened.native).session(opened.content, parts, threads=THREADS, exact=exact)
            # One plan at a time is looked at in several schemes: the last answers are all that is worth keeping.
            self._answers = {key: answers(session, self.validation.samples)}
        return self._answers[key]


def _least_alike(outputs: Sequence[Array], reference: Sequence[Array]) -> tuple[Array, Array]:
    """The output that differs most, and its reference: of another shape, else of the most noise over its signal."""
    pairs = [pair for pair in zip(outputs, reference, strict=True) if pair[1].size and pair[1].dtype.kind == "f"]
    pairs = pairs or list(zip(outputs, reference, strict=True))
    return min(pairs, key=lambda pair: -np.inf if pair[0].shape != pair[1].shape else sqnr_db(*pair))


def as_written(plan: tuple[LayerPlan, ...], written: Written) -> tuple[LayerPlan, ...]:
    """The plan with the schemes that the layers really got."""
    return tuple(
        replace(layer, scheme=written.schemes[layer.layer])
        if layer.scheme is not None and written.schemes.get(layer.layer, layer.scheme) != layer.scheme
        else layer
        for layer in plan
    )


def _changed(factors: Mapping[str, Replacement], plan: tuple[LayerPlan, ...]) -> dict[str, Replacement]:
    """Pairs and layers by other methods: all that differs from the model by more than rounding."""
    other = {layer.layer for layer in plan if layer.alternative is not None}
    parts = {name: part for name, part in factors.items() if part.structure.ranks}
    for name, part in factors.items():
        if name in other and not part.structure.ranks:
            parts[name] = plain(part.weight, part.bias) if part.structure.is_dense else part
    return parts


def _constexpr_proofs(factors: Mapping[str, Replacement], path: Path) -> tuple[Proof, ...]:
    constexpr = of_structure(factors, "constexpr")
    return (verify.stored_as_planned(path.read_bytes(), constexpr),) if constexpr else ()


def _bias(layer: Layer, factors: Mapping[str, Replacement]) -> Array | None:
    if layer.name in factors and factors[layer.name].bias is not None:
        return factors[layer.name].bias
    return layer.bias


def final_scores(
    paths: Mapping[str, tuple[Path, Format]], opened: Model, test: Samples | None, validation: EvaluationSet
) -> dict[str, float]:
    """The untouched test, once per file: `--test`, else the recipe's `evaluate`. Empty where there is neither, and
    where that judged the files before."""
    if test is not None:
        outputs = {name: answers(_loaded(*file, validation), test) for name, file in paths.items()}
        fp32 = next(found for name, found in outputs.items() if name.startswith("baseline/fp32"))
        asked = validation.scale.judges[0].metric
        unlabelled = test.labels is None and asked.labels == "needed"
        judge = choose(fp32, test.labels, None if unlabelled else asked, test.arrays.values())[0]
        return {name: float(judge.scores(found, fp32, test.labels).mean()) for name, found in outputs.items()}
    if opened.recipe is None or opened.recipe.evaluate is None or validation.recipe is not None:
        return {}
    return {name: evaluated(opened, _loaded(path, fmt, validation))[0] for name, (path, fmt) in paths.items()}


def known_by_heart(validation: EvaluationSet, test: float | None = None) -> str | None:
    """What to say where the model seems to have been trained on the samples that it is judged by: it is right on nearly
    all of them, or on clearly more than on the test. On such samples a compressed model loses less than on new ones.

    Args:
        test: accuracy of the dense model on the untouched test, None where there is none.
    """
    judge, count = validation.scale.judges[0], len(validation.samples)
    if judge.metric.name != "accuracy" or not judge.labelled or count < FEWEST_KNOWN or validation.recipe is not None:
        return None
    right = float(judge.scores(validation.reference, validation.reference, validation.samples.labels).mean())
    hint = "was it trained on them? Then drops look smaller than they are: give samples that it has not seen"
    if test is not None and right - test > KNOWN_BEYOND + 300.0 * ((right / 100) * (1 - right / 100) / count) ** 0.5:
        return f"the model is right on {right:.1f} % of the data and on {test:.1f} % of the test; {hint}"
    if test is None and right >= KNOWN:
        return f"the model is right on {right:.1f} % of {count} samples; {hint}"
    return None


def hardly_told_apart(validation: EvaluationSet, limit: float | None) -> str | None:
    """What to say where agreement was asked for and the model gives nearly all samples one class: a file that always
    names that class, and so knows nothing, would keep the limit.

    Args:
        limit: largest drop in points, None for no limit.
    """
    for judge in validation.scale.judges:
        if judge.metric.name != "agreement" or not validation.has_data or limit is None:
            continue
        answers = validation.reference[judge.output]
        _, counts = np.unique(layout_of(answers).named(answers), return_counts=True)
        rest = 100.0 * float(counts.sum() - counts.max()) / float(counts.sum())
        if rest <= limit:
            return (
                f"the model gives {100.0 - rest:.2f} % of the samples one class, so that a file which always names it "
                f"is within a drop of {limit:g}: give more samples of other classes, or --metric sqnr"
            )
    return None


def check_evaluate(opened: Model, dense: Session) -> None:
    """Run the recipe's `evaluate` once on the dense model: better now than after the search.

    Raises:
        ModelError, DataError: see `final_scores`.
    """
    if opened.recipe is not None and opened.recipe.evaluate is not None:
        evaluated(opened, dense)


def _loaded(path: Path, fmt: Format, validation: EvaluationSet) -> Session:
    return load(path, fmt, threads=THREADS, exact=validation.exact)
