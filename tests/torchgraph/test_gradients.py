"""Gradient moments of real torch modules, against gradients that autograd gives on the module itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.backends.onnx.schemes import FP32
from edgepack.errors import ModelError
from edgepack.factorize import svd, two_sided, whitened
from edgepack.model.kinds import views_of
from edgepack.model.kinds.linear import linear_layer
from edgepack.model.layer import Layer
from edgepack.model.replacement import Replacement
from edgepack.model.statistics import moments
from edgepack.model.structure import low_rank
from edgepack.model.types import Array, Curvature, Spectrum
from edgepack.plan.loss import Wanted, layer_losses
from edgepack.sources.torch import export_program, save_program
from edgepack.torchgraph import find_linears, flat_module
from edgepack.torchgraph.draws import EXACT_CLASSES
from edgepack.torchgraph.gradients import Sampling, curvatures, gradient_moments

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

Rows = Callable[[torch.Tensor], torch.Tensor]


def saved(model: nn.Module, path: Path, *inputs: torch.Tensor) -> tuple[Path, list[Layer]]:
    """The model as a program file, and its linear layers under the names of their weights."""
    program = export_program(model.eval(), inputs)
    save_program(program, path / "model.pt2")
    found = {site.name: site for site in find_linears(flat_module(program))}
    return path / "model.pt2", [linear_layer(n, s.weight, s.bias) for n, s in found.items()]


def feeds(*arrays: Array, name: str | None = "x") -> Iterator[dict[str, Array]]:
    for rows in zip(*arrays, strict=True):
        yield {name if name and len(rows) == 1 else f"input_{i}": row for i, row in enumerate(rows)}


def curvature(logits: torch.Tensor) -> torch.Tensor:
    p = torch.softmax(logits, -1)
    return torch.diag(p) - torch.outer(p, p)


def by_hooks(
    model: nn.Module,
    watched: Mapping[str, tuple[nn.Module, Rows]],
    samples: list[tuple[torch.Tensor, ...]],
    weigh: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, Array]:
    """E Σ_rows J H Jᵀ with all of J: one backward pass per output, by forward hooks on the module."""
    total: dict[str, Array] = {}
    outputs: list[tuple[str, torch.Tensor]] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: outputs.append((name, out)))
        for name, (module, _) in watched.items()
    ]
    for inputs in samples:
        outputs.clear()
        y = model(*inputs)
        flat = (y[0] if isinstance(y, tuple) else y).reshape(-1)
        weight = weigh(flat.detach()).double()
        passes = [torch.autograd.grad(v, [o for _, o in outputs], retain_graph=True) for v in flat]
        for index, (name, _) in enumerate(outputs):
            jacobian = torch.stack([watched[name][1](g[index]) for g in passes]).double()  # (outputs, rows, features)
            moment = torch.einsum("arf,ab,brg->fg", jacobian, weight, jacobian)
            total[name] = total.get(name, 0) + moment.numpy() / len(samples)
    for handle in handles:
        handle.remove()
    return total


def last_axis(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.reshape(-1, gradient.shape[-1])


def relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def mlp(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, classes))


def test_few_classes_give_the_fisher_matrix_itself(tmp_path: Path) -> None:
    model = mlp()
    path, layers = saved(model, tmp_path, torch.zeros(1, 6))
    xs = np.random.default_rng(0).standard_normal((20, 1, 6)).astype(np.float32)
    found = gradient_moments(path, layers, feeds(xs, name="input"), Sampling("classes", 0))
    watched = {"0.weight": (model[0], last_axis), "2.weight": (model[2], last_axis)}
    wanted = by_hooks(model, watched, [(torch.from_numpy(x),) for x in xs], curvature)
    for name, moment in wanted.items():
        np.testing.assert_allclose(found[name], moment, rtol=1e-4, atol=1e-7)
    # At the logits themselves it is the mean of diag(p) − p pᵀ, with no Jacobian in between.
    with torch.no_grad():
        direct = np.mean([curvature(model(torch.from_numpy(x))[0]).numpy() for x in xs], axis=0)
    np.testing.assert_allclose(found["2.weight"], direct, rtol=1e-4, atol=1e-7)
    assert found["0.weight"].dtype == np.float64


def test_probabilities_count_as_the_logits_behind_them(tmp_path: Path) -> None:
    xs = (3 * np.random.default_rng(1).standard_normal((10, 1, 6))).astype(np.float32)
    found = []
    for model in (mlp(), nn.Sequential(*mlp(), nn.Softmax(-1))):
        path, layers = saved(model, tmp_path, torch.zeros(1, 6))
        found.append(gradient_moments(path, layers, feeds(xs, name="input"), Sampling("classes", 0)))
    for name, moment in found[0].items():
        np.testing.assert_allclose(found[1][name], moment, rtol=1e-3, atol=1e-6)


def test_draws_of_many_classes_have_the_fisher_matrix_as_their_mean(tmp_path: Path) -> None:
    model = mlp(classes=2 * EXACT_CLASSES)
    path, layers = saved(model, tmp_path, torch.zeros(8, 6))
    xs = np.random.default_rng(2).standard_normal((150, 8, 6)).astype(np.float32)
    found = gradient_moments(path, layers, feeds(xs, name="input"), Sampling("classes", 0, samples=1200))
    with torch.no_grad():
        wanted = np.mean([curvature(row).numpy() for x in xs for row in model(torch.from_numpy(x))], axis=0)
    assert relative(found["2.weight"], wanted) < 0.2
    assert np.trace(found["2.weight"]) == pytest.approx(np.trace(wanted), rel=0.03)


class Block(nn.Module):
    """Embedding, attention and a feed-forward part; integers in, one unit vector out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 8**0.5
        x = x + torch.softmax(scores.masked_fill(mask[:, None] == 0, -1e9), -1) @ self.v(x)
        x = x + self.down(nn.functional.gelu(self.up(x)))
        weight = mask[..., None].to(x.dtype)
        return nn.functional.normalize((x * weight).sum(1) / weight.sum(1), dim=1)


