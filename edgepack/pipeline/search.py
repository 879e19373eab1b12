"""Finds the plan of a build: ranks for all layers, then a form per format, by emitting files and measuring them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgepack.cache import Cache, digest, file_digest
from edgepack.data import example
from edgepack.errors import BudgetError, ProofError
from edgepack.factorize import factorizer
from edgepack.inference import load, rename
from edgepack.metrics import Drop
from edgepack.pipeline.attempt import Attempt, Prover
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.options import BuildOptions
from edgepack.plan import candidates, cost
from edgepack.plan.search import NEIGHBOURS, LayerPlans, Probe, climb, ladder, last_within
from edgepack.progress import Progress
from edgepack.quantize.gauge import balanced
from edgepack.targets import HOST
from edgepack.types import Factors, Format, LinearLayer, Spectrum
from edgepack.versions import tool_versions

UNGUARDED_LOST_SHARE = 0.01
"""Output energy a layer may lose where no data stand guard over the accuracy."""


@dataclass
class Found:
    """What the search came to.

    Attributes:
        attempts: the chosen file of each format.
        probes: every plan that was emitted on the way, as a row for the manifest.
        latency_s: seconds per inference of the files compared on this machine, by format and form; empty for a target
            that is not this machine.
    """

    layers: LayerPlans
    attempts: dict[Format, Attempt]
    probes: list[Probe] = field(default_factory=list)
    latency_s: dict[str, float] = field(default_factory=dict)


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
    ) -> None:
        self.options, self.layers, self.spectra, self.method = options, layers, spectra, method
        self.files, self.prover, self.cache, self.work, self.progress = files, prover, cache, work, progress
        self.key = digest(key, method, prover.guard.metric, options.seed, options.largest_weight)
        self.probes: list[Probe] = []
        self._probed = 0

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
        """The best plan within the budget.

        Raises:
            BudgetError: none is; its `attempt` is the best one, complete.
        """
        limit = self.options.drop_limit
        precisions = ("int8", "fp32") if self.options.precision == "auto" else (self.options.precision,)
        if self.options.rank == "auto" and self.prover.guard.guarded and limit is not None:
            steps = ladder(self.layers, self.spectra)
        else:
            steps = [self._fixed_plan()]
        fallback: Found | None = None
        for precision in precisions:
            found = self._with_precision(precision, steps, limit)
            if all(attempt.within(limit) for attempt in found.attempts.values()):
                return found
            fallback = found if fallback is None or _worst(found) < _worst(fallback) else fallback
        if fallback is None:
            raise ProofError("no precision was tried")
        raise Unmet(fallback, limit or 0.0)

    def _fixed_plan(self) -> LayerPlans:
        rank = self.options.rank
        if rank != "auto":
            return candidates.fixed(self.layers, self.spectra, rank)
        return tuple(
            candidates.at_lost_share(layer, spectrum, UNGUARDED_LOST_SHARE)
            for layer, spectrum in zip(self.layers, self.spectra, strict=True)
        )

    def _with_precision(self, precision: str, steps: Sequence[LayerPlans], limit: float | None) -> Found:
        all_dense = tuple(candidates.dense(layer, "no rank met the budget") for layer in self.layers)
        ladder_down = [steps[0]] if len(steps) == 1 else self._within_budget(precision, steps, limit or 0.0)
        if self.options.rank == "auto":
            ladder_down = [*ladder_down, all_dense]
        found: Found | None = None
        for plan in ladder_down:
            attempts, latencies = {}, {}
            for fmt in self.files:
                attempts[fmt], measured = self._formed(fmt, precision, plan, limit)
                latencies |= measured
            found = Found(plan, attempts, self.probes, latencies)
            if all(attempt.within(limit) for attempt in attempts.values()):
                break
        if found is None:
            raise ProofError("the search had no plan to try")
        return found

    def _within_budget(self, precision: str, steps: Sequence[LayerPlans], limit: float) -> list[LayerPlans]:
        """The best plan by the first format's metric, then ever less compressed ones for formats that lose more."""
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
        return [steps[i] for i in backward]

    def _probe(self, fmt: Format, precision: str, plan: LayerPlans, steps: int) -> Drop:
        form = self._forms(fmt, precision, plan)[0]
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
        if precision == "fp32":
            return ("fp32",)
        factored = any(choice.rank is not None for choice in plan)
        return cost.preferred(fmt, factored=factored, calibrated=self.files[fmt].calibrated)

    def _formed(
        self, fmt: Format, precision: str, plan: LayerPlans, limit: float | None
    ) -> tuple[Attempt, dict[str, float]]:
        """The file of one format in its fastest form within the budget; else the one that loses least."""
        files, factors = self.files[fmt], self.factors(plan)
        attempts: list[Attempt] = []
        for form in self._forms(fmt, precision, plan):
            self.progress(f"emit {fmt} {form}")
            attempt = self.prover.attempt(files, plan, factors, form, self.work / f"{form}.{fmt}")
            attempts.append(attempt)
            if attempt.sound and attempt.within(limit) and not self.measures_here:
                return attempt, {}
        sound = [attempt for attempt in attempts if attempt.sound]
        if not sound:
            raise ProofError(f"no {fmt} form of the plan passed its proofs: {attempts[0].form}: {attempts[0].failure}")
        good = [attempt for attempt in sound if attempt.within(limit)]
        if not good:
            return min(sound, key=lambda a: a.drop.value if a.drop else 0.0), {}
        measured = self.latencies({a.form: a.path for a in good}, fmt) if len(good) > 1 else {}
        chosen = cost.fastest([a.form for a in good], measured)
        return next(a for a in good if a.form == chosen), {f"{fmt}/{form}": s for form, s in measured.items()}

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


class Unmet(BudgetError):
    """The budget cannot be met; `found` is the best attempt."""

    def __init__(self, found: Found, limit: float) -> None:
        worst = max((a for a in found.attempts.values()), key=lambda a: a.drop.value if a.drop else 0.0)
        value = worst.drop.value if worst.drop else 0.0
        metric = worst.drop.metric if worst.drop else "metric"
        blame = sorted(found.layers, key=lambda p: -p.lost_energy_share)[:3]
        factored = [f"{p.layer} (rank {p.rank}, {p.lost_energy_share:.1%} of its output energy)" for p in blame if p.rank]
        names = f"; it loses most in {', '.join(factored)}" if factored else ""
        super().__init__(
            f"no plan keeps the drop within {limit:g}: the best {worst.fmt} file ({worst.form}) drops {value:.2f} in {metric}"
            f"{names}",
            hint="allow more with --max-drop, a higher --rank, or --precision fp32",
        )
        self.found = found


def _worst(found: Found) -> float:
    return max((a.drop.value if a.drop else 0.0) for a in found.attempts.values())
