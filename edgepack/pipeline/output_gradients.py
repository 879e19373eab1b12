"""Second moments of output gradients, for the methods that factor by them: had before spectra, kept in the cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgepack.data import Samples, feeds
from edgepack.errors import ModelError, UsageError
from edgepack.factorize import needs_gradients
from edgepack.pipeline.opened import Opened
from edgepack.pipeline.programs import with_program
from edgepack.torchgraph.draws import Kind
from edgepack.types import Array
from edgepack.workspace import Cache, Progress, digest

SAMPLES = 256
"""Of calibration. G of 64 samples orders plans well enough, but factors follow its small directions too."""

MOST_BYTES = 1 << 30
"""The second moments of all layers' gradients are held at once; for models of which they take more there are none."""

VERSION = 1
_HINT = "use --method whitened"


def moments_bytes(opened: Opened) -> int:
    """What G of all layers takes in memory."""
    return sum(8 * layer.out_features**2 for layer in opened.layers)


def gradient_kind(metric: str) -> Kind:
    """What the model's first output is to a guard metric."""
    return "vector" if metric == "cosine" else "classes"


def weighed(
    opened: Opened,
    method: str,
    calibration: Samples | None,
    metric: str,
    seed: int,
    key: str,
    cache: Cache,
    work: Path,
    progress: Progress,
) -> tuple[Opened, Mapping[str, Array] | None]:
    """The model as torch can run it, and G of its layers; as it is, and None, where the method does not ask for G.

    Raises:
        UsageError: the method asks for G, and there are no gradients.
    """
    if not needs_gradients(method) or calibration is None:
        return opened, None
    progress("output gradients")
    source = differentiable(opened, method, calibration, seed, cache, work)
    return source, output_gradients(source, method, calibration, metric, seed, key, cache, progress)


def differentiable(opened: Opened, method: str, samples: Samples, seed: int, cache: Cache, work: Path) -> Opened:
    """The model with a torch program: its own, or, for an ONNX source, one that is proved to answer alike.

    Raises:
        UsageError: torch cannot run the model, so that the method cannot be used.
    """
    if opened.program_path is not None:
        return opened
    _require_torch(method)
    try:
        return with_program(opened, samples, seed, cache, work)
    except ModelError as err:
        raise UsageError(
            f"--method {method} needs output gradients, for which torch has to run the model: {err.message}",
            hint=f"{_HINT}, or give the torch model",
        ) from err


def _require_torch(method: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            f"--method {method} needs output gradients, and torch is not installed",
            hint=f"pip install 'edgepack[tflite]', or {_HINT}",
        )


def output_gradients(
    opened: Opened,
    method: str,
    calibration: Samples,
    metric: str,
    seed: int,
    key: str,
    cache: Cache,
    progress: Progress,
) -> dict[str, Array]:
    """G by layer name, (out, out) float64 each; layers that no gradient reaches are absent.

    Args:
        opened: with a torch program.
        method: the factorizer that asks for it, for messages.
        key: digest of the model and the calibration data.

    Raises:
        UsageError: there are no gradients, so that the method cannot be used.
    """
    entry = digest("output gradients", VERSION, key, gradient_kind(metric), seed, SAMPLES)
    return cache.arrays("gradients", entry, lambda: _measured(opened, method, calibration, metric, seed, progress))


def _measured(
    opened: Opened, method: str, calibration: Samples, metric: str, seed: int, progress: Progress
) -> dict[str, Array]:
    from edgepack.torchgraph.gradients import gradient_moments

    if opened.program_path is None:
        raise ValueError("there is no torch program")
    needed = moments_bytes(opened)
    if needed > MOST_BYTES:
        raise UsageError(
            f"--method {method}: the output gradients of all layers would take {needed / 2**30:.1f} GiB, "
            f"at most {MOST_BYTES / 2**30:.0f} GiB are held",
            hint=_HINT,
        )
    progress("output gradients")
    feed = first_feeds(opened, calibration, SAMPLES)
    try:
        found = gradient_moments(
            opened.program_path, opened.layers, feed, seed, kind=gradient_kind(metric), samples=SAMPLES
        )
    except ModelError as err:
        raise UsageError(f"--method {method}: {err.message}", hint=_HINT) from err
    if not found:
        raise UsageError(
            f"--method {method} needs output gradients, and none reaches a layer from the model's first output",
            hint=_HINT,
        )
    return found


def first_feeds(opened: Opened, calibration: Samples, samples: int) -> Iterator[Mapping[str, Array]]:
    """Inputs of the first runs of the model."""
    for feed, _ in feeds(calibration.head(samples), opened.inputs):
        yield feed
