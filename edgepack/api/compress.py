"""`edgepack.compress`: model in, model out; no target, no pack, no search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepack.api.given import GivenModel, GivenSamples, named_model, named_samples
from edgepack.api.progress import Wanted, heard
from edgepack.errors import UsageError
from edgepack.methods.registry import factorizer, needs_gradients, outside_version
from edgepack.model.kinds import kind_of, view_name, views_of
from edgepack.model.layer import Layer, View
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.types import Spectrum
from edgepack.natives import native
from edgepack.pipeline.activations import Subject
from edgepack.pipeline.datasets import choose_method, load_data
from edgepack.pipeline.decompositions import decompose
from edgepack.plan.candidates import AskedRank
from edgepack.sources import check_installed, open_model
from edgepack.workspace import Cache, digest, open_workspace


def compress(
    model: GivenModel,
    rank: int | float = 0.25,
    *,
    data: GivenSamples | None = None,
    example_inputs: Sequence[Any] | None = None,
    method: str | None = None,
    progress: Wanted = True,
) -> Any:
    """The model with low-rank factors in the place of every layer where they have fewer weights, all in float32.

    Args:
        model, data, example_inputs, progress: see `build`. All data are calibration data here: nothing measures what
            the model loses, which `build` does.
        rank: of every layer (int), or the share of each layer's weights that its factors may have (float).
        method: factorizer; None for whitened with data and svd without.

    Returns:
        An `onnx.ModelProto` of an ONNX model; a `torch.fx.GraphModule` of a torch or keras model or a recipe, which
        answers with a tensor where that does, and else with a tuple of tensors; the bytes of a `.tflite` file.

    Raises:
        UsageError, InputError: bad arguments, model or data.
    """
    if isinstance(rank, float) and not 0 < rank < 1:
        raise UsageError(f"rank {rank}: a share of a layer's weights lies between 0 and 1")
    with (
        named_model(model, example_inputs) as spec,
        named_samples(data) as samples,
        heard(progress) as told,
        open_workspace(Cache(), progress=told) as workspace,
    ):
        wanted = {"onnx": ("onnx",), "tflite": ("tflite",), "torch": ()}
        told("open model")
        opened = open_model(spec, workspace.folder, wanted[check_installed(spec).native])
        loaded = load_data(samples, opened, spec, workspace.seed, trains=True)
        chosen = choose_method(method, loaded)
        if needs_gradients(chosen):
            raise UsageError(f"method {chosen} weighs by gradients of a metric, which only `build` has")
        subject = Subject(opened, loaded.calibration, digest(opened.sha256, loaded.digest(), *outside_version(chosen)))
        spectra, _ = decompose(subject, chosen, workspace)
        views = {view.name: (view, spectrum) for view, spectrum in zip(subject.views, spectra, strict=True)}
        grid = AskedRank(rank, worthwhile=True)
        parts = {layer.name: part for layer in opened.layers if (part := _factored(layer, grid, chosen, views))}
        thin, _ = native(opened.native).with_factors(opened.content, parts)
        return _as_given(opened, thin)


def _factored(
    layer: Layer, grid: AskedRank, method: str, views: dict[str, tuple[View, Spectrum]]
) -> Replacement | None:
    """None where no factors of the rank have fewer weights."""
    kind = kind_of(layer)
    structure = next((one for one in kind.structures(layer, grid) if one.is_low_rank), None)
    if structure is None or not views_of([layer]):
        return None
    found = {}
    for name, part in kind.parts(layer, structure).items():
        view, spectrum = views[view_name(layer.name, name)]
        found[name] = factorizer(method).factors(view, spectrum, part.ranks[0])
    return kind.replace(layer, structure, found)


def _as_given(opened: Model, thin: Any) -> Any:
    if opened.native == "onnx":
        import onnx_ir

        return onnx_ir.to_proto(thin)
    if opened.native == "torch":
        return _answering_as(opened.content.path, thin.module)
    return thin.content


def _answering_as(program: Path, module: Any) -> Any:
    """The module; where the program answers with one tensor, so does it, and not with a tuple of it."""
    from edgepack.torchgraph import load_program

    if load_program(program).call_spec.out_spec.is_leaf():
        (output,) = (node for node in module.graph.nodes if node.op == "output")
        output.args = (output.args[0][0],)
        module.recompile()
    return module
