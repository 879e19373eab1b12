"""Ways to weigh factors, to refit them and to shrink covariances, on real digits and without training.

`python bench/measure_weighting.py [TABLE...]` writes bench/results/weighting.json. Everything is chosen on the 4,000
digits that the models were trained on; the 1,000 held-out digits are scored once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import mnist_mlp

from edgepack.backends.onnx.schemes import INT8_DYNAMIC
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.backends.runtime import load, predict
from edgepack.data import Samples
from edgepack.factorize import fisher, svd, two_sided, whitened
from edgepack.factorize.shrinkage import fixed
from edgepack.model.kinds import views_of
from edgepack.model.kinds.matrix import linear_ops
from edgepack.model.layer import View
from edgepack.model.model import Model
from edgepack.model.replacement import Replacement
from edgepack.model.scheme import FileScheme
from edgepack.model.statistics import moments
from edgepack.model.structure import DENSE, low_rank
from edgepack.model.types import Array, LayerPlan
from edgepack.pipeline.activations import Covariances, Subject
from edgepack.pipeline.decompositions import decompose
from edgepack.pipeline.refit import Refitter
from edgepack.pipeline.rounding import Part, Rounder
from edgepack.plan.candidates import break_even_rank
from edgepack.sources import open_model
from edgepack.sources.torch import export_program, save_program
from edgepack.torchgraph.gradients import SAMPLES, Sampling, gradient_moments
from edgepack.workspace import Cache, Workspace

SEEDS = (0, 1, 2)
RANKS = (8, 12, 16, 24)
REFIT_RANKS = (8, 12, 16)
DEEP = (784, 128, 128, 128, 10)
DAMPINGS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
SPLITS = 3
ROWS = (200, 1000, 4000)
REFIT_ROWS = (200, 4000)
SHRUNK_RANKS = (16, 32, 64, 128)
SCHEME = FileScheme.of(INT8_DYNAMIC)


@dataclass(frozen=True)
class Trained:
    """A trained perceptron as a build opens it."""

    opened: Model
    seed: int

    @property
    def layers(self) -> tuple[View, ...]:
        """Their matrices, in order."""
        return views_of(self.opened.layers)

    def scores(self, x: Array, first: Replacement | None = None) -> Array:
        """(N, 10), in float32, with factors in place of the first layer."""
        for index, layer in enumerate(self.layers):
            pair = first if index == 0 else None
            bias = layer.bias if pair is None else pair.bias
            x = (x @ layer.weight.T if pair is None else (x @ pair.B.T) @ pair.A.T) + bias
            if index < len(self.layers) - 1:
                x = np.maximum(x, 0)
        return x

    def gradient(self, x: Array) -> Array:
        """G of the first layer, from the first samples."""
        assert self.opened.program is not None
        feeds = ({self.opened.inputs[0].name: row[None]} for row in x)
        sampling = Sampling("classes", self.seed)
        found = gradient_moments(self.opened.program, self.opened.layers[:1], feeds, sampling)
        return found[self.layers[0].name]


def measure(*, quick: bool = False, only: Sequence[str] = ()) -> dict[str, Any]:
    """The tables, or some of them; a quick run looks at one model."""
    seeds = SEEDS[:1] if quick else SEEDS
    x, _, test_x, test_y = mnist_mlp.digits()
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as name:
        folder = Path(name)
        models = [trained(mnist_mlp.SIZES, seed, folder) for seed in seeds]
        tables: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "methods": lambda: [row for model in models for row in methods(model, x, test_x, test_y)],
            "refit": lambda: [
                row for seed in seeds for row in refits(trained(DEEP, seed, folder), x, test_x, test_y, folder)
            ],
            "shrinkage": lambda: [row for model in models for row in shrinkages(model, x, test_x, test_y)],
            "damping": lambda: dampings(models, x),
        }
        found = {name: tables[name]() for name in only or tables}
        return {"seeds": len(seeds), "gradient_samples": SAMPLES, **found}


def trained(sizes: Sequence[int], seed: int, folder: Path) -> Trained:
    """A perceptron of these sizes on the 4,000 digits."""
    x, y, _, _ = mnist_mlp.digits()
    program = export_program(mnist_mlp.train(x, y, sizes, seed), (torch.zeros(1, sizes[0]),))
    path = folder / f"{'-'.join(map(str, sizes))}.{seed}.pt2"
    save_program(program, path)
    work = folder / path.stem
    work.mkdir()
    return Trained(open_model(str(path), work), seed)


def accuracy(scores: Array, labels: Array) -> float:
    """In percent."""
    return round(float((scores.argmax(axis=1) == labels).mean() * 100), 4)


def divergence(reference: Array, scores: Array) -> float:
    """Mean Kullback–Leibler divergence of the answers from the original's, in nats."""
    p, q = (torch.log_softmax(torch.from_numpy(one).double(), -1) for one in (reference, scores))
    return float((p.exp() * (p - q)).sum(-1).mean())


def methods(model: Trained, x: Array, test_x: Array, test_y: Array) -> list[dict[str, Any]]:
    """Accuracy and divergence on the held-out digits, the first layer in float factors by each method."""
    layer = replace(model.layers[0], moments=moments([{"x": x}])["x"])
    moment, dense = model.gradient(x), model.scores(test_x)
    spectra = {
        "svd": svd.spectrum(layer),
        "fisher": fisher.spectrum(layer, moment),
        "whitened": whitened.spectrum(layer),
        "two-sided": two_sided.spectrum(layer, moment),
    }
    rows: list[dict[str, Any]] = [{"seed": model.seed, "method": "dense", "accuracy": accuracy(dense, test_y)}]
    for name, spectrum in spectra.items():
        for rank in RANKS:
            found = model.scores(test_x, two_sided.factors(layer, spectrum, rank))
            scored = {"accuracy": accuracy(found, test_y), "divergence": round(divergence(dense, found), 5)}
            rows.append({"seed": model.seed, "method": name, "rank": rank, **scored})
    return rows


