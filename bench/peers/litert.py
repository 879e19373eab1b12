"""litert-quantizer: `litert.py MODEL.tflite DATA.npz RECIPE OUT.tflite`, a recipe by the name of its function.

Runs in the environment of `requirements/litert.txt`.
"""

from __future__ import annotations

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from litert_quantizer import quantizer, recipe

CALIBRATION = 1000
"""Samples, at most."""


def main(model: str, data: str, name: str, out: str) -> None:
    """Quantize; recipes of static ranges see the samples first."""
    tool = quantizer.Quantizer(model)
    tool.load_quantization_recipe(getattr(recipe, name)())
    result = None
    if tool.need_calibration:
        with np.load(data) as samples:
            x = samples["x"][:CALIBRATION]
        ((signature, names),) = Interpreter(model_path=model).get_signature_list().items()
        (entry,) = names["inputs"]
        result = tool.calibrate({signature: [{entry: each[None]} for each in x]})
    tool.quantize(result).export_model(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
