"""AIMET's weight SVD of a perceptron, then onnxruntime's dynamic int8: `aimet.py MODEL.onnx DATA.npz RATIO OUT.onnx`.

The ranks are AIMET's own choice (its greedy search on accuracy over the data) for a share of the multiplications.
Runs in the environment of `requirements/aimet.txt`.
"""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxruntime.quantization import quantize_dynamic

for module in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.ops"):
    sys.modules[module] = (
        MagicMock()
    )  # AIMET imports it for its examples; there is no build of it for this torch on CPUs
from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters, RankSelectScheme  # noqa: E402
from aimet_torch.compress import ModelCompressor  # noqa: E402
from aimet_torch.defs import WeightSvdParameters  # noqa: E402


def perceptron(path: str) -> torch.nn.Sequential:
    """The layers of a file of Gemm and Relu nodes."""
    model = onnx.load(path)
    arrays = {each.name: torch.tensor(numpy_helper.to_array(each)) for each in model.graph.initializer}
    layers: list[torch.nn.Module] = []
    for node in model.graph.node:
        if node.op_type == "Relu":
            layers.append(torch.nn.ReLU())
            continue
        weight, bias = arrays[node.input[1]], arrays[node.input[2]]
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return torch.nn.Sequential(*layers).eval()


def main(model_path: str, data_path: str, ratio: str, out: str) -> None:
    """Compress, export, quantize."""
    with np.load(data_path) as data:
        inputs, labels = torch.tensor(data["x"]), torch.tensor(data["y"])

    def accuracy(model: torch.nn.Module, *_: object, **_options: object) -> float:
        with torch.no_grad():
            return float((model(inputs).argmax(1) == labels).float().mean())

    mode = WeightSvdParameters.AutoModeParams(
        RankSelectScheme.greedy, GreedySelectionParameters(Decimal(ratio), num_comp_ratio_candidates=20)
    )
    parameters = WeightSvdParameters(WeightSvdParameters.Mode.auto, mode)
    small, _ = ModelCompressor.compress_model(
        perceptron(model_path),
        eval_callback=accuracy,
        eval_iterations=1,
        input_shape=(1, inputs.shape[1]),
        compress_scheme=CompressionScheme.weight_svd,
        cost_metric=CostMetric.mac,
        parameters=parameters,
    )
    fp32 = Path(out).with_suffix(".fp32.onnx")
    torch.onnx.export(small, (inputs[:1],), fp32, input_names=["x"], dynamo=False)
    quantize_dynamic(fp32, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