def test_transformer_block_with_integer_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Block()
    example = torch.ones(1, 5, dtype=torch.int64)
    path, layers = saved(model, tmp_path, example, example.clone())
    rng = np.random.default_rng(3)
    ids, mask = rng.integers(0, 20, (6, 1, 5)), np.ones((6, 1, 5), np.int64)
    mask[::2, :, 3:] = 0
    names = ("q", "k", "v", "up", "down")
    watched = {f"{name}.weight": (getattr(model, name), last_axis) for name in names}
    pairs = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(ids, mask, strict=True)]
    wanted = by_hooks(model, watched, pairs, lambda y: torch.eye(len(y)))
    runs = [{"mask": m.astype(np.int32), "ids": i} for i, m in zip(ids, mask, strict=True)] * 100
    found = gradient_moments(path, layers, runs, Sampling("vector", 0, samples=len(runs)))
    assert set(found) == set(wanted)
    for name, moment in wanted.items():
        assert relative(found[name], moment) < 0.2, name
        np.testing.assert_array_equal(found[name], found[name].T)


class Image(nn.Module):
    """A 1×1 convolution whose weight is used twice, a batch of two, class scores at every pixel's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.tanh(self.shared(torch.tanh(self.shared(self.first(x)))))
        return self.head(y.mean((2, 3))), 100 * y


def test_convolutions_batches_shared_weights_and_first_output_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Image()
    path, layers = saved(model, tmp_path, torch.zeros(2, 3, 4, 5))
    xs = np.random.default_rng(4).standard_normal((5, 2, 3, 4, 5)).astype(np.float32)
    found = gradient_moments(path, layers, feeds(xs), Sampling("classes", 0))

    def pixels(gradient: torch.Tensor) -> torch.Tensor:
        return gradient.movedim(1, -1).reshape(-1, gradient.shape[1])

    watched = {
        "first.weight": (model.first, pixels),
        "shared.weight": (model.shared, pixels),  # called twice: both calls add up
        "head.weight": (model.head, last_axis),
    }
    single = [(torch.from_numpy(x[i : i + 1]),) for x in xs for i in range(2)]
    wanted = by_hooks(model, watched, single, curvature)
    assert set(found) == set(wanted)
    for name, moment in wanted.items():
        assert relative(found[name], moment) < 1e-4, name


def spectrum_of(layer: Layer, rows: torch.Tensor) -> Spectrum:
    """Of a covariance without shrinkage."""
    x = rows.reshape(-1, layer.in_features).double().numpy()
    covariance = np.cov(x.T, bias=True).reshape(layer.in_features, layer.in_features)
    values, vectors = np.linalg.eigh(covariance)
    whole = svd.decompose(layer.weight.astype(np.float64) @ (vectors * np.sqrt(np.clip(values, 0, None))))
    return replace(whole, mean=x.mean(axis=0))


def leading_part(whole: Spectrum, columns: int) -> Spectrum:
    basis, energies = whole.basis[:, :columns], whole.energies[:columns]
    return replace(whole, basis=basis, energies=energies, rest=float(whole.energies[columns:].sum()))


def truncated(model: nn.Module, linear: nn.Linear, layer: Layer, spectrum: Spectrum, rank: int) -> nn.Module:
    """A copy of the model with the product of the layer's pair in its place."""
    other = copy.deepcopy(model)
    place = dict(other.named_modules())[next(n for n, m in model.named_modules() if m is linear)]
    pair = whitened.factors(views_of([layer])[0], spectrum, rank)
    place.weight.data, place.bias.data = torch.from_numpy(pair.A @ pair.B), torch.from_numpy(pair.bias)
    return other


