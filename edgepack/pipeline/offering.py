"""What every layer of a build could become and cost: ranks, other methods, losses and prices, put into menus."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edgepack.backends.schemes import SCHEMES
from edgepack.executor import Workers
from edgepack.factorize.methods import PATENTS
from edgepack.model.scheme import Format
from edgepack.pipeline.alternatives import fit_alternatives
from edgepack.pipeline.files import ModelFiles
from edgepack.pipeline.guarding import Data, Methods
from edgepack.pipeline.losses import predict_losses
from edgepack.pipeline.menus import Menu, make_menus, ranks_of, residuals_of
from edgepack.pipeline.opened import Opened
from edgepack.pipeline.pricing import Prices, make_prices
from edgepack.pipeline.sensitivity import Sensitivity
from edgepack.pipeline.task import Task
from edgepack.types import Array


def offered(
    task: Task,
    opened: Opened,
    data: Data,
    files: Mapping[Format, ModelFiles],
    sensitivity: Sensitivity,
    methods: Methods,
    unseen: Collection[str],
    share: float | None,
    key: str,
    workers: Workers,
) -> tuple[dict[Format, tuple[Menu, ...]], Prices]:
    """Menus of every format that is written, and their prices; `task` learns what other methods made, and its aim.

    Args:
        unseen: layers that the data never reached.
        share: of each layer's weights, that cross-validation chose; None where it did not.
        key: digest of the model, the data, and how the spectra came about.

    Raises:
        UsageError: a method is not installed, or a source of costs has nothing on the precision that was asked for.
        DeviceError: the workers, or this machine as a device, failed.
    """
    options, layers, largest = task.options, task.layers, task.rounder.largest
    schemes = tuple(scheme for fmt in files for scheme in SCHEMES[fmt])
    ranks = ranks_of(layers, options, unseen, share=share)
    residual = residuals_of(layers, options, unseen)
    task.alternatives = fit_alternatives(
        *(task.views, task.rounder.covariances, _moments(sensitivity, methods), methods.others, options.rank),
        schemes=schemes,
        seed=options.seed,
        largest=largest,
        key=key,
        cache=task.cache,
        workers=workers,
        progress=task.progress,
    )
    if not methods.pairs:
        ranks = {name: ((), task.alternatives.why.get(name)) for name in ranks}
        residual = dict.fromkeys(residual, ())
        only = task.alternatives.only_save_bytes
        if only is not None:
            task.aim = "size"
            task.warn(f"{options.method} {only}")
    for name in methods.others:
        if name in PATENTS:
            task.warn(f"{name} is covered by patent {PATENTS[name]}: see to it that you may use it")
    losses = predict_losses(
        *(task.views, task.spectra, sensitivity, schemes, {name: own for name, (own, _) in ranks.items()}),
        residual=residual,
        method=methods.factorizer,
        seed=options.seed,
        largest=largest,
        key=key,
        cache=task.cache,
        workers=workers,
        progress=task.progress,
    )
    prices = make_prices(
        *(options.target, opened, data.guard, options.seed, tuple(files), task.cache, task.progress),
        precision=options.precision,
        ranks=None if options.rank == "auto" or methods.others else {name: own for name, (own, _) in ranks.items()},
    )
    menus = {
        fmt: make_menus(
            *(one, layers, ranks, losses, prices, options, unseen),
            alternatives=task.alternatives,
            residual=residual,
            guarded=task.prover.guard.guarded,
        )
        for fmt, one in files.items()
    }
    return menus, prices


def _moments(sensitivity: Sensitivity, methods: Methods) -> dict[str, Array]:
    """G by layer name, where another method may ask for it."""
    return {name: one.moment for name, one in sensitivity.curvatures.items()} if methods.others else {}