def refits(model: Trained, x: Array, test_x: Array, test_y: Array, work: Path) -> list[dict[str, Any]]:
    """Accuracy of files with int8 factors in all layers but the last, as a build makes them, refitted or not."""
    opened, workspace = model.opened, Workspace(Cache(work / f"cache.{model.seed}"), work)
    spec = opened.inputs[0]
    rows: list[dict[str, Any]] = []
    for count in REFIT_ROWS:
        samples, test = Samples({spec.name: x[:count]}), Samples({spec.name: test_x})
        subject = Subject(opened, samples, f"{model.seed} {count}")
        spectra, _ = decompose(subject, "whitened", workspace)
        rounder = Rounder(Covariances(subject, workspace), "whitened", 127, {}, workspace)
        files, path = OnnxWriter(opened.content, samples, qmax=127), work / "refit.onnx"
        dense = model.scores(test_x)
        for rank in REFIT_RANKS:
            plan = [_choice(layer, rank) for layer in model.layers[:-1]] + [_choice(model.layers[-1], None)]
            chosen = zip(model.layers, spectra, plan, strict=True)
            kept = {
                one.name: rounder.factors(one, s, p.structure, INT8_DYNAMIC)
                for one, s, p in chosen
                if p.structure.is_low_rank
            }
            parts = [
                Part(view, one, p.structure, p.scheme_in(SCHEME))
                for view, one, p in zip(model.layers, spectra, plan, strict=True)
            ]
            fitted = Refitter(opened, rounder, samples).factors(parts)
            for name, factors in (("as factored", kept), ("refitted", fitted)):
                files.write(factors, SCHEME, path)
                found = predict(load(path, "onnx", exact=True), test)
                scored = {"accuracy": accuracy(found, test_y), "divergence": round(divergence(dense, found), 5)}
                rows.append({"seed": model.seed, "samples": count, "rank": rank, "factors": name, **scored})
        rows.append({"seed": model.seed, "samples": count, "factors": "dense", "accuracy": accuracy(dense, test_y)})
    return rows


def _choice(layer: View, rank: int | None) -> LayerPlan:
    sides = layer.out_features, layer.in_features
    structure = DENSE if rank is None else low_rank(rank)
    dense, ops = (linear_ops(*sides, one, 1) for one in (DENSE, structure))
    return LayerPlan(layer.name, dense, structure, ops, break_even_rank(*sides), 0.0, "", scheme=INT8_DYNAMIC)


def shrinkages(model: Trained, x: Array, test_x: Array, test_y: Array) -> list[dict[str, Any]]:
    """Output energy of the first layer lost on the held-out digits: with the λ of a build over that of n/(n + 4N)."""
    opened, rows = model.opened, []
    for count in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            samples = Samples({opened.inputs[0].name: x[:count]})
            made = Covariances(Subject(opened, samples, "key"), Workspace(Cache(Path(folder)), Path(folder)))
            seen = made.of(opened.layers[0].name)
        assert seen is not None
        layer = replace(model.layers[0], moments=seen)
        rule = replace(layer, moments=replace(seen, shrinkage=None))
        for rank in SHRUNK_RANKS:
            pairs = [whitened.factors(one, whitened.spectrum(one), rank) for one in (layer, rule)]
            lost = [float(np.square((test_x - seen.mean) @ (layer.weight - p.A @ p.B).T).sum()) for p in pairs]
            rows.append(
                {
                    "seed": model.seed,
                    "samples": count,
                    "rank": rank,
                    "chosen": None if seen.shrinkage is None else round(seen.shrinkage, 5),
                    "rule": round(fixed(seen), 5),
                    "lost_ratio": round(lost[0] / lost[1], 5),
                    "accuracy": accuracy(model.scores(test_x, pairs[0]), test_y),
                    "accuracy_rule": accuracy(model.scores(test_x, pairs[1]), test_y),
                }
            )
    return rows


def dampings(models: Sequence[Trained], x: Array) -> list[dict[str, Any]]:
    """Divergence on held-out calibration digits over that of whitening: what `two_sided.DAMPING` was chosen by."""
    logs: dict[tuple[int, float], list[float]] = {}
    for model in models:
        order = np.random.default_rng(model.seed).permutation(len(x))
        for split in range(SPLITS):
            held_out, rest = x[order[split::SPLITS]], np.delete(order, np.s_[split::SPLITS])
            dense = model.scores(held_out)
            for count in (SAMPLES, len(x) // SPLITS * (SPLITS - 1)):
                seen = x[rest[:count]]
                layer = replace(model.layers[0], moments=moments([{"x": seen}])["x"])
                moment, plain = model.gradient(seen), whitened.spectrum(layer)
                spectra = {damping: two_sided.spectrum(layer, moment, damping) for damping in DAMPINGS}
                for rank in RANKS:
                    base = divergence(dense, model.scores(held_out, whitened.factors(layer, plain, rank)))
                    for damping, spectrum in spectra.items():
                        found = model.scores(held_out, two_sided.factors(layer, spectrum, rank))
                        logs.setdefault((count, damping), []).append(float(np.log(divergence(dense, found) / base)))
    return [
        {"samples": count, "damping": damping, "divergence_ratio": round(float(np.exp(np.mean(found))), 4)}
        for (count, damping), found in logs.items()
    ]


if __name__ == "__main__":
    import sys

    from figures_file import store

    store("weighting", measure(only=sys.argv[1:]))
