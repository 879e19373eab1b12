"""One integer kernel per layer in the runtime's own graph: a weight decoded at every run is fifty times slower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack.backends.onnx.contents import read_contents
from edgepack.backends.onnx.rewrite import with_factors
from edgepack.backends.onnx.schemes import INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.onnx.sites import find_sites
from edgepack.model.replacement import low_rank
from edgepack.model.scheme import Scheme
from tests.backends.onnx.onnx_layers import (
    FUSED,
    IN,
    LOW_HIGH,
    OUT,
    PLACES,
    assert_close,
    emitted,
    fp32,
    info,
    kernels,
    model,
    node,
    normal,
    optimized,
    placed,
    run,
)

INT8 = [INT8_DYNAMIC, INT8_STATIC]


@pytest.mark.parametrize("scheme", INT8, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("place", PLACES)
def test_one_integer_kernel_and_no_weight_decoded(place: str, bias: bool, scheme: Scheme, tmp_path: Path) -> None:
    """A DequantizeLinear that stays in front of a float product decodes the whole weight at every run."""
    source, _ = placed(place, bias=bias)
    path = emitted(source, scheme, tmp_path / "q.onnx")
    for exact in (False, True):
        operators = optimized(path, exact=exact)
        assert "DequantizeLinear" not in operators, operators
        found = kernels(path, exact=exact)
        assert len(found) == 1, operators
        assert found[0] in ({"ConvInteger"} if place.startswith("conv") else FUSED)


@pytest.mark.parametrize("scheme", INT8, ids=str)
@pytest.mark.parametrize("place", [place for place in PLACES if not place.endswith("1d") or place.startswith("conv")])
def test_a_factored_layer_is_two_integer_kernels(place: str, scheme: Scheme, tmp_path: Path) -> None:
    source, x = placed(place)
    (site,) = find_sites(source.clone())
    q = np.linalg.qr(normal(OUT, 8, seed=9))[0].astype(np.float32)
    thin = with_factors(source, {site.layer.name: low_rank(q, q.T @ site.layer.weight, site.layer.bias)})
    path = emitted(thin, scheme, tmp_path / "q.onnx", low_high=(-32.0, 32.0))
    found = kernels(path)
    assert len(found) == 2
    assert set(found) <= ({"ConvInteger"} if place.startswith("conv") else FUSED)
    assert "DequantizeLinear" not in optimized(path)
    assert_close(run(path, x=x)[0], fp32(thin, x=x)[0], 0.1)
    assert read_contents(path).weights == ((8, OUT, 8), (8, IN, 8))


@pytest.mark.parametrize("scheme", INT8, ids=str)
@pytest.mark.parametrize("axes", [2, 3])
def test_layers_that_share_an_input(scheme: Scheme, axes: int, tmp_path: Path) -> None:
    """Query, key and value of an attention."""
    lead = ["N", 3][: axes - 1]
    names = ("q", "k", "v")
    source = model(
        [node("MatMul", ["x", f"w{n}"], [n]) for n in names],
        [info("x", [*lead, IN])],
        [info(n, [*lead, OUT]) for n in names],
        {f"w{n}": normal(IN, OUT, seed=i) for i, n in enumerate(names)},
    )
    path = emitted(source, scheme, tmp_path / "q.onnx")
    for exact in (False, True):
        found = kernels(path, exact=exact)
        assert len(found) == 3
        assert set(found) <= FUSED
        assert "DequantizeLinear" not in optimized(path, exact=exact)
    x = normal(*([2, 3, IN] if axes == 3 else [4, IN])).clip(*LOW_HIGH)
    for one, other in zip(run(path, x=x), fp32(source, x=x), strict=True):
        assert_close(one, other, 0.02)


@pytest.mark.parametrize("scheme", INT8, ids=str)
@pytest.mark.parametrize("axes", [2, 3])
def test_a_weight_in_two_places_is_stored_once(scheme: Scheme, axes: int, tmp_path: Path) -> None:
    """With biases of their own; the runtime's exact mode on x86 needs help with the shared constants."""
    lead = ["N", 3][: axes - 1]
    source = model(
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"]),
         node("MatMul", ["z", "w"], ["n"]), node("Add", ["n", "c"], ["u"])],
        [info("x", [*lead, IN]), info("z", [*lead, IN])],
        [info("y", [*lead, OUT]), info("u", [*lead, OUT])],
        {"w": normal(IN, OUT), "b": normal(OUT, seed=1), "c": normal(OUT, seed=2)},
    )  # fmt: skip
    path = emitted(source, scheme, tmp_path / "q.onnx")
    assert read_contents(path).weights == ((OUT, IN, 8),)
    shape = (2, IN) if axes == 2 else (2, 3, IN)
    feed = {"x": normal(*shape, seed=3).clip(*LOW_HIGH), "z": normal(*shape, seed=4).clip(*LOW_HIGH)}
    for one, other in zip(run(path, **feed), fp32(source, **feed), strict=True):
        assert_close(one, other, 0.02)
    assert set(kernels(path)) <= FUSED


@pytest.mark.parametrize("scheme", INT8, ids=str)
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("what", ["residual", "transpose", "output between", "relu"])
def test_what_follows_does_not_undo_the_fusion(what: str, axes: int, scheme: Scheme, tmp_path: Path) -> None:
    lead, y = (["N", 3][: axes - 1], "y")
    weights = {"w": normal(IN, OUT), "b": normal(OUT, seed=1)}
    inputs, outputs = [info("x", [*lead, IN])], [info("y", [*lead, OUT])]
    after = {
        "residual": [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "r"], [y])],
        "transpose": [node("MatMul", ["x", "w"], ["m"]), node("Transpose", ["m"], [y], perm=[1, 0, 2][:axes])],
        "output between": [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], [y])],
        "relu": [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["n"]), node("Relu", ["n"], [y])],
    }[what]
    feed = {"x": normal(*([4, 3, IN] if axes == 3 else [4, IN]), seed=3).clip(*LOW_HIGH)}
    if what == "residual":
        inputs.append(info("r", [*lead, OUT]))
        feed["r"] = normal(*feed["x"].shape[:-1], OUT, seed=4)
    if what == "output between":
        outputs.append(info("m", [*lead, OUT]))
    if what == "transpose":
        outputs = [info("y", [OUT, "N"] if axes == 2 else [3, "N", OUT])]
    if what in ("residual", "transpose"):
        del weights["b"]
    source = model(after, inputs, outputs, weights)
    path = emitted(source, scheme, tmp_path / "q.onnx")
    for one, other in zip(run(path, **feed), fp32(source, **feed), strict=True):
        assert_close(one, other, 0.03)
    for exact in (False, True):
        found = kernels(path, exact=exact)
        assert len(found) == 1
        assert found[0] in FUSED
        assert "DequantizeLinear" not in optimized(path, exact=exact)