def test_truncation_is_twice_the_divergence_of_the_factored_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 6))
    path, layers = saved(model, tmp_path, torch.zeros(4, 10))
    mixed = torch.randn(80, 10) @ torch.diag(torch.logspace(0, -1.5, 10)) @ torch.randn(10, 10) + 0.5
    layer, spectrum = layers[0], spectrum_of(layers[0], mixed)
    runs = feeds(mixed.reshape(20, 4, 10).numpy(), name="input")
    found = curvatures(path, layers, {layer.name: spectrum}, runs, Sampling("classes", 0))
    curve = found[layer.name].truncation
    assert curve is not None
    first = leading_part(spectrum, 5)
    again = feeds(mixed.reshape(20, 4, 10).numpy(), name="input")
    part = curvatures(path, layers, {layer.name: first}, again, Sampling("classes", 0))[layer.name].truncation
    np.testing.assert_allclose(part, curve[:6], rtol=1e-4)  # whose others count together
    assert found["2.weight"].truncation is None
    assert curve.shape == (9,)
    assert curve[-1] == 0
    assert (np.diff(curve) <= 0).all()
    with torch.no_grad():
        dense = torch.log_softmax(model(mixed), -1)
        for rank in (4, 5, 6):
            thin = torch.log_softmax(truncated(model, model[0], layer, spectrum, rank)(mixed), -1)
            divergence = float((dense.exp() * (dense - thin)).sum(-1).mean())
            assert curve[rank] == pytest.approx(2 * divergence, rel=0.25)


def test_the_curve_of_an_oblique_basis_is_that_of_its_factors(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 6))
    path, layers = saved(model, tmp_path, torch.zeros(1, 10))
    x = (torch.randn(300, 10) @ torch.randn(10, 10) + 0.5).reshape(300, 1, 10).numpy()
    seen = moments([{"x": x[:, 0]}])["x"]
    moment = gradient_moments(path, layers, feeds(x, name="input"), Sampling("vector", 0, samples=300))["0.weight"]
    view = replace(views_of(layers)[0], moments=replace(seen, count=10**9))
    spectrum = two_sided.spectrum(view, moment, damping=1e-3)
    sampling = Sampling("vector", 0, samples=300)
    given = feeds(x, name="input")
    found = curvatures(path, layers, {"0.weight": spectrum}, given, sampling, moments={"0.weight": 3 * moment})
    assert list(found) == ["0.weight"]
    np.testing.assert_array_equal(found["0.weight"].moment, 3 * moment)  # taken as it is
    curve = found["0.weight"].truncation
    assert curve is not None
    with torch.no_grad():
        for rank in (1, 3, 5):
            pair = two_sided.factors(view, spectrum, rank)
            other = copy.deepcopy(model)
            other[0].weight.data, other[0].bias.data = torch.from_numpy(pair.A @ pair.B), torch.from_numpy(pair.bias)
            rows = torch.from_numpy(x[:, 0])
            true = float((other(rows) - model(rows)).square().sum(-1).mean())
            assert curve[rank] == pytest.approx(true, rel=0.25)


