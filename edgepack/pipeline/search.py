"""Finds the plan of a build: ranks for all layers, then a form per format, by emitting files and measuring them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgepack.cache import Cache, digest, file_digest
from edgepack.data import example
from edgepack.errors import ModelError, ProofError
from edgepack.factorize import factorizer
from edgepack.inference import load, rename
from edgepack.metrics import Drop
from edgepack.pipeline.attempt import Attempt, Prover
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.pricing import Prices
from edgepack.plan import candidates, cost
from edgepack.plan.search import NEIGHBOURS, LayerPlans, Probe, climb, ladder, last_within
from edgepack.progress import Progress
from edgepack.quantize.gauge import balanced
from edgepack.targets import HOST
from edgepack.types import Factors, Format, LinearLayer, Spectrum
from edgepack.versions import tool_versions

UNGUARDED_LOST_SHARE = 0.01
"""Output energy a layer may lose where no data stand guard over the accuracy."""


@dataclass(frozen=True)
class Found:
    """What the search came to.

    Attributes:
        attempts: the chosen file of each format.
        latency_s: seconds per inference of the files compared on this machine, by format and form; empty for a target
            that is not this machine.
    """

    attempts: dict[Format, Attempt]
    latency_s: dict[str, float]


class Search:
    """One search. Files that lose are overwritten; what a probe measured is kept in the cache."""

    def __init__(
        self,
        options: BuildOptions,
        layers: Sequence[LinearLayer],
        spectra: Sequence[Spectrum],
        method: str,
        files: Mapping[Format, ModelFiles],
        prover: Prover,
        cache: Cache,
        key: str,
        work: Path,
        progress: Progress,
        *,
        largest: int,
        unseen: Collection[str] = (),
        prices: Prices | None = None,
    ) -> None:
        self.options, self.layers, self.spectra, self.method = options, layers, spectra, method
        self.files, self.prover, self.cache, self.work, self.progress = files, prover, cache, work, progress
        self.key = digest(key, method, prover.guard.metric, options.seed, options.exact, largest)
        self.prices = prices
        self._unseen = frozenset(unseen)
        self.probes: list[Probe] = []
        self.warnings: list[str] = []
        self._probed = 0
        self._planned: dict[str, list[LayerPlans]] = {}

    @property
    def measures_here(self) -> bool:
        """Whether the target is this machine, so that latencies can be measured during the build."""
        return self.options.target.name == HOST

    def factors(self, plan: LayerPlans) -> dict[str, Factors]:
        """Factors of every layer that the plan factors, in the basis that quantizes well."""
        algorithm = factorizer(self.method)
        made = {}
        for layer, spectrum, choice in zip(self.layers, self.spectra, plan, strict=True):
            if choice.rank is not None:
                plain = algorithm.factors(layer, spectrum, choice.rank)
                made[layer.name] = balanced(plain, spectrum, seed=self.options.seed)
        return made

    def run(self) -> Found:
        """The smallest plan within the budget for each format, in its fastest form; the closest where there is none."""
        limit = self.options.drop_limit
        latency_s: dict[str, float] = {}
        attempts = {fmt: self._best(fmt, limit, latency_s) for fmt in self.files}
        return Found(attempts, latency_s)

    def _best(self, fmt: Format, limit: float | None, latency_s: dict[str, float]) -> Attempt:
        """Int8 at the smallest plan that meets the budget; fp32 only if no int8 file does and it was not ruled out."""
        asked = self.options.precision
        closest: Attempt | None = None
        for precision in ("int8", "fp32") if asked == "auto" else (asked,):
            for plan in self._plans(precision, limit):
                attempt = self._formed(fmt, self._forms(fmt, precision, plan), plan, limit, latency_s)
                if attempt.within(limit):
                    return attempt
                if closest is None or attempt.lost < closest.lost:
                    # Out of the way of the next plan's file in the same form.
                    closest = replace(attempt, path=attempt.path.replace(self.work / f"closest.{fmt}"))
        if closest is None:
            raise ProofError("the search had no plan to try")
        return closest

    def _plans(self, precision: str, limit: float | None) -> list[LayerPlans]:
        """Plans to try, smallest first. The probes are made once, in the first format."""
        if self.options.rank != "auto":
            return [candidates.fixed(self.layers, self.spectra, self.options.rank)]
        if precision not in self._planned:
            dense = candidates.all_dense(self.layers, "no rank met the budget")
            if self.prover.guard.guarded and limit is not None:
                self._planned[precision] = [*self._within_budget(precision, limit), dense]
            else:
                self._planned[precision] = [self._unguarded_plan(), dense]
        return self._planned[precision]

    def _unguarded_plan(self) -> LayerPlans:
        return tuple(
            candidates.at_lost_share(layer, spectrum, UNGUARDED_LOST_SHARE)
            for layer, spectrum in zip(self.layers, self.spectra, strict=True)
        )

    def _within_budget(self, precision: str, limit: float) -> list[LayerPlans]:
        """The best plan by the first format's metric, then ever less compressed ones for files that lose more."""
        steps = self._ladder()
        fmt = next(iter(self.files))
        probes = climb(steps, lambda plan: self._probe(fmt, precision, plan, len(steps)), limit)
        self.probes += probes.values()
        chosen = last_within(probes, limit)
        if chosen is None:
            return []
        backward = [chosen]
        stride = 1
        while backward[-1] - stride >= 0:
            backward.append(backward[-1] - stride)
            stride *= 2
        return [steps[i] for i in backward if any(choice.rank is not None for choice in steps[i])]

    def _ladder(self) -> list[LayerPlans]:
        """Plans by energy threshold. Layers that the data never reached stay dense: nothing guards what they lose."""
        seen = [(a, s) for a, s in zip(self.layers, self.spectra, strict=True) if a.name not in self._unseen]
        steps = [{p.layer: p for p in step} for step in ladder([a for a, _ in seen], [s for _, s in seen])]
        unseen = {a.name: candidates.dense(a, "the data never reach it") for a in self.layers if a.name in self._unseen}
        return [tuple((step | unseen)[layer.name] for layer in self.layers) for step in steps]

    def _probe(self, fmt: Format, precision: str, plan: LayerPlans, steps: int) -> Drop:
        form = "fp32" if precision == "fp32" else self.files[fmt].probe_form
        self._probed += 1
        ranks = [choice.rank for choice in plan]
        self.progress("search", self._probed, steps.bit_length() + 2 * NEIGHBOURS)

        def measure() -> dict[str, object]:
            out = self.work / f"probe.{fmt}"
            factors = self.factors(plan)
            self.files[fmt].write(factors, form, out)
            drop = self.prover.drop_of(out, fmt)
            out.unlink()
            return asdict(drop)

        key = digest("probe", 1, self.key, fmt, form, ranks, tool_versions())
        return Drop(**self.cache.record("probes", key, measure))

    def _forms(self, fmt: Format, precision: str, plan: LayerPlans) -> tuple[str, ...]:
        files = self.files[fmt]
        if precision == "fp32":
            return files.fp32_forms if self.options.precision == "auto" else ("fp32",)
        return files.forms(self.order(fmt, plan)[0])

    def order(self, fmt: Format, plan: LayerPlans) -> tuple[tuple[str, ...], str]:
        """Int8 forms of a plan, fastest first by the best source there is before a file is measured, and its name."""
        factored = any(choice.rank is not None for choice in plan)
        stated = cost.preferred(fmt, factored=factored, calibrated=self.files[fmt].calibrated)
        priced = None if self.prices is None else self.prices.order(fmt, plan, stated)
        return priced or (stated, cost.STATED)

    def chosen_by(self, attempt: Attempt, latency_s: Mapping[str, float]) -> str:
        """What the form of a file was chosen by: latencies of files of its format, or the order of the forms."""
        measured = any(name.startswith(f"{attempt.fmt}/") for name in latency_s)
        return cost.MEASURED if measured else self.order(attempt.fmt, attempt.layers)[1]

    def _formed(
        self, fmt: Format, forms: Sequence[str], plan: LayerPlans, limit: float | None, latency_s: dict[str, float]
    ) -> Attempt:
        """The plan's file in its fastest form within the budget; else the one that loses least."""
        attempts = [attempt for attempt in self._attempts(fmt, forms, plan, limit) if attempt.sound]
        if not attempts:
            raise ProofError(f"no {fmt} form of the plan could be written and proved: {'; '.join(self.warnings)}")
        good = [attempt for attempt in attempts if attempt.within(limit)]
        if not good:
            return min(attempts, key=lambda attempt: attempt.lost)
        measured = self.latencies({a.form: a.path for a in good}, fmt) if len(good) > 1 else {}
        latency_s |= {f"{fmt}/{form}": seconds for form, seconds in measured.items()}
        chosen = cost.fastest([a.form for a in good], measured)
        return next(a for a in good if a.form == chosen)

    def _attempts(self, fmt: Format, forms: Sequence[str], plan: LayerPlans, limit: float | None) -> Iterator[Attempt]:
        """Files of a plan in the order of `forms`; on another target than this machine the first good one ends it."""
        files, factors = self.files[fmt], self.factors(plan)
        for form in forms:
            self.progress(f"emit {fmt} {form}")
            try:
                attempt = self.prover.attempt(files, plan, factors, form, self.work / f"{form}.{fmt}")
            except ModelError as err:
                self._warn(f"the form {form} cannot be used here: {err.message}")
                continue
            if not attempt.sound:
                self._warn(f"the form {form} was dropped: {attempt.failure}")
            yield attempt
            if attempt.sound and attempt.within(limit) and not self.measures_here:
                return

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)

    def latencies(self, paths: Mapping[str, Path], fmt: Format) -> dict[str, float]:
        """Seconds per inference of files on this machine, measured in turns and kept in the cache."""
        target = self.options.target
        key = digest("latency", 1, [[n, file_digest(p)] for n, p in paths.items()], repr(target), tool_versions())

        def measure() -> dict[str, float]:
            runs = {}
            for name, path in paths.items():
                model = load(path, fmt, exact=False)
                feed = example(rename(self.prover.guard.samples, model.inputs), model.inputs, self.options.seed)
                runs[name] = lambda model=model, feed=feed: model.run(feed)
            return cost.interleaved_latency_s(runs)

        return dict(self.cache.record("latency", key, measure))
