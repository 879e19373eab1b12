"""`--refit`: real builds that answer closer to the original, depth by depth, from the cache, and where it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.backends.onnx.schemes import FP32, INT8_DYNAMIC
from edgepack.backends.runtime import predict
from edgepack.data import Samples
from edgepack.errors import UsageError
from edgepack.model.replacement import Replacement, of_structure
from edgepack.model.scheme import FileScheme
from edgepack.model.types import LayerPlan
from edgepack.natives import native
from edgepack.natives.onnx import OnnxNative
from edgepack.pipeline import refit as refitting
from edgepack.pipeline.build import build
from edgepack.pipeline.prepare import Prepared, prepared
from edgepack.pipeline.refit import Refitter
from edgepack.pipeline.rounding import Part
from edgepack.plan.candidates import break_even_rank
from edgepack.quantize.grids import quantize_matrix
from edgepack.workspace import Cache, silent
from tests.linear_plans import linear_plan
from tests.pipeline.small_builds import options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

INT8 = FileScheme.of(INT8_DYNAMIC)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refit")


def plan(ready: Prepared, ranks: Sequence[int | None]) -> list[LayerPlan]:
    found = []
    for layer, rank in zip(ready.evaluator.layers, ranks, strict=True):
        sides = layer.out_features, layer.in_features
        found.append(linear_plan(layer.name, *sides, rank, break_even_rank(*sides), 0.0, "", scheme=INT8_DYNAMIC))
    return found


def refitter(ready: Prepared, samples: Samples | None = None) -> Refitter:
    calibration = samples or ready.data.calibration
    assert calibration is not None
    return Refitter(ready.opened, ready.evaluator.replacements.rounder, calibration)


def unfitted(ready: Prepared, chosen: Sequence[LayerPlan]) -> dict[str, Replacement]:
    parts = ready.evaluator.replacements.factors(chosen, INT8)
    return of_structure(parts, "low-rank")


def made(ready: Prepared, chosen: Sequence[LayerPlan], samples: Samples | None = None) -> dict[str, Replacement]:
    analysis = ready.evaluator.analysis
    parts = [
        Part(view, analysis.spectra[view.name], one.structure, one.scheme_in(INT8))
        for view, one in zip(analysis.views, chosen, strict=True)
    ]
    return refitter(ready, samples).factors(parts)


def far(ready: Prepared, factors: dict[str, Replacement]) -> float:
    """Mean squared distance of the answers from the original's, on the validation samples."""
    session = native(ready.opened.native).session(ready.opened.content, factors, threads=1)
    answers = predict(session, ready.data.validation)
    return float(np.square(answers - ready.validation.reference).mean())


def test_a_build_with_a_refit_loses_less(classifier: Path, cache: Path, tmp_path: Path) -> None:
    drops = []
    for refit in (False, True):
        asked = options(classifier, rank=24, precision="int8", refit=refit, out=tmp_path / str(refit))
        manifest = build(asked, cache=Cache(cache)).manifest.record()
        assert manifest["options"]["refit"] is refit
        assert all(proof["passed"] for proof in manifest["files"]["model.onnx"]["proofs"].values())
        drops.append(manifest["files"]["model.onnx"]["validation"]["drop"])
    assert drops[1] < drops[0]


def test_it_is_judged_as_the_method_weighs_outputs(classifier: Path, cache: Path) -> None:
    with prepared(options(classifier, method="two-sided"), Cache(cache), silent) as ready:
        chosen = plan(ready, (16, 16, None))
        plain, fitted = unfitted(ready, chosen), made(ready, chosen)
        first, second = ready.evaluator.layers[:2]
        assert first.bias is not None
        x, metric = ready.data.validation.inputs["x"], ready.evaluator.replacements.rounder.gradients["w2"]
        original = np.maximum(x @ first.weight.T + first.bias, 0) @ second.weight.T

        def cost(factors: dict[str, Replacement]) -> float:
            fed = x
            for name, pair in factors.items():
                fed = np.maximum(fed, 0) if name == "w2" else fed
                fed = (fed @ pair.B.T) @ pair.A.T + (0 if pair.bias is None else pair.bias)
            error = (fed - original).astype(np.float64)
            return float(np.einsum("ni,ij,nj->", error, metric, error))

        assert cost(fitted) < 0.95 * cost(plain)


def test_only_layers_behind_factored_ones_are_refitted_and_all_stay_on_their_grids(ready: Prepared) -> None:
    chosen = plan(ready, (16, 32, None))
    plain, fitted = unfitted(ready, chosen), made(ready, chosen)
    assert fitted.keys() == plain.keys() == {"w1", "w2"}
    np.testing.assert_array_equal(fitted["w1"].B, plain["w1"].B)
    assert not np.array_equal(fitted["w2"].B, plain["w2"].B)
    for weight in (fitted["w2"].A, fitted["w2"].B):
        codes, scales = quantize_matrix(weight, qmax=ready.evaluator.replacements.rounder.qmax)
        np.testing.assert_allclose(codes * scales.reshape(-1, 1), weight, rtol=1e-6)
    assert far(ready, fitted) < far(ready, plain)
    # Nothing is compressed before the second layer: nothing to make up for.
    alone = plan(ready, (None, 32, None))
    np.testing.assert_array_equal(made(ready, alone)["w2"].A, unfitted(ready, alone)["w2"].A)


def test_rounding_is_against_the_refitted_weight(ready: Prepared) -> None:
    """The product of the rounded pair is close to that of the exact one, not to the original weight's."""
    chosen = plan(ready, (16, 128, None))
    exact = [replace(one, scheme=FP32) if one.layer == "w2" else one for one in chosen]
    plain = unfitted(ready, chosen)["w2"]
    rounded, float_pair = made(ready, chosen)["w2"], made(ready, exact)["w2"]
    near = np.square(rounded.A @ rounded.B - float_pair.A @ float_pair.B).sum()
    moved = np.square(plain.A @ plain.B - float_pair.A @ float_pair.B).sum()
    assert near < 0.3 * moved


def test_the_second_time_nothing_is_run(ready: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = plan(ready, (24, 24, None))
    first = made(ready, chosen)
    monkeypatch.setattr(OnnxNative, "observe", lambda *_, **__: pytest.fail("run again"))
    again = made(ready, chosen)
    for name, pair in first.items():
        np.testing.assert_array_equal(pair.A, again[name].A)
        np.testing.assert_array_equal(pair.bias, again[name].bias)


def test_another_prefix_is_another_refit(ready: Prepared) -> None:
    coarse, fine = (made(ready, plan(ready, (rank, 24, None)))["w2"] for rank in (8, 48))
    assert not np.array_equal(coarse.B, fine.B)


def test_few_samples_and_wide_layers_keep_their_factors(ready: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = plan(ready, (16, 40, None))
    plain = unfitted(ready, chosen)
    assert ready.data.calibration is not None
    few = made(ready, chosen, ready.data.calibration.head(refitting.FEWEST - 1))
    monkeypatch.setattr(refitting, "WIDEST", 256)
    wide = made(ready, chosen)
    for found in (few, wide):
        np.testing.assert_array_equal(found["w2"].A, plain["w2"].A)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"data": None}, "--refit needs calibration data"), ({"method": "svd"}, "--method svd looks at none")],
)
def test_without_statistics_it_is_refused(classifier: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    asked = options(classifier, refit=True, out=tmp_path / "pack", **changes)
    with pytest.raises(UsageError, match=says) as caught, prepared(asked, Cache(tmp_path / "cache"), silent):
        pass
    assert caught.value.hint is not None
