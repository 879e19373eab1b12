"""DeepThin against what it is compared with: all trained from scratch, at equal bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from models.mnist_mlp import digits
from torch import Tensor, nn

from edgepack.backends.onnx.schemes import FP32
from edgepack.methods import deepthin as relayout
from edgepack.methods.budget import in_8_bits
from edgepack.methods.pruning import pruning
from edgepack.model.layer import View
from edgepack.model.replacement import Replacement, dense, low_rank
from edgepack.model.types import Array
from edgepack.training.constexpr import ConstexprLinear
from seeds import claims, train
from seeds.lab import Lab, Made
from seeds.pairs import default_pairs, ranks

if TYPE_CHECKING:
    from seeds.bench import Bench, Group

SIZES = (784, 1000, 10)
METHODS = ("deepthin", "hashednet", "pruning", "low-rank")


def deepthin(bench: Bench) -> Group:
    """784-1000-10 with the hidden layer at some ratios; the output layer, 1.3 % of the weights, is dense int8."""
    settings = bench.settings
    found: dict[tuple[str, int], list[Made]] = {}
    dense: dict[str, list[Made]] = {"fp32": [], "int8": []}
    for seed in reversed(range(settings.seeds)):  # the first last: its files are measured
        for ratio in settings.ratios:
            small = bench.lab((784, width_at(ratio), 10), seed, tflite=seed == 0)
            found.setdefault(("hand-tuned", ratio), []).append(small.make("dense int8", [], dict))
        lab = bench.lab(SIZES, seed, tflite=seed == 0)
        for name, files in _dense(lab).items():
            dense[name].append(files)
        for ratio in settings.ratios:
            for name, made in _at(bench, lab, ratio, seed).items():
                found.setdefault((name, ratio), []).append(made)
    rows: list[dict[str, Any]] = []
    for ratio in settings.ratios:
        default = joined(found["default", ratio])
        for name in (*METHODS, "hand-tuned", "deepthin-conv"):
            title = f"{name}, trained: 784-1000-10, hidden layer at 1/{ratio} of its int8 bytes"
            if name == "hand-tuned":
                title = f"a smaller dense network, trained: 784-{width_at(ratio)}-10, as many int8 bytes"
            own = joined(found[name, ratio])
            rows.append(
                {"key": f"{name}-{ratio}", "title": title, "claim": _claim(name, ratio), "own": own, "default": default}
            )
    return {
        "name": "deepthin",
        "model": "784-1000-10",
        "dense": {name: joined(made) for name, made in dense.items()},
        "rows": rows,
    }


def width_at(ratio: int) -> int:
    """Of the hidden layer of a dense network with as many weights as 784-1000-10 with its hidden layer at a ratio."""
    inputs, hidden, outputs = SIZES
    return round((inputs * hidden / ratio + hidden * outputs) / (inputs + outputs))


def _claim(name: str, ratio: int) -> str:
    if name == "deepthin-conv":
        return claims.CLAIMS["deepthin-speed"]
    return claims.CLAIMS.get(f"hashednets-{ratio}" if name == "hashednet" else name, "see deepthin")


def _dense(lab: Lab) -> dict[str, Made]:
    return {"fp32": lab.make("dense fp32", [], dict, FP32), "int8": lab.make("dense int8", [], dict)}


def joined(made: list[Made]) -> Made:
    """Of several seeds: all accuracies, everything else from the last one."""
    return {**made[-1], "accuracy": [one["accuracy"] for one in made]}


def _at(bench: Bench, lab: Lab, ratio: int, seed: int) -> dict[str, Made]:
    """All methods at one ratio of one seed."""
    share, settings = 1 / ratio, bench.settings
    found: dict[str, Made] = {}
    for name in METHODS:
        bench.say(f"{name} at 1/{ratio}, seed {seed}")
        model = train.trained(bench.cache, train.Wanted(name, SIZES, share, settings.epochs, seed), digits()[:2])
        parts = trained_parts(model, lab.layers, share)
        what = [share, settings.epochs, seed]
        found[name] = lab.make(name, what, lambda parts=parts: parts)
        if name == "deepthin":
            hidden = lab.layers[0].name
            conv = {**parts, hidden: conv_form(model[0])}
            found["deepthin-conv"] = lab.make("deepthin-conv", what, lambda conv=conv: conv)
    bench.say(f"default at 1/{ratio}, seed {seed}")
    asked = ranks(lab.layers[:1], share)
    found["default"] = lab.make(
        "default, recovered", [asked, settings.recovery], lambda: default_pairs(lab, asked, settings.recovery)
    )
    return found


def trained_parts(model: nn.Sequential, layers: tuple[View, ...], share: float) -> dict[str, Replacement]:
    """What a trained network is, layer by layer; a dense hidden layer becomes a sparse one of that share of bytes."""
    modules = [module for module in model if not isinstance(module, nn.ReLU)]
    parts: dict[str, Replacement] = {}
    for module, layer in zip(modules, layers, strict=True):
        parts[layer.name] = _part(module, layer, share, last=layer is layers[-1])
    return parts


def _part(module: nn.Module, layer: View, share: float, *, last: bool) -> Replacement:
    if isinstance(module, ConstexprLinear):
        return in_8_bits(module.to_constexpr())
    if isinstance(module, nn.Sequential):
        return low_rank(_array(module[1].weight), _array(module[0].weight), _array(module[1].bias))
    weight, bias = _array(module.weight), _array(module.bias)
    if last:
        return dense(weight, bias)
    sparse = pruning(replace(layer, weight=weight, bias=bias, moments=None), share)
    if isinstance(sparse, str) or not sparse.structure.is_constexpr:
        raise ValueError(f"{layer.name}: {sparse}")
    return in_8_bits(sparse)


def conv_form(module: ConstexprLinear) -> Replacement:
    """The decode-free form of a layer that was trained in the decoded one."""
    constexpr = module.to_constexpr()
    layer = replace(train.blank(module.out_features, module.in_features), weight=constexpr.weight, bias=constexpr.bias)
    return in_8_bits(relayout.written_as_conv(constexpr.tensors["rows"].T, constexpr.tensors["filters"], layer))


def _array(tensor: Tensor) -> Array:
    return np.array(tensor.detach().numpy(), np.float32)
