"""Teacher and students as graphs: the original program, and the same with thin layers that can be trained.

A student runs what will be emitted: the thin layers come from `with_factors`, as in a TFLite file, and round their
weights and inputs as the file does. All graphs share their parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from edgepack.distill.fake import Rounding
from edgepack.distill.graphs import adopt, returning, thin_index, thin_outputs, with_rounding
from edgepack.distill.schedule import stage_sizes
from edgepack.errors import ModelError
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.types import Array
from edgepack.torchgraph import LayerKey, TorchLinear, match_layers, with_factors

if TYPE_CHECKING:
    from torch.fx import GraphModule
    from torch.nn import Parameter


NO_ROUNDING: Mapping[str, Rounding] = MappingProxyType({})


@dataclass(frozen=True)
class Stage:
    """Graphs of one stage, in which the first layers are thin and the others dense.

    Each returns a flat tuple: the first output, then further float outputs, then the outputs of the thin layers.
    """

    teacher: GraphModule
    student: GraphModule


@dataclass(frozen=True, eq=False)
class Student:
    """A program with thin layers.

    Attributes:
        factors: of the thin layers from the input on, as given.
        stages: the last one has all layers thin.
        parameters: what is trained, by name, float32; shared by all graphs.
        start: their values at the start.
        missing: names of the layers that the program does not have; they keep the factors they were given.
        roundings: of the thin layers, by name; those without one are floats in the file.
        products: multiplications of the dense layers in one run of the program.
    """

    factors: Mapping[str, Replacement]
    stages: tuple[Stage, ...]
    parameters: Mapping[str, Parameter]
    start: Mapping[str, Array]
    missing: tuple[str, ...]
    roundings: Mapping[str, Rounding]
    products: int

    def trained(self, values: Mapping[str, Array]) -> dict[str, Replacement]:
        """Factors by layer name, from values of `parameters`.

        A layer may carry its bias elsewhere in the torch graph: so its bias is the one it had plus what training
        changed.
        """
        return {name: self._pair(f"edgepack_{i}", pair, values) for i, (name, pair) in enumerate(self.factors.items())}

    def others(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Values of the parameters that belong to no thin layer, by their names in the program."""
        return {name: value for name, value in values.items() if thin_index(name) is None}

    def _pair(self, prefix: str, given: Replacement, values: Mapping[str, Array]) -> Replacement:
        bias, name = given.bias, f"{prefix}_bias"
        if name in values:
            change = values[name].reshape(-1).astype(np.float64) - self.start[name].reshape(-1)
            bias = np.asarray(change if bias is None else bias + change, np.float32)
        tensors = {role: values[f"{prefix}_{role}"].reshape(old.shape).copy() for role, old in given.tensors.items()}
        return Replacement(given.structure, tensors, bias)


def build_student(
    module: GraphModule,
    layers: Sequence[Layer | LayerKey],
    factors: Mapping[str, Replacement],
    roundings: Mapping[str, Rounding] = NO_ROUNDING,
    *,
    staged: bool = True,
    others: bool = False,
) -> Student:
    """Put factors in place of layers, to be trained.

    Args:
        module: the original program, as `flat_module` gives it; not changed.
        layers: all of the model, so that layers with equal weights are told apart.
        factors: by layer name, at least one.
        roundings: by layer name, of those that the file rounds.
        staged: whether deep models get their thin layers a few at a time, from the input on.
        others: also train all vectors that are not part of a thin layer: biases, scales and shifts of normalisations.

    Raises:
        ModelError: no layer of the program has the weights of any of the factored ones; a layer is not float32; the
            factors have other shapes than the layer.
    """
    sites = match_layers(module, layers).nodes
    depth = {node: index for index, node in enumerate(module.graph.nodes)}
    found = sorted((n for n in factors if n in sites), key=lambda name: min(depth[s.node] for s in sites[name]))
    if not found:
        raise ModelError(
            f"none of the {len(factors)} factored layers is in the torch program",
            hint="distillation needs the torch program that the model was exported from",
        )
    _check_float32(found, sites)
    places = {name: sorted((site.node for site in sites[name]), key=depth.__getitem__) for name in found}
    shared: dict[str, Parameter] = {}
    stages: list[Stage] = []
    for size in reversed(stage_sizes(len(found)) if staged else (len(found),)):
        names = found[:size]
        plain = with_factors(module, layers, {name: factors[name] for name in names})
        adopt(plain, shared, others=others)
        watched = [node for nodes in thin_outputs(plain, len(names)) for node in nodes]
        plain = returning(plain, watched)
        teacher = returning(module, [node for name in names for node in places[name]])
        numbered = {index: roundings[name] for index, name in enumerate(names) if name in roundings}
        stages.insert(0, Stage(teacher, with_rounding(plain, numbered)))
    trained = {name: parameter for name, parameter in shared.items() if parameter.requires_grad}
    start = {name: parameter.detach().numpy().copy() for name, parameter in trained.items()}
    missing = tuple(name for name in factors if name not in sites)
    own = {name: roundings[name] for name in found if name in roundings}
    products = sum(site.node.meta["val"].numel() * site.weight.shape[1] for name in found for site in sites[name])
    return Student({n: factors[n] for n in found}, tuple(stages), trained, start, missing, own, products)


def _check_float32(names: Sequence[str], sites: Mapping[str, Sequence[TorchLinear]]) -> None:
    import torch

    for name in names:
        for site in sites[name]:
            dtype = site.node.meta["val"].dtype
            if dtype != torch.float32:
                raise ModelError(f"{name}: it computes in {dtype}, distillation trains float32 layers")
