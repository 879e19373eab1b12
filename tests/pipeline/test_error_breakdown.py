"""What a manifest says a layer loses: exactly what the layer in the file loses."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.pipeline.build import build
from edgepack.pipeline.prepare import Prepared
from edgepack.workspace import Cache
from tests.pipeline.small_builds import options


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_shares_add_up_and_are_those_of_the_spectrum(
    ready: Prepared, classifier: Path, warm_cache: Path, tmp_path: Path, precision: str
) -> None:
    asked = options(classifier, rank=16, precision=precision, baseline=False, out=tmp_path / "pack")
    made = build(asked, cache=Cache(warm_cache)).manifest.record()["files"]["model.onnx"]["layers"]
    for layer, spectrum in zip(made, ready.evaluator.spectra.values(), strict=True):
        shares = layer["lost_shares"]
        if layer["rank"] is None:
            assert precision == "fp32" or 0 < shares["total"] == shares["rounding"] < 0.05
            continue
        assert shares["truncation"] == pytest.approx(spectrum.lost_share()[16], rel=0.2)
        parts = ("truncation", "rounding", "latent", "offset", "cross")
        assert shares["total"] == pytest.approx(sum(shares[part] for part in parts))
        if precision == "fp32":
            assert shares["rounding"] + shares["latent"] < 1e-9
        else:
            rounds = not layer["scheme"].endswith("-weights")
            assert rounds == (shares["latent"] > 0)
            assert shares["latent"] < shares["truncation"]
            assert 1e-7 < shares["rounding"] < shares["truncation"]
