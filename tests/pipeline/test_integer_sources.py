"""Builds of ONNX files whose weights are integers already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.helper import make_node
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader

from edgepack.backends.onnx.schemes import INT8_STATIC, NBITS4
from edgepack.backends.onnx.writer import OnnxWriter
from edgepack.model.scheme import FileScheme
from edgepack.pack.manifest import read_manifest
from edgepack.pipeline.build import build
from edgepack.sources.onnx import open_onnx
from edgepack.units import size
from edgepack.workspace import Cache
from tests.backends.onnx.graph_models import info, proto
from tests.pipeline.small_builds import options

SIDE = 192
RNG = np.random.default_rng(1)


def linear(folder: Path, least: float) -> Path:
    """A linear layer whose singular values fall to `least`."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((SIDE, SIDE)))[0] for _ in range(2))
    weight = ((u * np.geomspace(1, least, SIDE)) @ v).astype(np.float32)
    made = proto(
        [make_node("MatMul", ["x", "w"], ["y"])], [info("x", [1, SIDE])], [info("y", [1, SIDE])], {"w": weight}
    )
    onnx.save(made, folder / "float.onnx")
    return folder / "float.onnx"


def quantized(folder: Path, least: float) -> Path:
    """In 8 bits with dynamic activations."""
    quantize_dynamic(linear(folder, least), folder / "model.onnx")
    return folder / "model.onnx"


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Inputs that the runtime's quantizer takes ranges from."""

    def __init__(self) -> None:
        self.feeds = iter([{"x": RNG.standard_normal((1, SIDE)).astype(np.float32)} for _ in range(20)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def in_integers(folder: Path, least: float) -> Path:
    """As QLinearMatMul, which takes and gives integers."""
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    form = QuantFormat.QOperator
    quantize_static(linear(folder, least), folder / "model.onnx", Reader(), quant_format=form, **types)
    return folder / "model.onnx"


@pytest.mark.parametrize(("least", "factored"), [(1e-8, True), (1.0, False)])
def test_a_pack_is_no_larger_than_the_file_that_was_given(least: float, factored: bool, tmp_path: Path) -> None:
    source = quantized(tmp_path, least)
    build(options(source, data=None, max_drop=None, out=tmp_path / "pack"), cache=Cache(tmp_path / "cache"))
    (layer,) = (entry := read_manifest(tmp_path / "pack").files["model.onnx"]).layers
    assert (layer.rank is not None) is factored
    assert not any("size wins" in warning for warning in read_manifest(tmp_path / "pack").warnings)
    assert entry.size_bytes <= (0.7 if factored else 1.0) * source.stat().st_size


@pytest.mark.parametrize(("least", "factored"), [(1e-8, True), (1.0, False)])
def test_products_that_take_and_give_integers_have_a_rank_where_that_is_smaller(
    least: float, factored: bool, tmp_path: Path
) -> None:
    source = in_integers(tmp_path, least)
    assert [node.op_type for node in onnx.load(source).graph.node].count("QLinearMatMul") == 1
    np.savez(tmp_path / "d.npz", allow_pickle=False, x=RNG.standard_normal((600, SIDE)).astype(np.float32))
    asked = options(source, data=tmp_path / "d.npz", max_drop=0.5, out=tmp_path / "pack")
    build(asked, cache=Cache(tmp_path / "cache"))
    manifest = read_manifest(tmp_path / "pack")
    (layer,) = (entry := manifest.files["model.onnx"]).layers
    assert (layer.rank is not None) is factored
    assert entry.size_bytes <= (0.7 if factored else 1.0) * source.stat().st_size
    assert (tmp_path / "pack" / "baseline" / "int8.onnx").read_bytes() == source.read_bytes()
    if not factored:
        assert (tmp_path / "pack" / "model.onnx").read_bytes() == source.read_bytes()
        assert layer.scheme == INT8_STATIC.name


def test_a_file_of_fewer_bits_than_any_plan_is_kept(tmp_path: Path) -> None:
    writer = OnnxWriter(open_onnx(linear(tmp_path, 1.0)).model, None, qmax=127)
    source = tmp_path / "blocks.onnx"
    writer.write({}, FileScheme.of(NBITS4), source)
    build(options(source, data=None, max_drop=None, out=tmp_path / "pack"), cache=Cache(tmp_path / "cache"))
    manifest = read_manifest(tmp_path / "pack")
    assert (tmp_path / "pack" / "model.onnx").read_bytes() == source.read_bytes()
    assert [layer.scheme for layer in manifest.files["model.onnx"].layers] == [NBITS4.name]
    assert any("keeps the model as it was given" in warning for warning in manifest.warnings)
    (clash,) = (warning for warning in manifest.warnings if "size wins" in warning)
    dense = tmp_path / "pack" / "baseline" / "int8.onnx"
    assert f"as it was given ({size(source.stat().st_size)})" in clash
    assert f", {size(dense.stat().st_size)})" in clash
    assert "emulated cost table" in clash


@pytest.mark.parametrize("form", [QuantFormat.QOperator, QuantFormat.QDQ])
def test_convolutions_in_integers_have_a_rank_where_that_is_smaller(form: QuantFormat, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernels = [
        (rng.standard_normal((48, 4)) @ rng.standard_normal((4, 9 * inputs)) / 8).reshape(48, inputs, 3, 3)
        for inputs in (3, 48)
    ]
    weights = {"k": kernels[0], "v": kernels[1], "w": rng.standard_normal((48, 5))}
    nodes = [
        make_node("Conv", ["x", "k"], ["a"], pads=[1] * 4), make_node("Relu", ["a"], ["b"]),
        make_node("Conv", ["b", "v"], ["c"], pads=[1] * 4), make_node("GlobalAveragePool", ["c"], ["d"]),
        make_node("Flatten", ["d"], ["e"]), make_node("MatMul", ["e", "w"], ["y"]),
    ]  # fmt: skip
    given = {name: array.astype(np.float32) for name, array in weights.items()}
    onnx.save(proto(nodes, [info("x", [1, 3, 8, 8])], [info("y", [1, 5])], given), tmp_path / "float.onnx")
    x = (RNG.standard_normal((300, 1, 3, 1, 1)) + RNG.standard_normal((300, 1, 3, 8, 8)) / 3).astype(np.float32)
    reader = Reader()
    reader.feeds = iter([{"x": one} for one in x[:30]])
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    source = tmp_path / "model.onnx"
    quantize_static(tmp_path / "float.onnx", source, reader, quant_format=form, reduce_range=True, **types)
    np.savez(tmp_path / "d.npz", allow_pickle=False, x=x[:, 0])
    asked = options(source, data=tmp_path / "d.npz", max_drop=3.0, metric="r2", out=tmp_path / "pack")
    build(asked, cache=Cache(tmp_path / "cache"))
    entry = (manifest := read_manifest(tmp_path / "pack")).files["model.onnx"]
    assert {layer.layer: layer.rank is not None for layer in entry.layers}["v_quantized"]
    assert entry.size_bytes < 0.6 * source.stat().st_size
    assert (tmp_path / "pack" / "baseline" / "int8.onnx").read_bytes() == source.read_bytes()
    assert not any("stay as they are" in warning for warning in manifest.warnings)
