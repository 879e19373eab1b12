"""Every method of the tool builds packs in both formats, whose files are proved in their runtimes."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.archive.archive import extract_file
from edgepack.errors import UsageError
from edgepack.methods.registry import AUTO, FACTORIZERS, METHODS, PATENTS, RISKS, compress
from edgepack.model.constexpr import is_decoded
from edgepack.model.layer import View
from edgepack.model.scheme import CONSTEXPR
from edgepack.pipeline.build import build
from edgepack.pipeline.datasets import choose_methods, load_data
from edgepack.pipeline.method_fits import saves
from edgepack.sources import open_model
from edgepack.workspace import Cache
from tests.pipeline.small_builds import options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SHARE = 0.25
DIRECT = {"deepthin-conv", "input-projection", "dictionary"}
DECODED = {"deepthin", "kmeans", "pruning", "hashednet"}
PAIRS = {"dct", "simhash", "random-projection", "output-projection", "rank-pruning"}
KERNELS = {"cp"}
OF_MATRICES = [name for name in METHODS if name not in KERNELS]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: the model is converted to TFLite once."""
    return tmp_path_factory.mktemp("methods")


def test_every_method_is_of_one_kind() -> None:
    assert set(METHODS) == DIRECT | DECODED | PAIRS | KERNELS | {"jpeg"}
    assert not set(METHODS) & set(FACTORIZERS)
    assert set(AUTO) < set(METHODS)
    assert set(PATENTS) == {name for name in METHODS if "deepthin" in name}
    assert not set(AUTO) & {*PATENTS, *RISKS}


@pytest.mark.parametrize("name", OF_MATRICES)
def test_a_pack_by_every_method(name: str, classifier: Path, cache: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"formats": ("onnx", "tflite"), "rank": SHARE, "method": name, "archive": True}
    record = build(options(classifier, out=tmp_path / "pack", **changes), cache=Cache(cache)).manifest.record()
    for fmt in ("onnx", "tflite"):
        entry = record["files"][f"model.{fmt}"]
        assert {proof["passed"] for proof in entry["proofs"].values()} == {True}, entry["proofs"]
        first = entry["layers"][0]
        assert first["alternative"] is not None, record["warnings"]
        assert first["alternative"]["method"] == name
        assert (first["scheme"] == CONSTEXPR) == (name in DIRECT | DECODED)
        assert (first["rank"] is not None) == (name in PAIRS)
        if first["scheme"] == CONSTEXPR:
            assert entry["size_bytes"] < 0.5 * record["files"][f"baseline/int8.{fmt}"]["size_bytes"]
        (unpacked,) = extract_file(tmp_path / "pack" / "archive" / f"model.{fmt}.tar.xz", tmp_path / fmt)
        assert unpacked.path.read_bytes() == (tmp_path / "pack" / f"model.{fmt}").read_bytes()
    if name == "jpeg":
        with tarfile.open(tmp_path / "pack" / "archive" / "model.onnx.tar.xz") as archive:
            assert [name for name in archive.getnames() if name.endswith(".jpg")] == ["0.jpg", "1.jpg", "2.jpg"]
        assert record["files"]["model.onnx"]["archive_bytes"] < 0.3 * record["files"]["model.onnx"]["size_bytes"]
    said = any(f"{name} only saves bytes" in warning for warning in record["warnings"])
    assert said == (name in DECODED | {"jpeg"})
    assert any("patent US 11429849" in warning for warning in record["warnings"]) == (name in PATENTS)


@pytest.mark.parametrize("name", OF_MATRICES)
def test_what_a_method_gives_without_data(name: str) -> None:
    rng = np.random.default_rng(0)
    layer = View("one", rng.standard_normal((96, 128)).astype(np.float32), None)
    part = compress(name, layer, 0.4)
    assert not isinstance(part, str)
    assert part.structure.is_low_rank == (name in PAIRS)
    assert part.structure.is_dense == (name == "jpeg")
    assert part.structure.is_constexpr == (name in DIRECT | DECODED)
    if part.structure.is_constexpr:
        assert is_decoded(part) == (name in DECODED)
        again = compress(name, layer, 0.4)
        assert not isinstance(again, str)
        assert again.tensors.keys() == part.tensors.keys()
        assert all(again.tensors[key].tobytes() == array.tobytes() for key, array in part.tensors.items())
    assert saves(part) == ("wire" if name == "jpeg" else "file" if name in DECODED else "all")


@pytest.mark.parametrize("name", METHODS)
def test_too_few_bytes_are_a_reason(name: str) -> None:
    layer = View("one", np.eye(16, 24, dtype=np.float32), None)
    assert isinstance(compress(name, layer, 0.004), str)


def test_the_planner_chooses_among_methods_but_never_the_patented_one(
    classifier: Path, warm_cache: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"method": "auto", "max_size_bytes": 40_000, "max_drop": 40.0}
    record = build(options(classifier, out=tmp_path / "pack", **changes), cache=Cache(warm_cache)).manifest.record()
    entry = record["files"]["model.onnx"]
    assert entry["size_bytes"] <= 40_000
    seen = {one["alternative"]["method"] for layer in entry["layers"] for one in layer["others"] if one["alternative"]}
    seen |= {layer["alternative"]["method"] for layer in entry["layers"] if layer["alternative"]}
    assert len(seen) >= 3
    assert seen <= set(AUTO)


def test_methods_of_a_name(classifier: Path, tmp_path: Path) -> None:
    data = load_data(classifier.parent / "data.npz", open_model(str(classifier), tmp_path), str(classifier), 0)
    assert choose_methods("kmeans", data).others == ("kmeans",)
    assert not choose_methods("kmeans", data).pairs
    assert choose_methods("auto", data).others == AUTO
    assert choose_methods("two-sided", data).factorizer == "two-sided"
    with pytest.raises(
        UsageError, match="unknown method 'magic'; there are svd, whitened, two-sided, fisher, auto, kmeans"
    ):
        choose_methods("magic", data)
