from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import bench_models


@pytest.fixture(scope="session")
def runner_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_models.write_mlp(tmp_path_factory.mktemp("models") / "mlp.onnx", [64, 48, 10])


@pytest.fixture(scope="session")
def runner_tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_models.tflite_folder(tmp_path_factory.getbasetemp())
