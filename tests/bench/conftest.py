from __future__ import annotations

from pathlib import Path

import bench_models
import pytest


@pytest.fixture(scope="session")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_models.write_mlp(tmp_path_factory.mktemp("models") / "mlp.onnx", [64, 48, 10])


@pytest.fixture(scope="session")
def tflite_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_models.tflite_folder(tmp_path_factory.getbasetemp())