def test_truncation_knows_that_tokens_err_alike(tmp_path: Path) -> None:
    """Every token of a sample is the same, so their errors add up before they are squared; G adds the squares."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outer(self.inner(x)).mean(1)

    torch.manual_seed(1)
    model = Mean()
    path, layers = saved(model, tmp_path, torch.zeros(1, 7, 6))
    x = torch.randn(60, 1, 1, 6).expand(60, 1, 7, 6).contiguous()
    layer = next(one for one in layers if one.name == "inner.weight")
    spectrum = spectrum_of(layer, x)
    runs = list(feeds(x.numpy())) * 10
    found = curvatures(path, layers, {layer.name: spectrum}, runs, Sampling("vector", 0, samples=600))[layer.name]
    assert found.truncation is not None
    view, alone = views_of([layer])[0], Curvature(found.moment)
    by_moment = layer_losses(view, spectrum, alone, Wanted((FP32,), range(1, 5)), whole, qmax=127)
    with torch.no_grad():
        for rank in (1, 2, 3, 4):
            change = truncated(model, model.inner, layer, spectrum, rank)(x[:, 0]) - model(x[:, 0])
            true = float(change.square().sum(-1).mean())
            assert found.truncation[rank] == pytest.approx(true, rel=0.25)
            assert by_moment[FP32, low_rank(rank)] == pytest.approx(true / 7, rel=0.25)


def whole(rank: int) -> Replacement:
    raise AssertionError("fp32 needs no factors")


def test_a_layer_that_adds_what_is_no_constant_has_no_curve(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(x[:, :3], x, self.w)

    path, layers = saved(Sum(), tmp_path, torch.zeros(2, 4))
    spectra = {layers[0].name: svd.spectrum(views_of(layers)[0])}
    found = curvatures(path, layers, spectra, feeds(np.ones((2, 2, 4), np.float32)), Sampling("vector", 0))
    assert [one.truncation for one in found.values()] == [None]


def test_layers_that_no_gradient_reaches_are_absent(tmp_path: Path) -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.a(x) + self.b(x).detach(), self.c(x), self.b(x).argmax(-1)

    path, layers = saved(Aside(), tmp_path, torch.zeros(1, 4))
    x = np.ones((3, 1, 4), np.float32)
    stranger = linear_layer("stranger", np.ones((3, 4), np.float32), None)
    assert set(gradient_moments(path, [*layers, stranger], feeds(x), Sampling("vector", 0))) == {"a.weight"}
    assert gradient_moments(path, layers, [], Sampling("vector", 0)) == {}


def test_whole_numbers_have_no_gradient(tmp_path: Path) -> None:
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x).argmax(-1)

    path, layers = saved(Labels(), tmp_path, torch.zeros(1, 4))
    assert gradient_moments(path, layers, feeds(np.ones((1, 1, 4), np.float32)), Sampling("vector", 0)) == {}


def test_seed_samples_and_time_bound_the_result(tmp_path: Path) -> None:
    path, layers = saved(mlp(classes=40), tmp_path, torch.zeros(2, 6))
    xs = np.random.default_rng(5).standard_normal((8, 2, 6)).astype(np.float32)

    def at(seed: int, count: int = 8, **options: float) -> Array:
        runs = feeds(xs[:count], name="input")
        return gradient_moments(path, layers, runs, Sampling("classes", seed, **options))["0.weight"]  # type: ignore[arg-type]

    np.testing.assert_array_equal(at(0), at(0))
    assert not np.array_equal(at(0), at(1))
    np.testing.assert_array_equal(at(0, samples=6), at(0, count=3))
    np.testing.assert_array_equal(at(0, budget_s=0.0), at(0, count=1))


def test_a_run_that_overflows_is_left_out(tmp_path: Path) -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x).abs().sqrt()

    path, layers = saved(Root(), tmp_path, torch.ones(1, 2))
    good = np.ones((1, 2), np.float32)
    runs = [{"x": good}, {"x": np.zeros((1, 2), np.float32)}]  # the root has no derivative at 0
    found = gradient_moments(path, layers, runs, Sampling("vector", 0))
    np.testing.assert_array_equal(
        found["a.weight"], gradient_moments(path, layers, runs[:1], Sampling("vector", 0))["a.weight"]
    )


def test_inputs_that_do_not_fit_and_files_that_are_none_are_typed_errors(tmp_path: Path) -> None:
    path, layers = saved(mlp(), tmp_path, torch.zeros(1, 6))
    with pytest.raises(ModelError, match="gradients cannot be computed"):
        gradient_moments(path, layers, [{"input": np.zeros((1, 7), np.float32)}], Sampling("classes", 0))
    with pytest.raises(ModelError, match=r"takes the inputs \['input'\], found \['a', 'b'\]"):
        gradient_moments(path, layers, [{"a": np.zeros(1), "b": np.zeros(1)}], Sampling("classes", 0))
    with pytest.raises(ModelError, match="no such file"):
        gradient_moments(tmp_path / "none.pt2", layers, [], Sampling("classes", 0))
