"""Runs the models of this pack on its example inputs. It needs numpy, and onnxruntime or ai-edge-litert."""

from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def example_inputs(model: Path) -> dict[str, Any]:
    """What a model file takes, by name: arrays of the right shapes and types, the batch first."""
    own = HERE / f"example_inputs{model.suffix}.npz"  # where one format takes other types than the other
    return dict(np.load(own if own.exists() else HERE / "example_inputs.npz"))


def run_onnx(model: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Its answers, by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model)
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))


def run_tflite(model: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Likewise."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    interpreter = Interpreter(model_path=str(model))
    if signatures := list(interpreter.get_signature_list()):
        return dict(interpreter.get_signature_runner(signatures[0])(**inputs))
    interpreter.allocate_tensors()
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], inputs[tensor["name"]])
    interpreter.invoke()
    return {tensor["name"]: interpreter.get_tensor(tensor["index"]) for tensor in interpreter.get_output_details()}


if __name__ == "__main__":
    for path, run in ((HERE / "model.onnx", run_onnx), (HERE / "model.tflite", run_tflite)):
        if path.exists():
            given = example_inputs(path)
            print(path.name, "takes", {name: (array.shape, str(array.dtype)) for name, array in given.items()})
            for name, array in run(path, given).items():
                print("  gives", name, np.shape(array), np.ravel(array)[:4])
