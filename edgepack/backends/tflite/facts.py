"""TFLite and LiteRT as data."""

from __future__ import annotations

from edgepack.backends.facts import ConstexprFacts, Facts, Schemes
from edgepack.backends.tflite.schemes import CONSTEXPR, DENSE_INT8, FP32, SCHEMES
from edgepack.errors import install_command
from edgepack.workspace import TOOLS as OWN_TOOLS

FACTS = Facts(
    title="TFLite",
    schemes=Schemes(SCHEMES, DENSE_INT8, FP32, CONSTEXPR),
    install=install_command("tflite"),
    packages=("litert-quantizer", "ai-edge-litert"),
    converters={"onnx": ("torch", "litert-torch"), "torch": ("torch", "litert-torch")},
    closed={},
    purposes={
        "ai-edge-litert": "runs .tflite files",
        "litert-torch": "writes .tflite files",
        "litert-quantizer": "writes int8 .tflite files",
    },
    runtimes=("ai-edge-litert", "tflite-runtime"),
    tested="2.3.0",
    tool="benchmark_model",
    browser_package="@litertjs/core",
    timed_call="Interpreter.invoke",
    call_instructions=5500,
    float_values=(2.0, 5.0),
    integer_values=(4.0, 6.0),
    patch_value=0.0,
    # A decoded matrix is kept in a variable, which is copied at every inference.
    constexpr=ConstexprFacts(bytes_per_instruction=130, decoded=3.5, direct=0.75, convolved=4.0),
    open_shapes=False,
    folds=True,
    whole_cells=("LSTM",),
)

TOOLS = (*OWN_TOOLS, *FACTS.purposes)
"""Whose versions shape the files that are written."""
