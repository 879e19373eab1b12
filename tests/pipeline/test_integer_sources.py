"""Builds of ONNX files whose weights are integers already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.helper import make_node
from onnxruntime.quantization import quantize_dynamic

from edgepack.backends.onnx.schemes import NBITS4
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.model.scheme import FileScheme
from edgepack.pack.manifest import read_manifest
from edgepack.pipeline.build import build
from edgepack.sources.onnx import open_onnx
from edgepack.workspace import Cache
from tests.backends.onnx.graph_models import info, proto
from tests.pipeline.small_builds import options

SIDE = 192


def quantized(folder: Path, least: float) -> Path:
    """A linear layer whose singular values fall to `least`, in 8 bits with dynamic activations."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((SIDE, SIDE)))[0] for _ in range(2))
    weight = ((u * np.geomspace(1, least, SIDE)) @ v).astype(np.float32)
    made = proto(
        [make_node("MatMul", ["x", "w"], ["y"])], [info("x", [1, SIDE])], [info("y", [1, SIDE])], {"w": weight}
    )
    onnx.save(made, folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(("least", "factored"), [(1e-8, True), (1.0, False)])
def test_a_pack_is_no_larger_than_the_file_that_was_given(least: float, factored: bool, tmp_path: Path) -> None:
    source = quantized(tmp_path, least)
    build(options(source, data=None, max_drop=None, out=tmp_path / "pack"), cache=Cache(tmp_path / "cache"))
    (layer,) = (entry := read_manifest(tmp_path / "pack").files["model.onnx"]).layers
    assert (layer.rank is not None) is factored
    assert entry.size_bytes <= (0.7 if factored else 1.0) * source.stat().st_size


def test_a_file_of_fewer_bits_than_any_plan_is_kept(tmp_path: Path) -> None:
    quantized(tmp_path, 1.0)
    writer = OnnxWriter(open_onnx(tmp_path / "float.onnx").model, None, largest=127)
    source = tmp_path / "blocks.onnx"
    writer.write({}, FileScheme.of(NBITS4), source)
    build(options(source, data=None, max_drop=None, out=tmp_path / "pack"), cache=Cache(tmp_path / "cache"))
    manifest = read_manifest(tmp_path / "pack")
    assert (tmp_path / "pack" / "model.onnx").read_bytes() == source.read_bytes()
    assert [layer.scheme for layer in manifest.files["model.onnx"].layers] == [NBITS4.name]
    assert any("keeps it as it was given" in warning for warning in manifest.warnings)
