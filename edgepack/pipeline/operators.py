"""`edgepack inspect FILE --target`: what each operator of a model file takes on a target, and why it is slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from edgepack.backends.operators import Operator
from edgepack.backends.registry import FACTS, FORMATS, backend
from edgepack.cost.model import CLEARLY, CostSource, LatencyEstimate
from edgepack.cost.roofline import Roofline, roofline
from edgepack.cost.select import cost_source, dense_int8, estimates_of
from edgepack.cost.slow import X86, Slow, slow
from edgepack.data import example
from edgepack.errors import UsageError
from edgepack.model.point import Point
from edgepack.model.scheme import Format, Scheme
from edgepack.model.structure import DENSE, Op, as_matrix, copied, is_depthwise
from edgepack.pipeline.datasets import load_data, with_open_sides
from edgepack.pipeline.inspect import InspectOptions
from edgepack.sources import open_model
from edgepack.targets.target import HOST, Target
from edgepack.workspace import Cache, Progress, open_workspace, silent

TIMED = "timed on this machine"


@dataclass(frozen=True)
class OperatorReport:
    """One operator, in order of execution.

    Attributes:
        scheme: of its products by constant matrices; None where there are none, or no scheme multiplies so.
        shape: outputs and inputs of the first of them; None where there are none.
        vectors: that one inference multiplies by it.
        macs: of all of them.
        latency_s: of one inference; None where nothing is known of it.
        share: of all that is known.
        slow: why its kernel is slow on the target, and `build` what a build does about it; None where it is not.
        faster_in: the scheme in which its matrix would take least, by the estimates that a build goes by, and
            `faster_by` how many times less; None where that is not clear, or it has no single matrix.
    """

    name: str
    op: str
    scheme: str | None
    shape: tuple[int, int] | None
    vectors: int | None
    macs: int
    latency_s: float | None
    share: float | None
    slow: str | None
    build: str | None
    faster_in: str | None
    faster_by: float | None


@dataclass(frozen=True)
class OperatorsReport:
    """All operators of a file.

    Attributes:
        timed_by: where latencies come from; `compared_by` the same of the comparison of schemes.
        latency_s: the sum of those that are known.
        stays: what a build leaves as it is, and why; None where there is nothing of the kind.
    """

    model: str
    format: Format
    target: str
    timed_by: str
    compared_by: str
    latency_s: float
    operators: tuple[OperatorReport, ...]
    stays: str | None
    warnings: tuple[str, ...]


def inspect_operators(
    options: InspectOptions, target: Target, cache: Cache | None = None, progress: Progress = silent
) -> OperatorsReport:
    """What each operator of an ONNX or TFLite file takes on a target: timed where that is this machine, else estimated
    by the source of costs that a build for it would choose, as far as it goes.

    Raises:
        UsageError: `options.model` is no such file.
        TargetsError: the target has no runtime for it.
        InputError: bad model or data.
    """
    path = Path(options.model)
    fmt = path.suffix.removeprefix(".")
    if fmt not in FORMATS:
        raise UsageError(
            f"--target shows the operators of a model file: found {options.model}, expected .{' or .'.join(FORMATS)}",
            hint="build a pack and look at the file in it",
        )
    target.require_format(fmt)
    here = target.name == HOST
    with open_workspace(cache or Cache(), seed=options.seed, progress=progress) as workspace:
        progress("open model")
        opened = open_model(options.model, workspace.folder, given=options.inputs)
        opened = with_open_sides(opened, options.data, workspace)
        loaded = load_data(options.data, opened, options.model, options.seed, images=options.images)
        feed = example(loaded.calibration, opened.inputs, options.seed)
        progress("time operators" if here else "list operators")
        found = backend(fmt).operators(path, feed, timed=here, unsigned=target.arch in X86)
        progress("estimate operators")
        estimates = _Estimates.of(target, fmt, found)
        seconds = [one.seconds if here else estimates.latency_s(one) for one in found]
        total = sum(one for one in seconds if one is not None)
        return OperatorsReport(
            model=str(path),
            format=fmt,
            target=target.name,
            timed_by=TIMED if here else estimates.source.name,
            compared_by=estimates.source.name,
            latency_s=total,
            operators=tuple(
                _report(one, spent, total, slow(one, fmt, target), estimates)
                for one, spent in zip(found, seconds, strict=True)
            ),
            stays=opened.fixed or opened.left,
            warnings=workspace.warnings,
        )


def _report(
    operator: Operator, seconds: float | None, total: float, why: Slow | None, estimates: _Estimates
) -> OperatorReport:
    first = operator.products[0] if operator.products else None
    better = estimates.better(operator)
    return OperatorReport(
        name=operator.name,
        op=operator.kind,
        scheme=None if operator.scheme is None else operator.scheme.name,
        shape=None if first is None else (first.rows, first.inputs),
        vectors=None if first is None else first.vectors,
        macs=operator.macs,
        latency_s=seconds,
        share=seconds / total if seconds is not None and total else None,
        slow=None if why is None else why.why,
        build=None if why is None else why.build,
        faster_in=None if better is None else better[0].name,
        faster_by=None if better is None else better[1],
    )


@dataclass(frozen=True)
class _Estimates:
    """What matrices take on a target in one format, of one source."""

    source: CostSource
    sheet: Roofline
    fmt: Format

    @classmethod
    def of(cls, target: Target, fmt: Format, operators: Sequence[Operator]) -> _Estimates:
        matrices = (as_matrix(op) for one in operators for op in one.products)
        points = dense_int8(fmt, [(op.rows, op.columns, op.vectors) for op in matrices])
        return cls(cost_source(target, fmt, points), roofline(target), fmt)

    def latency_s(self, operator: Operator) -> float | None:
        """Of the products of an operator; None of any other, and where the source has nothing on them: depthwise
        convolutions have kernels of their own, of which no estimate of a matrix tells."""
        if operator.scheme is None or not operator.products or any(map(is_depthwise, operator.products)):
            return None
        found = [self._product_s(op, operator.scheme) for op in operator.products]
        known = [one for one in found if one is not None]
        return sum(known) if len(known) == len(found) else None

    def _product_s(self, op: Op, scheme: Scheme) -> float | None:
        """Of a convolution where the source has figures of these, else of a matrix that multiplies its patches, and of
        laying these out."""
        (convolved,) = self._convolved(op, [scheme])
        if convolved is not None:
            return convolved.latency_s
        (found,) = self._of(op, [scheme])
        patches_s = copied(op) * FACTS[self.fmt].patch_value / self.sheet.instructions_s
        return None if found is None else found.latency_s + patches_s

    def better(self, operator: Operator) -> tuple[Scheme, float] | None:
        """The scheme in which the only matrix of an operator takes clearly less, and how many times less."""
        if len(operator.products) != 1 or operator.scheme is None:
            return None
        (op,), schemes = operator.products, FACTS[self.fmt].schemes.layers
        if prod(op.kernel) > 1:
            return None
        wanted = (operator.scheme, *schemes)
        convolved = self._convolved(op, wanted)
        own, *others = convolved if convolved[0] is not None else self._of(op, wanted)
        known = [(one.latency_s, scheme) for one, scheme in zip(others, schemes, strict=True) if one is not None]
        if own is None or not known:
            return None
        least, scheme = min(known, key=lambda one: one[0])
        return (scheme, own.latency_s / least) if least < CLEARLY * own.latency_s else None

    def _convolved(self, op: Op, schemes: Sequence[Scheme]) -> list[LatencyEstimate | None]:
        if op.kind != "conv":
            return [None] * len(schemes)
        return estimates_of(self.source, [Point(scheme, DENSE, (op,)) for scheme in schemes], self.sheet)

    def _of(self, op: Op, schemes: Sequence[Scheme]) -> list[LatencyEstimate | None]:
        return estimates_of(self.source, [Point(scheme, DENSE, (as_matrix(op),)) for scheme in schemes], self.sheet)
